"""When is a gradient correct? The tests use the same criterion as `funcnet.check`.

In float64 two algebraically equal gradients differ only by rounding, so `equal` allows a few ulps
of the largest element. In a narrower dtype a gradient is correct if its error is at most what an
error of one ulp in the arguments would cause (`error_ratio`); float64 gives the true value.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion

PERTURBATIONS = 12


def split(f, args, static):
    """Returns f as a function of only the floating-point leaves of args, and these leaves."""
    leaves, tree = jax.tree.flatten(args)
    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact)]

    def g(*values):
        merged = list(leaves)
        for i, value in zip(floats, values, strict=True):
            merged[i] = value
        return f(*jax.tree.unflatten(tree, merged), **static)

    return g, tuple(jnp.asarray(leaves[i]) for i in floats)


def cast(values, dtype):
    return tuple(v.astype(dtype) for v in values)


def cotangents(g, values, seed=0):
    """Independent Gaussian cotangents for the outputs of g."""
    random = np.random.default_rng(seed)
    draw = lambda t: jnp.asarray(random.standard_normal(t.shape), t.dtype)
    return jax.tree.map(draw, jax.eval_shape(g, *values))


def pull(g):
    """The compiled pullback of g: (values, dout) -> cotangents of values."""
    return jax.jit(lambda values, dout: jax.vjp(g, *values)[1](dout))


def equal(actual, expected, *, ulps=64):
    """Asserts equal structure, shapes, dtypes and non-finite elements, and nearly equal values.

    Finite elements may differ by `ulps` ulps of the largest finite element of their leaf. 64 ulps
    are 1.4e-14 in float64. The rounding error of a sum of n ≤ 64 terms stays below n/2 ulps of its
    largest term, and no sum in the cases is longer.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        eps = float(jnp.finfo(a.dtype).eps)
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        finite = np.isfinite(e)
        np.testing.assert_array_equal(a[~finite], e[~finite])
        scale = np.abs(e[finite]).max(initial=0.0)
        np.testing.assert_allclose(a[finite], e[finite], rtol=0, atol=ulps * eps * scale)


def error_ratio(g, values, dout, dtype, computed, *, of_largest=0):
    """The largest ratio of an error of `computed` to that of one ulp in the arguments.

    The criterion is that of `funcnet.check.criterion`: a ratio of at most 1 is correct. The true
    value comes from g's rule in float64, which is tested separately. An error of `of_largest` ulps
    of the largest element of a cotangent is allowed too.
    """
    eps = criterion.eps(dtype)
    random = np.random.default_rng(7)

    def perturbed(x):  # the first row is x itself
        signs = random.choice([-1.0, 1.0], (PERTURBATIONS, *x.shape))
        return np.asarray(x, np.float64) * (
            1 + eps * np.concatenate([np.zeros((1, *x.shape)), signs])
        )

    pulled = jax.jit(jax.vmap(lambda values, dout: jax.vjp(g, *values)[1](dout)))
    many = pulled(*jax.tree.map(perturbed, (values, dout)))
    worst = 0.0
    for c, p in zip(computed, many, strict=True):
        truth, p = np.asarray(p[0]), np.asarray(p)
        with np.errstate(invalid="ignore"):
            spread = np.abs(p - truth).max(0)
        largest = np.abs(truth[np.isfinite(truth)]).max(initial=0.0)
        allowed = criterion.accuracy(truth, spread, 0, dtype) + of_largest * eps * largest
        worst = max(worst, criterion.worst(c, truth, allowed).ratio)
    return worst
