"""Correct rules in the many forms that the interface of `jax.custom_vjp` allows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from check.right_activations import gelu, leaky_relu
from check.right_entry import (
    WIDE,
    Right,
    arrays,
    booleans,
    integers,
    sizes,
    values,
)
from check.right_linear import affine, draw_affine
from check.right_norms import draw_norm, layer_norm
from jax.custom_derivatives import SymbolicZero


@jax.custom_vjp
def sin_times(x, y):
    return jnp.sin(x) * y


def sin_times_fwd(x, y):
    return sin_times(x, y), (jnp.cos(x), jnp.sin(x), y)


def sin_times_bwd(residuals, dy):
    cos_x, sin_x, y = residuals
    return cos_x * dy * y, sin_x * dy


sin_times.defvjp(sin_times_fwd, sin_times_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply(f, x):
    return f(x)


apply.defvjp(lambda f, x: (f(x), x), lambda f, x, dy: jax.vjp(f, x)[1](dy))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def reduce(x, how="mean"):
    return {"mean": jnp.mean, "sum": jnp.sum}[how](x * x)


def reduce_bwd(how, x, dy):
    return (2 * x * (dy / x.size if how == "mean" else dy),)


reduce.defvjp(lambda x, how: (reduce(x, how), x), reduce_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1, 3))
def scaled_difference(x, p, y, scale=1.0):
    """Static and differentiated arguments in turn."""
    return scale * (x - y) ** p


scaled_difference.defvjp(
    lambda x, p, y, scale: (scaled_difference(x, p, y, scale), x - y),
    lambda p, scale, d, dz: (
        scale * p * d ** (p - 1) * dz,
        -scale * p * d ** (p - 1) * dz,
    ),
)


@jax.custom_vjp
def swish(x, beta):
    return x * jax.nn.sigmoid(beta * x)


def swish_bwd(residuals, dy):
    x, beta = residuals
    s = jax.nn.sigmoid(beta * x)
    slope = x * s * (1 - s) * dy
    dbeta = (slope * x).sum()
    return dy * s + beta * slope, dbeta.astype(jnp.asarray(beta).dtype)


swish.defvjp(lambda x, beta: (swish(x, beta), (x, beta)), swish_bwd)


@jax.custom_vjp
def ignores_second(x, unused):
    return jnp.exp(-x * x)


def ignores_second_fwd(x, unused):
    y = jnp.exp(-x * x)
    return y, (x, y, unused)


def ignores_second_bwd(residuals, dy):
    x, y, unused = residuals
    return -2 * x * y * dy, jax.tree.map(jnp.zeros_like, unused)


ignores_second.defvjp(ignores_second_fwd, ignores_second_bwd)


@jax.custom_vjp
def float_mask(x, mask):
    return jnp.where(mask > 0, x, 0)


float_mask.defvjp(
    lambda x, mask: (float_mask(x, mask), mask > 0),
    lambda keep, dy: (jnp.where(keep, dy, 0), None),
)


@jax.custom_vjp
def optional_bias(x, w, bias=None):
    y = x @ w
    return y if bias is None else y + bias


def optional_bias_fwd(x, w, bias):
    return optional_bias(x, w, bias), (x, w, bias)


def optional_bias_bwd(residuals, dy):
    x, w, bias = residuals
    return dy @ w.T, x.T @ dy, None if bias is None else dy.sum(0)


optional_bias.defvjp(optional_bias_fwd, optional_bias_bwd)


@jax.custom_vjp
def lazy_matmul(a, b):
    return a @ b


def lazy_matmul_fwd(a, b):
    """Keeps of each side only what the gradient of the other needs."""
    saved = b.value if a.perturbed else None, a.value if b.perturbed else None
    return a.value @ b.value, saved


def lazy_matmul_bwd(residuals, dy):
    b, a = residuals
    if isinstance(dy, SymbolicZero):
        return None, None
    return None if b is None else dy @ b.T, None if a is None else a.T @ dy


lazy_matmul.defvjp(lazy_matmul_fwd, lazy_matmul_bwd, symbolic_zeros=True)


@jax.custom_vjp
def polar(x, y):
    return jnp.sqrt(x * x + y * y), jnp.arctan2(y, x)


def polar_fwd(x, y):
    x, y = x.value, y.value
    r, angle = polar.__wrapped__(x, y)
    return (r, angle), (x, y, r)


def polar_bwd(residuals, cotangents):
    x, y, r = residuals
    dr, dangle = (
        jnp.zeros(c.shape, c.dtype) if isinstance(c, SymbolicZero) else c for c in cotangents
    )
    return x / r * dr - y / (r * r) * dangle, y / r * dr + x / (r * r) * dangle


polar.defvjp(polar_fwd, polar_bwd, symbolic_zeros=True)


def gelu_layer(x, w, b):
    """A plain function: both rules are inside it."""
    return gelu(affine(x, w, b))


@jax.custom_vjp
def weighted_norms(xs, weights):
    """A list of arrays and a dict of scalars."""
    return sum(weights[name] * (x * x).sum() for name, x in zip("ab", xs, strict=True))


def weighted_norms_bwd(residuals, dy):
    xs, weights = residuals
    dxs = [2 * dy * weights[name] * x for name, x in zip("ab", xs, strict=True)]
    return dxs, {name: dy * (x * x).sum() for name, x in zip("ab", xs, strict=True)}


weighted_norms.defvjp(
    lambda xs, weights: (weighted_norms(xs, weights), (xs, weights)), weighted_norms_bwd
)


@jax.custom_vjp
def repeat_by_counts(x, counts, flip):
    return jnp.where(flip, -x, x) * counts.astype(x.dtype)


def repeat_by_counts_bwd(residuals, dy):
    counts, flip = residuals
    zeros = (np.zeros(a.shape, jax.dtypes.float0) for a in (counts, flip))
    return jnp.where(flip, -dy, dy) * counts.astype(dy.dtype), *zeros


repeat_by_counts.defvjp(
    lambda x, counts, flip: (repeat_by_counts(x, counts, flip), (counts, flip)),
    repeat_by_counts_bwd,
)


@jax.custom_vjp
def parts_and_count(x):
    """Several outputs, one of them an integer."""
    return jnp.maximum(x, 0), jnp.minimum(x, 0), (x > 0).sum()


def parts_and_count_bwd(x, cotangents):
    dp, dn, _ = cotangents
    return (jnp.where(x > 0, dp, jnp.where(x < 0, dn, (dp + dn) / 2)),)


parts_and_count.defvjp(lambda x: (parts_and_count(x), x), parts_and_count_bwd)


@jax.custom_vjp
def jitted_inside(x, y):
    return x * jnp.exp(-y)


@jax.jit
def jitted_inside_fwd(x, y):
    e = jnp.exp(-y)
    return x * e, (x, e)


@jax.jit
def jitted_inside_bwd(residuals, dz):
    x, e = residuals
    return dz * e, -dz * x * e


jitted_inside.defvjp(jitted_inside_fwd, jitted_inside_bwd)


def make_scale(factors):
    """A rule that closes over a constant."""

    @jax.custom_vjp
    def scale(x):
        return x * factors.astype(x.dtype)

    scale.defvjp(lambda x: (scale(x), None), lambda _, dy: (dy * factors.astype(dy.dtype),))
    return scale


@jax.custom_vjp
def dot(x, y):
    return jnp.dot(x, y)


dot.defvjp(lambda x, y: (jnp.dot(x, y), (x, y)), lambda res, dz: (dz * res[1], dz * res[0]))


class Cubic:
    """A rule that is a static method, called from a bound one."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * self.cube(x)

    @staticmethod
    @jax.custom_vjp
    def cube(x):
        return x * x * x


Cubic.cube.defvjp(lambda x: (x * x * x, x), lambda x, dy: (3 * x * x * dy,))


def draw_scalar(rng, dtype):
    x = values(rng, sizes(rng, 2), dtype, "unit ties")
    return (x, float(rng.choice([0.5, 1.0, 1.7]))), {}


def draw_unused(rng, dtype):
    unused = {"a": values(rng, sizes(rng, 2), dtype), "b": values(rng, (), dtype)}
    return (values(rng, sizes(rng, 2), dtype, "unit ties"), unused), {}


def draw_optional(rng, dtype):
    n, k, m = sizes(rng, 3)
    xs = values(rng, (n, k), dtype), values(rng, (k, m), dtype, "unit ties")
    return xs, {"bias": values(rng, (m,), dtype)} if rng.random() < 0.5 else {}


def draw_product(rng, dtype):
    n, k, m = sizes(rng, 3)
    return (values(rng, (n, k), dtype, "unit ties"), values(rng, (k, m), dtype)), {}


def draw_list(rng, dtype):
    weights = {name: values(rng, (), dtype) for name in "ab"}
    return ([values(rng, sizes(rng, rank), dtype) for rank in (1, 2)], weights), {}


def draw_counts(rng, dtype):
    shape = sizes(rng, 2)
    return (values(rng, shape, dtype), integers(rng, 4, shape), booleans(rng, shape)), {}


def draw_empty(rng, dtype):
    """An affine function with no rows, or with no inputs."""
    n, k, m = sizes(rng, 3)
    n, k = [(0, k), (n, 0)][rng.integers(2)]
    return tuple(values(rng, shape, dtype) for shape in ((n, k), (k, m), (m,))), {}


def draw_apply(rng, dtype):
    f = [jnp.sin, jnp.square, jax.nn.softplus][rng.integers(3)]
    return (f, values(rng, sizes(rng, 2), dtype)), {}


def draw_vmapped(rng, dtype):
    n, m = sizes(rng, 2)
    return (values(rng, (n, m), dtype, "unit ten ties"), values(rng, (m,), dtype)), {}


UNIT = "unit ties"

FORMS = [
    Right("fwd calls the rule itself", sin_times, arrays(2, (0, 4))),
    Right("a static callable", apply, draw_apply),
    Right("a static string, by default", reduce, arrays(1, (0, 3))),
    Right("a static string, given", reduce, arrays(1, (0, 3), how="sum")),
    Right(
        "static and other arguments in turn",
        scaled_difference,
        lambda rng, dtype: (
            (*(a := arrays(2, (1, 3), UNIT)(rng, dtype)[0])[:1], 2, a[1]),
            {"scale": 0.5},
        ),
    ),
    Right("a Python float as argument", swish, draw_scalar, WIDE),
    Right("zeros for an unused pytree", ignores_second, draw_unused),
    Right("None for a float mask", float_mask, arrays(2, (0, 3), UNIT)),
    Right("an optional argument", optional_bias, draw_optional),
    Right("symbolic zeros, perturbed only", lazy_matmul, draw_product),
    Right("symbolic zeros, two outputs", polar, arrays(2, (0, 3), "positive"), WIDE),
    Right("jit of a rule", jax.jit(layer_norm), draw_norm(2, "unit ten ties")),
    Right("partial of a rule", partial(leaky_relu, slope=0.3), arrays()),
    Right("a function that calls two rules", gelu_layer, draw_affine, WIDE),
    Right("remat of a rule", jax.checkpoint(affine), draw_affine),
    Right("vmap of a rule", jax.vmap(dot, (0, None)), draw_vmapped),
    Right("a list and a dict", weighted_norms, draw_list),
    Right("float0 for integers and booleans", repeat_by_counts, draw_counts),
    Right("several outputs, one an integer", parts_and_count, arrays()),
    Right("fwd and bwd under jit", jitted_inside, arrays(2, (0, 3), UNIT)),
    Right(
        "a closure over a constant",
        make_scale(np.float32([[1], [-2], [0.5]])),
        lambda rng, dtype: ((values(rng, (*sizes(rng, 1), 3, 2), dtype),), {}),
    ),
    Right("a static method", Cubic(0.5), arrays(1, (0, 3), "unit ties")),
    Right("empty arrays", affine, draw_empty),
]
