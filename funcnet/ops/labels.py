"""The two forms of labels: a number for each class, or the index of one class."""

import jax
import jax.numpy as jnp

from funcnet.ops.sharding import explicit_sharding


def is_index(f: str, y: jax.Array, t: jax.Array) -> bool:
    """Whether t holds class indices; else it holds a number for each class."""
    if y.ndim > 0 and t.shape == y.shape:
        return False
    if y.ndim > 0 and t.shape == y.shape[:-1] and jnp.issubdtype(t.dtype, jnp.integer):
        return True
    raise ValueError(
        f"{f}: labels must have shape {y.shape}, or {y.shape[:-1]} and an integer dtype, "
        f"got {t.shape} and {t.dtype}"
    )


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """The element x_t of each row, shape (...); nan where there is none."""
    return jnp.take_along_axis(x, index.astype(jnp.int32)[..., None], axis=-1).squeeze(-1)


def one_hot(index: jax.Array, classes: int) -> jax.Array:
    """The mask of x_t in each row, shape (..., classes); a negative t counts from the end."""
    t = index.astype(jnp.int32)[..., None]
    return jnp.where(t < 0, t + classes, t) == jnp.arange(classes, dtype=jnp.int32)


def put_by_mask(x: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """`x` with `value`, of shape (...), for the element x_t of each row."""
    return jnp.where(one_hot(index, x.shape[-1]), value[..., None], x)


def put(x: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """`put_by_mask`, but a CPU writes few elements faster than it compares all.

    Autodiff of it is slow. Other devices fuse the comparison into the loop that computes x.
    """
    if explicit_sharding(x) is not None:
        return put_by_mask(x, index, value)

    def write(x, t, value):
        rows = [jax.lax.broadcasted_iota(jnp.int32, t.shape, i) for i in range(t.ndim)]
        return x.at[(*rows, t.astype(jnp.int32))].set(value)

    return jax.lax.platform_dependent(x, index, value, cpu=write, default=put_by_mask)


def at_least_if_zero(x: jax.Array, t: jax.Array) -> jax.Array:
    """x, but −∞ is the least finite number where t = 0, so that t x is 0 there: 0 · log 0 = 0.

    A bound of −∞ where t ≠ 0, computed: XLA:CPU fuses that into a sum, but no comparison.
    """
    most = float(jnp.finfo(t.dtype).max)
    return jnp.maximum(x, -most * jnp.ceil(jnp.abs(t)) - most)


def above_zero_if_zero(y: jax.Array, t: jax.Array) -> jax.Array:
    """y, but a little above 0 where t = 0, so that t / y is 0 there, and t / y² too.

    Without a comparison: XLA:CPU would run the pass in which that stands beside the forward one,
    and both together take longer.
    """
    tiny, most = (float(getattr(jnp.finfo(t.dtype), name)) for name in ("tiny", "max"))
    return jnp.maximum(y, tiny**0.5 - (most * jax.lax.stop_gradient(t)) ** 2)


def label_cotangent(t: jax.Array, dt: jax.Array) -> jax.Array | None:
    """The cotangent dt in the dtype of the labels t; none if that is not a floating one."""
    return dt.astype(t.dtype) if jnp.issubdtype(t.dtype, jnp.inexact) else None
