"""Tiles of the attention scores: their layout, and which keys the queries of a tile see."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._arrays import widen


class Plan(NamedTuple):
    """How a platform computes tiles.

    narrow: Whether products take operands in bfloat16, if the arguments are, and accumulate in
      float32. Those of float16 are float32 everywhere: dy/s would underflow.
    """

    queries: int  # in a tile, at most
    keys: int
    narrow: bool


# The largest tile is large enough for fast products. On a CPU the tile of one head stays in the
# cache; on a GPU it makes up for the launches of a tile.
ON_CPU = Plan(256, 512, narrow=False)
ON_TPU = Plan(512, 512, narrow=False)
ON_GPU = Plan(1024, 1024, narrow=True)


def by_platform(f: Any, *args: Any, kernel: Any = None) -> Any:
    """`f(plan, *args)` with the plan of the platform; the first two of args are q and k.

    If `kernel` is given, it is `kernel(*args)` on an NVIDIA GPU.
    """
    t, u = (x.shape[-3] for x in args[:2])
    if t <= ON_CPU.queries and u <= ON_CPU.keys and args[0].dtype != jnp.bfloat16:
        return f(ON_CPU, *args)  # it is the same everywhere
    run = lambda plan: functools.partial(f, plan)
    own = {"cpu": run(ON_CPU), "tpu": run(ON_TPU)} | ({"cuda": kernel} if kernel else {})
    return jax.lax.platform_dependent(*args, **own, default=run(ON_GPU))


class Tiles(NamedTuple):
    """T queries by U keys, cut into tiles of a fixed size."""

    t: int  # T
    u: int  # U
    block: tuple[int, int]  # numbers of queries and keys in a tile
    counts: tuple[int, int]  # numbers of blocks of queries and of keys
    span: tuple[int | None, int | None]  # numbers of earlier and later keys that a query sees

    @property
    def padded(self) -> tuple[int, int]:
        """The padded numbers of queries and keys, at least T and U."""
        return self.block[0] * self.counts[0], self.block[1] * self.counts[1]

    @property
    def visible(self) -> np.ndarray:
        """The pairs (block of queries, block of keys) in which some query sees some key."""
        (bt, bu), (before, after), shift = self.block, self.span, self.u - self.t
        first = lambda i: 0 if before is None else i * bt + shift - before
        last = lambda i: self.u if after is None else min((i + 1) * bt, self.t) - 1 + shift + after
        pairs = [
            (i, j)
            for i in range(self.counts[0])
            for j in range(self.counts[1])
            if first(i) < (j + 1) * bu and j * bu <= last(i)
        ]
        return np.array(pairs, np.int32).reshape(-1, 2)


def tiles(t: int, u: int, span: tuple[int | None, int | None], plan: Plan) -> Tiles:
    """Chooses blocks of equal size that need little padding; a span without effect is None."""
    before, after = span
    before = None if before is None or before >= u - 1 else before
    after = None if after is None or after >= t - 1 else after  # the last query sees all
    count_t = max(1, -(-t // plan.queries))
    count_u = max(1, -(-u // plan.keys))
    block = (-(-t // count_t), -(-u // count_u))
    return Tiles(t, u, block, (count_t, count_u), (before, after))


def over_tiles(tiles: Tiles, visit: Any, merge: Any, start: Any) -> Any:
    """Visits the visible tiles in turn and merges the results; a single tile needs no loop.

    Args:
      tiles: The tiles.
      visit: (i, j) ↦ result of the tile.
      merge: (state, result, i, j) ↦ state.
      start: The state before any tile; its arrays have the padded lengths. If there is only one
        tile, its result is the final state.
    """
    pairs = tiles.visible
    if tiles.counts == (1, 1) and len(pairs) == 1:
        return visit(0, 0)
    step = lambda state, ij: (merge(state, visit(ij[0], ij[1]), ij[0], ij[1]), None)
    return jax.lax.scan(step, start, jnp.asarray(pairs))[0]


def padded(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Pads the end of an axis of `x` with zeros (or False) up to `size`."""
    if (missing := size - x.shape[axis]) == 0:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


def take(x: jax.Array, block: Any, size: int, axis: int) -> jax.Array:
    """One block of `x` along an axis."""
    return jax.lax.dynamic_slice_in_dim(x, block * size, size, axis)


def put(x: jax.Array, part: jax.Array, block: Any, size: int, axis: int) -> jax.Array:
    """`x` with one block replaced."""
    return jax.lax.dynamic_update_slice_in_dim(x, part, block * size, axis)


def take_tile(x: jax.Array, i: Any, j: Any, block: tuple[int, int]) -> jax.Array:
    """A tile of `x` (..., T or 1, U or 1); an axis of length 1 stands for all queries or keys."""
    part = take(x, i, block[0], -2) if x.shape[-2] > 1 else x
    return take(part, j, block[1], -1) if x.shape[-1] > 1 else part


def add_tile(x: jax.Array, part: jax.Array, i: Any, j: Any, block: tuple[int, int]) -> jax.Array:
    """`x` with `part` added to the tile that `take_tile` takes."""
    axes = zip((i, j), block, x.shape[-2:], strict=True)
    first = np.int32(0)
    start = [first] * (x.ndim - 2) + [n * size if length > 1 else first for n, size, length in axes]
    return jax.lax.dynamic_update_slice(x, take_tile(x, i, j, block) + part, start)


def zeros(like: jax.Array, width: int) -> jax.Array:
    """Zeros (..., width) for `like` (..., c), with its sharding and varying mesh axes."""
    like = widen(like[..., :1])
    return jnp.where(False, like, jnp.zeros((1,) * (like.ndim - 1) + (width,), like.dtype))


def finite(x: jax.Array) -> jax.Array:
    """Replaces nan and infinity in `x` by 0."""
    return jnp.where(jnp.isfinite(x), x, 0)


def not_finite(x: jax.Array, by: int | float = 1) -> jax.Array:
    """Whether any element of `by` times x along the last axis is nan or infinite.

    If so, the dot product with zeros is nan. XLA:CPU computes that product several times faster
    than it searches an axis, if a barrier hides the zeros. For a narrow dtype the axis is searched,
    because the product would copy x to a wider dtype.
    """
    x = x if by == 1 else widen(x) * by
    if x.dtype.itemsize < 4:
        return ~jnp.isfinite(x).all(-1)
    zeros = jax.lax.optimization_barrier(jnp.zeros(x.shape[-1], x.dtype))
    return jnp.isnan(jnp.einsum("...c,c->...", x, zeros))


def by_pairs(x: jax.Array, tiles: Tiles, heads: tuple[int, int], rank: int) -> jax.Array:
    """A mask or bias for (..., H, T, U) as (..., K, g, T, U), padded to whole tiles; H = K g.

    The result has `rank` axes; those of length 1 stay so.
    """
    *batch, h, t, u = (1,) * (rank - 1 - x.ndim) + x.shape
    x = x.reshape(*batch, *(heads if h > 1 else (1, 1)), t, u)
    x = padded(x, tiles.padded[0], -2) if t > 1 else x
    return padded(x, tiles.padded[1], -1) if u > 1 else x


def visibility(
    tiles: Tiles,
    mask: jax.Array | None,
    lengths: jax.Array | None,
    heads: tuple[int, int],
    rank: int,
) -> Any:
    """The function (i, j) ↦ which keys the queries of a tile see, or None if they see all.

    Its result has `rank` axes and broadcasts to (..., K, g, t, u).
    """
    (bt, bu), (before, after) = tiles.block, tiles.span
    mask = None if mask is None else by_pairs(mask, tiles, heads, rank)

    def at(i: Any, j: Any) -> jax.Array | None:
        def query(offset: int) -> jax.Array:
            places = i * bt + jnp.arange(bt, dtype=jnp.int32) + (tiles.u - tiles.t + offset)
            return jnp.expand_dims(places, (*range(rank - 2), rank - 1))

        key = jnp.expand_dims(j * bu + jnp.arange(bu, dtype=jnp.int32), tuple(range(rank - 1)))
        conditions = []
        if tiles.u != tiles.padded[1]:
            conditions.append(key < tiles.u)
        if after is not None:
            conditions.append(key <= query(after))
        if before is not None:
            conditions.append(key >= query(-before))
        if lengths is not None:
            dtype = lengths.dtype if lengths.dtype.itemsize >= 4 else jnp.int32
            ends = lengths.astype(dtype)[..., None, None, None, None]
            conditions.append(key.astype(dtype) < ends)
        if mask is not None:
            conditions.append(take_tile(mask, i, j, tiles.block))
        return functools.reduce(jnp.logical_and, conditions) if conditions else None

    return at
