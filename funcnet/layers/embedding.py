"""Embedding as a layer."""

from typing import Any

import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet.layers.base import Layer, stateless

SMALL = initializers.normal(0.02)


def Embedding(
    vocabulary: int,
    width: int,
    *,
    dtype: Any = jnp.float32,
    w_init: initializers.Initializer = SMALL,
) -> Layer:
    """A vector for each id: `funcnet.ops.embedding` with its table.

    Params: {"w": (vocabulary, width)}. State: none.

    Args:
      vocabulary: The number of ids, at least 1.
      width: The length of a vector, at least 1.
      dtype: Of the table, and so of all that follows.
      w_init: Initial vectors; by default of standard deviation 0.02.

    Raises:
      ValueError: If vocabulary or width is less than 1.
      TypeError: From `init`, if x is not of an integer dtype.

    >>> Embedding(1000, 64)
    Embedding(1000, 64)
    """
    name = f"Embedding({vocabulary}, {width})"
    for what, value in (("vocabulary", vocabulary), ("width", width)):
        if value < 1:
            raise ValueError(f"Embedding: {what} must be at least 1, got {value}")

    def init(key, x):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"{name}: x must be of an integer dtype, got {x.dtype}")
        return {"w": w_init(key, (vocabulary, width), dtype)}

    return stateless(lambda p, x: ops.embedding(x, p["w"]), init, name)
