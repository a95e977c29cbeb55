"""Embedding: lookup of rows of a table."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Inexact, Integer

from funcnet._arrays import explicit_sharding, widen
from funcnet.ops._types import AnyArray, Num
from funcnet.rule import rule


@rule(inexact=("w",))
def embedding(
    ids: Integer[ArrayLike, "*batch"],
    w: Num[AnyArray, "V d"],
    *,
    padding: int | None = None,
) -> Inexact[Array, "*batch d"]:
    """Looks up one row of a table per id.

        y_i = w_(ids_i)

    An id from −V to −1 counts from the end, as in indexing. Any other id out of range gives a row
    of nan, so that the error is noticed, and has no gradient.

    Args:
      ids: Integers of any shape (...), from −V to V − 1.
      w: The table, shape (V, d).
      padding: An id from −V to V − 1 that only fills gaps, or None. Its row has no gradient, so
        training does not change it. Static.

    Returns:
      y, shape (..., d), with the dtype of w; integers are converted to floats, because an integer
      cannot be nan.

    Raises:
      ValueError: If ids are not integers, w is not a matrix with rows, or padding is out of range.

    Reference: Bengio et al., 2003, A neural probabilistic language model, section 2, the mapping C.

    >>> embedding(jnp.array([2, 0, -1]), jnp.array([[1.0], [2.0], [3.0]])).ravel().tolist()
    [3.0, 1.0, 3.0]
    """
    ids, w = jnp.asarray(ids), jnp.asarray(w)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"embedding: ids must be integers, got {ids.dtype}")
    if w.ndim != 2 or w.shape[0] == 0:
        raise ValueError(f"embedding: w must have shape (V, d) with V > 0, got {w.shape}")
    rows = w.at[_wide(ids)]
    y = rows.get(mode="fill", fill_value=jnp.nan, out_sharding=_of_rows(ids, w))
    if padding is None:
        return y
    return jnp.where(_is_padding(ids, w, padding)[..., None], jax.lax.stop_gradient(y), y)


def _is_padding(ids: AnyArray, w: AnyArray, padding: int) -> Array:
    classes = len(w)
    if not -classes <= padding < classes:
        raise ValueError(
            f"embedding: padding must be from {-classes} to {classes - 1} for w {w.shape}, "
            f"got {padding}"
        )
    return _wide(ids) % classes == padding % classes


def _wide(ids: AnyArray) -> Array:
    """Converts the ids to a dtype that can hold V."""
    return jnp.asarray(ids, jnp.int32) if jnp.dtype(ids.dtype).itemsize < 4 else jnp.asarray(ids)


def _of_rows(ids: Array, w: Array) -> NamedSharding | None:
    """The sharding of y on a mesh with explicit axes, else None.

    Its leading axes are sharded like those of ids, and its last axis like the last axis of w.
    """
    of_ids, of_w = explicit_sharding(ids, w), explicit_sharding(w, ids)
    if of_ids is None or of_w is None:
        return None
    return NamedSharding(of_w.mesh, PartitionSpec(*of_ids.spec, of_w.spec[1]))


def embedding_fwd(ids, w, *, padding):
    """Saves the arguments, without a copy."""
    return embedding.__wrapped__(ids, w, padding=padding), (ids, w)


def embedding_bwd(residuals, dy, *, padding):
    """The cotangent of w.

    y_ij = w_kj for k = ids_i, so ∂y_ij/∂w_kj is 1 for k = ids_i and 0 otherwise:

        dw_kj = Σ_(i: ids_i = k) dy_ij.                                                       (1)

    The cotangents of a repeated id are summed. Narrow dtypes are summed in float32, because one id
    may occur thousands of times, and a sum in bfloat16 stops growing after 256 equal terms. The
    padding becomes an id out of range, which is dropped.
    """
    ids, w = residuals
    if padding is not None:
        ids = jnp.where(_is_padding(ids, w, padding), len(w), _wide(ids))
    is_narrow, placed = widen(w).dtype != w.dtype, explicit_sharding(w, ids, dy)
    if not is_narrow or placed is not None or math.prod(ids.shape) >= len(w):
        return None, _sums_in_a_table(ids, w, dy)  # (1)
    dw = jax.lax.platform_dependent(ids, w, dy, cpu=_sums_in_a_table, default=_sums_of_sorted)
    return None, dw  # (1)


def _sums_in_a_table(ids, w, dy):
    """Equation (1), in a table of at least float32."""
    dw = jnp.zeros_like(widen(w)).at[_wide(ids)]
    dw = dw.add(widen(dy), mode="drop", out_sharding=explicit_sharding(w, ids, dy))  # (1)
    return dw.astype(w.dtype)


def _sums_of_sorted(ids, w, dy):
    """Equation (1): the rows of dy in the order of their ids, of which equal ones are summed.

    A GPU or TPU then writes each row of the table once, in its own dtype, instead of reading and
    writing a wide table.
    """
    (classes, d), ids = w.shape, _wide(ids).reshape(-1)
    is_signed = jnp.issubdtype(ids.dtype, jnp.signedinteger)
    inside = (ids < classes) & (ids >= -classes if is_signed else True)
    ids = jnp.where(inside, ids % classes, classes).astype(jnp.int32)
    order = jnp.argsort(ids)
    ids, rows = ids[order], dy.reshape(-1, d)[order]
    n = len(ids)
    is_new = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])[:n]
    segment = jnp.cumsum(is_new) - 1
    sums = jax.ops.segment_sum(widen(rows), segment, n, indices_are_sorted=True)  # (1)
    unused = classes + jnp.arange(n, dtype=ids.dtype)  # all different, and dropped
    target = unused.at[segment].set(ids, indices_are_sorted=True)
    dw = jnp.zeros_like(w).at[target]
    return dw.set(sums.astype(w.dtype), mode="drop", unique_indices=True)


embedding.defvjp(embedding_fwd, embedding_bwd)
