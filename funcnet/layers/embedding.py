"""Embedding as a layer."""

from typing import Any

import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet._arguments import check_int, check_key
from funcnet.layers._params import check_functions, check_params
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
      ValueError: If vocabulary or width is less than 1; from `apply`, if params do not fit.
      TypeError: If one of them is no integer; if x is not of an integer dtype.

    >>> Embedding(1000, 64)
    Embedding(1000, 64)
    """
    vocabulary = check_int("Embedding", "vocabulary", vocabulary, at_least=1)
    width = check_int("Embedding", "width", width, at_least=1)
    check_functions("Embedding", w_init=w_init)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"Embedding: dtype must be a floating dtype, got {jnp.dtype(dtype)}")
    name = f"Embedding({vocabulary}, {width})"
    shape = vocabulary, width

    def init(key, x):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"{name}: x must be of an integer dtype, got {x.dtype}")
        check_key(name, key)
        return {"w": w_init(key, shape, dtype)}

    def f(params, x):
        check_params(name, params, {"w": shape})
        return ops.embedding(x, params["w"])

    return stateless(f, init, name)
