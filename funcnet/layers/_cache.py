"""A cache of keys and values: what attention has seen in earlier calls, up to n positions.

Position p is in slot p mod n, so the cache holds the last n positions, and adding one overwrites
the oldest. Keys have their position embedding already, so their order does not matter.
"""

from typing import Any

import jax
import jax.numpy as jnp

Cache = dict[str, jax.Array]


def empty(batch: tuple[int, ...], n: int, heads: int, width: int, dtype: Any) -> Cache:
    """A cache for n positions that holds none: {"k", "v": (*batch, n, heads, width), "length"}.

    "length" is the number of positions so far, int32 of shape ().
    """
    k, v = jnp.zeros((2, *batch, n, heads, width), dtype)
    return {"k": k, "v": v, "length": jnp.zeros((), jnp.int32)}


def append(cache: Cache, k: jax.Array, v: jax.Array) -> tuple[Cache, jax.Array, jax.Array, Any]:
    """Adds T positions. Each of them sees itself and the n − 1 positions before it.

    Args:
      cache: As of `empty`.
      k: Keys of the new positions, shape (*batch, T, heads, width).
      v: Their values, of the same shape.

    Returns:
      The new cache; the keys and values to attend to; and which of them the new positions see, as
      arguments `lengths`, or `mask` and `window`, of `funcnet.ops.dot_product_attention`.
    """
    n, t, length = cache["k"].shape[-3], k.shape[-3], cache["length"]
    if t == 1:  # it takes the place of one that it does not see
        at = length % n
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, at, -3)
        k, v = put(cache["k"], k), put(cache["v"], v)
        lengths = jnp.broadcast_to(jnp.minimum(length + 1, n), k.shape[:-3])
        return {"k": k, "v": v, "length": length + 1}, k, v, {"lengths": lengths}
    in_order = lambda old, new: jnp.concatenate([jnp.roll(old, -length % n, -3), new], -3)
    k, v = in_order(cache["k"], k), in_order(cache["v"], v)
    filled = jnp.arange(n + t, dtype=jnp.int32) >= n - length  # key u is at length − n + u
    last = lambda x: jnp.roll(x[..., t:, :, :], (length + t) % n, -3)
    seen = {"mask": filled, "window": (n - 1, 0)}
    return {"k": last(k), "v": last(v), "length": length + t}, k, v, seen
