"""The embedding layer."""

from typing import Any

import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet._arguments import check_dtype, check_int, check_key
from funcnet.layers._params import check_initializers, check_params, initialize, shape_of
from funcnet.layers.base import Layer, stateless

SMALL = initializers.normal(0.02)


def Embedding(
    vocabulary: int,
    width: int,
    *,
    dtype: Any = jnp.float32,
    padding: int | None = None,
    w_init: initializers.Initializer = SMALL,
) -> Layer:
    """A table with one vector per id: `funcnet.ops.embedding` with its parameters.

    Params: {"w": (vocabulary, width)}. State: none.

    Args:
      vocabulary: The number of ids, at least 1.
      width: The length of a vector, at least 1.
      dtype: The dtype of the table, and therefore of the layers that follow.
      padding: An id that only fills gaps, or None: its vector is 0 at first and has no gradient. It
        may count from the end.
      w_init: Initial vectors; the default has standard deviation 0.02.

    Raises:
      ValueError: If vocabulary or width is less than 1, or padding is no id; in `apply`, if params
        do not have the shape above.
      TypeError: If vocabulary, width or padding is not an integer, or x does not have an integer
        dtype.

    >>> Embedding(1000, 64)
    Embedding(1000, 64)
    """
    vocabulary = check_int("Embedding", "vocabulary", vocabulary, at_least=1)
    width = check_int("Embedding", "width", width, at_least=1)
    check_initializers("Embedding", w_init=w_init)
    dtype = check_dtype("Embedding", "dtype", dtype)
    if padding is not None:
        padding = check_int("Embedding", "padding", padding)
        if not -vocabulary <= padding < vocabulary:
            raise ValueError(
                f"Embedding: padding must be from {-vocabulary} to {vocabulary - 1}, got {padding}"
            )
    name = f"Embedding({vocabulary}, {width})"
    shape = vocabulary, width

    def init(key, x):
        shape_of(name, x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"{name}: x must be of an integer dtype, got {x.dtype}")
        check_key(name, key)
        w = initialize(name, "w_init", w_init, key, shape, dtype)
        return {"w": w if padding is None else w.at[padding].set(0)}

    def f(params, x):
        check_params(name, params, {"w": shape})
        return ops.embedding(x, params["w"], padding=padding)

    return stateless(f, init, name)
