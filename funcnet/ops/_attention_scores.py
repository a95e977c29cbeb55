"""The scores of one tile of attention: scale, soft cap, bias, and which pairs count."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from funcnet._arrays import batches_alike, placed_like, sum_to, wide_dtype, widen
from funcnet.ops._attention_arguments import Arrays, Options
from funcnet.ops._attention_tiles import (
    Plan,
    add_tile,
    by_pairs,
    finite,
    not_finite,
    padded,
    take,
    take_tile,
    tiles,
    visibility,
)
from funcnet.ops.activations import bell
from funcnet.ops.dropout import draw


class Scores:
    """The arguments, padded to whole tiles; axes K (heads of k) and g (query heads per K)."""

    def __init__(self, plan: Plan, arrays: Arrays, options: Options):
        q, k, v, mask, lengths, bias, self.dropout_key = arrays
        self.options, self.like_bias = options, bias
        self.heads = (k.shape[-2], q.shape[-2] // k.shape[-2])  # (K, g)
        self.tiles = tiles(q.shape[-3], k.shape[-3], options.span, plan)
        self.narrow = plan.narrow and q.dtype == jnp.bfloat16
        q, k, v = batches_alike((q, k, v), 3)
        self.scale = q.shape[-1] ** -0.5 if options.scale is None else options.scale
        length_t, length_u = self.tiles.padded
        self.q = padded(q, length_t, -3)
        self.k, self.v = padded(k, length_u, -3), padded(v, length_u, -3)
        self.sees = visibility(self.tiles, mask, lengths, self.heads, q.ndim + 1)
        self.bias = None if bias is None else by_pairs(bias, self.tiles, self.heads, q.ndim + 1)
        self.hides = any(x is not None for x in (*self.tiles.span, mask, lengths))
        self.clean = finite if self.hides else lambda x: x

    def product(self, axes: str, x: Array, y: Array) -> Array:
        """A product in the plan's precision: `einsum`, of operands in bfloat16 or as they are."""
        if self.narrow:
            x, y = (z.astype(jnp.bfloat16) for z in (x, y))
            return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)
        return jnp.einsum(axes, x, y)

    def by_head(self, x: Array) -> Array:
        """Reshapes a tile (..., t, H, c) to (..., K, g, t, c); all queries would be copied."""
        return jnp.moveaxis(x.reshape(*x.shape[:-2], *self.heads, x.shape[-1]), -4, -2)

    def at(self, i: Any, j: Any, flaws: tuple[Array, ...]) -> tuple[Array, Array, Any, Any]:
        """α q (..., K, g, t, d), Sᵀ (..., K, u, g, t), which pairs count, and the cap's slope.

        At masked keys S is the lowest finite number, whose exp is 0. S is transposed so that dk and
        dv are products without a transposition, which are the fast ones. Forward and backward pass
        compute the same S to the last bit. `flaws` are nan for the queries (..., K, 1, g, T) and
        keys (..., K, U, 1, 1) that are not finite, and 0 for the others: S is nan there, unless it
        is masked.
        """
        bt, bu = self.tiles.block
        k = self.clean(jnp.swapaxes(widen(take(self.k, j, bu, -3)), -3, -2))
        q = self.clean(self.by_head(widen(take(self.q, i, bt, -3))) * self.scale)
        scores = self.product("...kud,...kgtd->...kugt", k, q)
        slope, cap = None, self.options.softcap
        if cap is not None:
            slope = 4 * bell(2 * scores / cap)  # 1 − tanh², without cancellation
            scores = cap * jnp.tanh(scores / cap)
        if self.bias is not None:
            scores = scores + _transposed(widen(take_tile(self.bias, i, j, self.tiles.block)))
        if (seen := self.sees(i, j)) is not None:
            for flaw, block in zip(flaws, ((i, bt, -1), (j, bu, -3)), strict=False):
                scores = scores + take(flaw, *block)
            seen = _transposed(seen)
            scores = jnp.where(seen, scores, lowest(scores))
            slope = slope if slope is None else jnp.where(seen, slope, 0)
        return q, scores, seen, slope

    def dropout(self, i: Any, j: Any, like: Array) -> Any:
        """The function that sets dropped weights of the tile to 0; `like` has their shape."""
        if not self.options.drops:
            return lambda x: x
        key = jax.random.fold_in(self.dropout_key, i * self.tiles.counts[1] + j)
        kept = placed_like(draw(key, self.options.dropout_rate, like.shape), like)
        return lambda x: jnp.where(kept, x, jnp.zeros_like(x))

    def of_bias(self, ds: Array, i: Any, j: Any) -> Array | None:
        """The sum of dSᵀ over the axes along which the tile of the bias was broadcast."""
        if self.bias is None:
            return None
        return sum_to(jnp.moveaxis(ds, -3, -1), take_tile(self.bias, i, j, self.tiles.block))

    def add_of_bias(self, total: Any, part: Any, i: Any, j: Any) -> Any:
        """Adds what `of_bias` returned for a tile to the cotangent of the padded bias."""
        return None if total is None else add_tile(total, part, i, j, self.tiles.block)

    def as_bias(self, dbias: Any) -> Any:
        """The cotangent of the padded bias, in the shape and dtype of the bias."""
        if (like := self.like_bias) is None:
            return None
        cut = [slice(n) for n in ((1, 1, *like.shape)[-2:])]
        return dbias[(..., *cut)].reshape(like.shape).astype(like.dtype)

    def flaws(self) -> tuple[Array, ...]:
        """Queries and keys with elements that are not finite; a value counts for its key."""
        if not self.hides:
            return ()
        by = max(1, abs(self.scale))  # α q or α k may be infinite where q and k are finite
        of_k = not_finite(self.k, by) | not_finite(self.v)
        of_q = self.by_head(not_finite(self.q, by)[..., None])[..., None, :, :, 0]
        dtype, of_k = wide_dtype(self.q.dtype), jnp.swapaxes(of_k, -2, -1)[..., None, None]
        return nan_where(of_q, dtype), nan_where(of_k, dtype)


def _transposed(tile: Array) -> Array:
    """A tile (..., K, g, t, u) in the order of Sᵀ, (..., K, u, g, t)."""
    return jnp.moveaxis(tile, -1, -3)


def nan_where(flaw: Array, dtype: Any) -> Array:
    """Returns nan where a query or key is not finite, else 0."""
    return jnp.where(flaw, jnp.nan, jnp.zeros((), dtype))


def lowest(x: Array) -> float:
    """The lowest finite number, in place of −∞, which `jax_debug_infs` would report."""
    return float(jnp.finfo(x.dtype).min)
