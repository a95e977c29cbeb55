"""The two forms of labels: a number for each class, or the index of one class."""

import jax
import jax.numpy as jnp

from funcnet._arguments import check_real
from funcnet._arrays import explicit_sharding


def check_classes(f: str, name: str, y: jax.Array) -> None:
    """Raises a ValueError unless y has a last axis that is not empty."""
    if y.ndim == 0 or y.shape[-1] == 0:
        raise ValueError(f"{f}: {name} must have shape (..., C) with C > 0, got {y.shape}")


def is_index(f: str, name: str, y: jax.Array, t: jax.Array) -> bool:
    """Whether t holds class indices; else it holds a number for each class of y."""
    check_classes(f, name, y)
    check_real(f, "labels", t)
    if t.shape == y.shape:
        return False
    if t.shape == y.shape[:-1] and jnp.issubdtype(t.dtype, jnp.integer):
        return True
    raise ValueError(
        f"{f}: labels must have shape {y.shape}, or {y.shape[:-1]} and an integer dtype, "
        f"got {t.shape} and {t.dtype}"
    )


def _wide(index: jax.Array) -> jax.Array:
    """The index in a dtype in which the number of classes has room."""
    return index if jnp.iinfo(index.dtype).bits >= 32 else index.astype(jnp.int32)


def is_class(index: jax.Array, classes: int) -> jax.Array:
    """Whether each index is in [0, classes)."""
    t = _wide(index)
    return (t >= 0) & (t < classes)


def _place(index: jax.Array, classes: int) -> jax.Array:
    """The index; `classes`, where nothing is read or written, if it is out of range."""
    return jnp.where(is_class(index, classes), _wide(index), classes).astype(jnp.int32)


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """The element x_t of each row, shape (...); nan where there is none."""
    place = _place(index, x.shape[-1])[..., None]
    return jnp.take_along_axis(x, place, axis=-1, mode="fill").squeeze(-1)


def one_hot(index: jax.Array, classes: int) -> jax.Array:
    """The mask of x_t in each row, shape (..., classes); all False where there is none."""
    t = _wide(index)[..., None]
    return t == jax.lax.broadcasted_iota(t.dtype, (1,) * index.ndim + (classes,), index.ndim)


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
        return x.at[(*rows, _place(t, x.shape[-1]))].set(value)

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
    and both together take longer. Likewise |t| of the forward pass would be kept for this one.
    """
    tiny, most = (float(getattr(jnp.finfo(t.dtype), name)) for name in ("tiny", "max"))
    t = jnp.clip(jax.lax.stop_gradient(t), -1, 1)
    return jnp.maximum(y, tiny**0.5 - jnp.abs(most * t))


def finite_if_zero(x: jax.Array, dl: jax.Array) -> jax.Array:
    """x, but ±∞ is the largest finite number where dL = 0, so that dL x is 0 there."""
    most = float(jnp.finfo(x.dtype).max)
    return jnp.where(dl == 0, jnp.clip(x, -most, most), x)


def label_cotangent(t: jax.Array, dt: jax.Array) -> jax.Array | None:
    """The cotangent dt in the dtype of the labels t; none if that is not a floating one."""
    return dt.astype(t.dtype) if jnp.issubdtype(t.dtype, jnp.inexact) else None
