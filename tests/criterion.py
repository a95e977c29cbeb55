"""When is a gradient right? The checker's answer, for the tests.

In float64 two algebraically equal gradients differ by rounding alone, so `equal` asks for a few
ulps of the largest element. In a narrower dtype a gradient is right if its error is not above what
an error of one ulp in the arguments would cause (`error_ratio`), with truth from float64.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion

PERTURBATIONS = 12


def split(f, args, static):
    """f as a function of the floating leaves of args alone, and these leaves."""
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
    """Random cotangents of the outputs of g, of both signs, independent of each other."""
    random = np.random.default_rng(seed)
    draw = lambda t: jnp.asarray(random.standard_normal(t.shape), t.dtype)
    return jax.tree.map(draw, jax.eval_shape(g, *values))


def pull(g):
    """(values, dout) -> cotangents of values, compiled."""
    return jax.jit(lambda values, dout: jax.vjp(g, *values)[1](dout))


def equal(actual, expected, *, ulps=64):
    """Structure, shape, dtype and nan equal; values to `ulps` of the largest finite element.

    64 ulps are 1.4e-14 in float64. The rounding of a sum of n ≤ 64 terms stays below n/2 ulps of
    its largest term, and no sum in the cases is longer.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        eps = float(jnp.finfo(a.dtype).eps)
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        finite = np.isfinite(e)
        np.testing.assert_array_equal(a[~finite], e[~finite])
        scale = np.abs(e[finite]).max(initial=0.0)
        np.testing.assert_allclose(a[finite], e[finite], rtol=0, atol=ulps * eps * scale)


def error_ratio(g, values, dout, dtype, computed):
    """The largest error of `computed` over what one ulp in the arguments explains.

    The criterion is that of `funcnet.check.criterion`, with the truth from g's rule in float64,
    itself proved there: at most 1 is right.
    """
    eps = criterion.eps(dtype)
    random = np.random.default_rng(7)

    def perturbed(x):  # x itself first
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
        worst = max(
            worst, criterion.worst(c, truth, criterion.accuracy(truth, spread, 0, dtype)).ratio
        )
    return worst
