"""Learned position embeddings."""

from typing import Any

import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_int, check_key, check_tree
from funcnet.layers._params import check_initializers, check_params, initialize, last_axis
from funcnet.layers.base import Layer, check_none
from funcnet.layers.embedding import SMALL


def Positions(
    length: int,
    *,
    cache: bool = False,
    w_init: initializers.Initializer = SMALL,
) -> Layer:
    """Adds a learned vector to each position of a sequence, y_t = x_t + w_t.

    Params: {"w": (length, c)} in the dtype of x (..., T, c).
    State: none; with a cache {"length": ()}, the number of positions of earlier calls, int32.

    Args:
      length: The largest number of positions, at least 1.
      cache: Whether positions continue from one call to the next, as in `MultiHeadAttention` with a
        cache. From position `length` on, y is then nan.
      w_init: Initial vectors; the default has standard deviation 0.02.

    Raises:
      ValueError: If length is less than 1; in `init` and `apply`, if x has more than `length`
        positions or no time axis; in `apply`, if params do not have the shape above.
      TypeError: If length is not an integer or cache is not a boolean; in `init`, if x does not
        have a floating dtype.

    Reference: Gehring et al., 2017, section 3.1, arXiv:1705.03122.

    >>> Positions(1024)
    Positions(1024)
    """
    length = check_int("Positions", "length", length, at_least=1)
    check_bool("Positions", "cache", cache)
    check_initializers("Positions", w_init=w_init)
    name = f"Positions({length}{', cache=True' if cache else ''})"

    def shape_of(x: Any) -> tuple[int, int]:
        c = last_axis(name, x)
        if len(x.shape) < 2 or x.shape[-2] > length:
            raise ValueError(
                f"{name}: x must have shape (..., T, c) with T of at most {length}, got {x.shape}"
            )
        return length, c

    def init(key, x):
        shape = shape_of(x)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(f"{name}: x must be of a floating dtype, got {x.dtype}")
        check_key(name, key)
        state = {"length": jnp.zeros((), jnp.int32)} if cache else ()
        return {"w": initialize(name, "w_init", w_init, key, shape, x.dtype)}, state

    def apply(params, state, x, *, key=None, train=False):
        del key, train
        check_params(name, params, {"w": shape_of(x)}, x)
        places = jnp.arange(x.shape[-2], dtype=jnp.int32)
        if not cache:
            check_none(name, "state", state)
            return x + ops.embedding(places, params["w"]), state
        check_tree(name, "state", state, "init", {"length": jnp.zeros(())})
        past = state["length"]
        return x + ops.embedding(past + places, params["w"]), {"length": past + x.shape[-2]}

    return Layer(init, apply, name)
