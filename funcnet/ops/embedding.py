"""Embedding: rows of a table."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from funcnet._arrays import explicit_sharding, widen
from funcnet.rule import rule


@rule(inexact=("w",))
def embedding(ids: jax.Array, w: jax.Array) -> jax.Array:
    """The rows of a table that ids name.

        y_i = w_(ids_i)

    An id from −V to −1 counts from the end, as in indexing. Any other id out of range gives a row
    of nan, which cannot be overlooked, and has no gradient.

    Args:
      ids: Integers of any shape (...), from −V to V − 1.
      w: w, shape (V, d).

    Returns:
      y, shape (..., d), with the dtype of w; integers are converted, as nan needs a float.

    Raises:
      ValueError: If ids are not integers, or w is not a matrix with rows.

    Reference: Bengio et al., 2003, A neural probabilistic language model, section 2, the mapping C.

    >>> embedding(jnp.array([2, 0, -1]), jnp.array([[1.0], [2.0], [3.0]])).ravel().tolist()
    [3.0, 1.0, 3.0]
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"embedding: ids must be integers, got {ids.dtype}")
    if w.ndim != 2 or w.shape[0] == 0:
        raise ValueError(f"embedding: w must have shape (V, d) with a row at least, got {w.shape}")
    rows = jnp.asarray(w).at[_wide(ids)]
    return rows.get(mode="fill", fill_value=jnp.nan, out_sharding=_of_rows(ids, w))


def _wide(ids: jax.Array) -> jax.Array:
    """The ids in a dtype in which V has room."""
    return jnp.asarray(ids, jnp.int32) if jnp.dtype(ids.dtype).itemsize < 4 else jnp.asarray(ids)


def _of_rows(ids: jax.Array, w: jax.Array) -> NamedSharding | None:
    """On a mesh with explicit axes: sharded as the axes of ids are, and then as the last of w."""
    of_ids, of_w = explicit_sharding(ids, w), explicit_sharding(w, ids)
    if of_ids is None or of_w is None:
        return None
    return NamedSharding(of_w.mesh, PartitionSpec(*of_ids.spec, of_w.spec[1]))


def embedding_fwd(ids, w):
    """Saves the arguments: nothing is copied."""
    return embedding.__wrapped__(ids, w), (ids, w)


def embedding_bwd(residuals, dy):
    """The cotangent of w.

    y_ij = w_kj where k = ids_i, so ∂y_ij/∂w_kj = 1 there and else 0:

        dw_kj = Σ_(i: ids_i = k) dy_ij.                                                       (1)

    A repeated id adds up. Narrow dtypes are added in float32, because one id may occur thousands of
    times, and a sum in bfloat16 stops to grow after 256 equal terms.
    """
    ids, w = residuals
    dw = jnp.zeros_like(widen(w)).at[_wide(ids)]
    dw = dw.add(widen(dy), mode="drop", out_sharding=explicit_sharding(w, ids, dy))  # (1)
    return None, dw.astype(w.dtype)


embedding.defvjp(embedding_fwd, embedding_bwd)
