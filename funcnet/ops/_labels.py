"""Labels in their two forms, one number per class or the index of one class, and their masks."""

from typing import Any

import jax
import jax.numpy as jnp

from funcnet._arguments import check_real
from funcnet._arrays import explicit_sharding
from funcnet.ops._masks import check_mask, keep
from funcnet.ops._types import AnyArray


def check_classes(f: str, name: str, y: jax.Array) -> None:
    """Raises a ValueError unless y has a last axis that is not empty."""
    if y.ndim == 0 or y.shape[-1] == 0:
        raise ValueError(f"{f}: {name} must have shape (..., C) with C > 0, got {y.shape}")


def check_same(f: str, y: jax.Array, t: jax.Array, name: str = "y") -> None:
    """Raises a ValueError unless y has classes and t has the shape of y."""
    check_classes(f, name, y)
    check_real(f, "t", t)
    if y.shape != t.shape:
        raise ValueError(f"{f}: t must have the shape of {name}, {y.shape}, got {t.shape}")


def is_index(f: str, name: str, y: jax.Array, t: jax.Array) -> bool:
    """Whether t holds class indices; otherwise it holds one number per class of y."""
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


def visible(
    f: str, x: jax.Array, labels: jax.Array, where: jax.Array | None, ignore: int | None = None
) -> jax.Array | None:
    """The mask of what counts, of shape (..., C) or (..., 1), or None if everything does.

    Args:
      f: The name of the loss.
      x: One number per class, shape (..., C).
      labels: Labels of x in one of the two forms.
      where: Booleans for each example or each class; as in Optax, the number of axes decides which.
      ignore: The class index that does not count.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If where has neither shape, or labels that are not class indices have an `ignore`.
    """
    mask = None
    if where is not None:
        check_mask(f, where)
        mask = where if where.ndim == x.ndim else where[..., None]
        fits = mask.ndim == x.ndim
        if not fits or any(m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)):
            raise ValueError(
                f"{f}: where must have shape {x.shape[:-1]} or {x.shape}, or 1 in place of a size, "
                f"got {where.shape}"
            )
    if ignore is None:
        return mask
    if labels.shape == x.shape:
        raise ValueError(f"{f}: ignore is for class indices, got labels of shape {labels.shape}")
    counts = not_ignored(labels, ignore)[..., None]
    return counts if mask is None else mask & counts


def not_ignored(labels: AnyArray, ignore: int | None) -> jax.Array:
    """Whether each label differs from `ignore`, which may be beyond the range of the dtype."""
    info = jnp.iinfo(labels.dtype)
    if ignore is None or not info.min <= ignore <= info.max:
        return jnp.ones(labels.shape, bool)
    return labels != jnp.asarray(ignore, labels.dtype)


def is_per_example(mask: jax.Array | None) -> bool:
    """Whether all classes of an example count, or none of them."""
    return mask is None or mask.shape[-1] == 1


def keep_examples(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """Replaces x, shape (...), by 0 in the examples of which no class counts."""
    return x if mask is None else keep(mask.any(-1), x)


def dense(labels: jax.Array, like: jax.Array) -> jax.Array:
    """The labels as one number per class, in the dtype and shape of `like`.

    A class index becomes one-hot; the row is nan if the index is out of range.
    """
    if labels.shape == like.shape:
        return labels.astype(like.dtype)
    hot = one_hot(labels, like.shape[-1]).astype(like.dtype)
    return jnp.where(is_class(labels, like.shape[-1])[..., None], hot, jnp.nan)


def check_class_weights(f: str, x: jax.Array, weights: jax.Array | None) -> None:
    """Raises a ValueError unless there is one weight per class of x."""
    if weights is not None and weights.shape != x.shape[-1:]:
        raise ValueError(f"{f}: class_weights must have shape {x.shape[-1:]}, got {weights.shape}")


def weighted(t: jax.Array, weights: Any, mask: jax.Array | None) -> jax.Array:
    """The product w ⊙ t for the classes that count; t if there are no weights."""
    if weights is None:
        return t
    return keep(mask, jnp.expand_dims(weights.astype(t.dtype), range(t.ndim - 1))) * t


def by_class(x: jax.Array) -> jax.Array:
    """The sum of x, shape (..., C), over all examples."""
    return x.sum(tuple(range(x.ndim - 1)))


def _wide(index: jax.Array) -> jax.Array:
    """Converts the index to a dtype that can hold the number of classes."""
    return index if jnp.iinfo(index.dtype).bits >= 32 else index.astype(jnp.int32)


def is_class(index: jax.Array, classes: int) -> jax.Array:
    """Whether each index is in [0, classes)."""
    t = _wide(index)
    return (t >= 0) & (t < classes)


def place(index: jax.Array, classes: int) -> jax.Array:
    """The index, or `classes` if it is out of range: nothing is read or written there."""
    return jnp.where(is_class(index, classes), _wide(index), classes).astype(jnp.int32)


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """The element x_t of each row, shape (...); nan where t is out of range."""
    where = place(index, x.shape[-1])[..., None]
    return jnp.take_along_axis(x, where, axis=-1, mode="fill").squeeze(-1)


def one_hot(index: jax.Array, classes: int) -> jax.Array:
    """The mask of class t in each row, shape (..., classes); all False where t is out of range."""
    t = _wide(index)[..., None]
    return t == jax.lax.broadcasted_iota(t.dtype, (1,) * index.ndim + (classes,), index.ndim)


def put_by_mask(x: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """Replaces the element x_t of each row by `value`, which has shape (...)."""
    return jnp.where(one_hot(index, x.shape[-1]), value[..., None], x)


def put(x: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """Does the same as `put_by_mask`, but faster on a CPU.

    A CPU writes few elements faster than it compares all of them. Other devices fuse the comparison
    into the loop that computes x. Autodiff of `put` is slow.
    """
    if explicit_sharding(x) is not None:
        return put_by_mask(x, index, value)

    def write(x, t, value):
        rows = [jax.lax.broadcasted_iota(jnp.int32, t.shape, i) for i in range(t.ndim)]
        return x.at[(*rows, place(t, x.shape[-1]))].set(value)

    return jax.lax.platform_dependent(x, index, value, cpu=write, default=put_by_mask)


def at_least_if_zero(x: jax.Array, t: jax.Array) -> jax.Array:
    """Replaces −∞ in x by the least finite number where t = 0, so that 0 · log 0 = 0.

    The lower bound, which is −∞ where t ≠ 0, is computed by arithmetic: XLA:CPU fuses arithmetic
    into a sum, but not a comparison.
    """
    most = float(jnp.finfo(t.dtype).max)
    return jnp.maximum(x, -most * jnp.ceil(jnp.abs(t)) - most)


def above_zero_if_zero(y: jax.Array, t: jax.Array) -> jax.Array:
    """Raises y to slightly above 0 where t = 0, so that t / y and t / y² are 0 there.

    The code avoids a comparison, because XLA:CPU would then run this pass together with the forward
    pass, and the two together take longer. It also avoids |t| itself, because XLA would keep that
    of the forward pass for this one.
    """
    tiny, most = (float(getattr(jnp.finfo(t.dtype), name)) for name in ("tiny", "max"))
    t = jnp.clip(jax.lax.stop_gradient(t), -1, 1)
    return jnp.maximum(y, tiny**0.5 - jnp.abs(most * t))


def finite_if_zero(x: jax.Array, dl: jax.Array) -> jax.Array:
    """Replaces ±∞ in x by ± the largest finite number where dL = 0, so that dL x is 0 there."""
    most = float(jnp.finfo(x.dtype).max)
    return jnp.where(dl == 0, jnp.clip(x, -most, most), x)


def label_cotangent(t: jax.Array, dt: jax.Array) -> jax.Array | None:
    """The cotangent dt in the dtype of the labels t, or None if that dtype is not floating."""
    return dt.astype(t.dtype) if jnp.issubdtype(t.dtype, jnp.inexact) else None
