"""The fully connected layer."""

import jax
import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet.layers.base import Layer, stateless


def Dense(
    units: int,
    *,
    bias: bool = True,
    w_init: initializers.Initializer = initializers.xavier,
    b_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """A fully connected layer, Y = X · W + b: `funcnet.ops.affine` with its parameters.

    Params: {"w": (n, units), "b": (units,)} in the dtype of x, where n is the last axis of x; no
    "b" without bias.
    State: none.

    Args:
      units: The number of neurons, at least 1.
      bias: Whether there is b.
      w_init: Initial weights; `funcnet.initializers.he` fits a layer that ReLU follows.
      b_init: Initial biases.

    Raises:
      ValueError: If units is less than 1; from `init`, if x is a scalar.
      TypeError: From `init`, if x is not of a floating dtype.

    >>> Dense(50)
    Dense(50)
    """
    if units < 1:
        raise ValueError(f"Dense: units must be at least 1, got {units}")

    name = f"Dense({units})" if bias else f"Dense({units}, bias=False)"

    def init(key, x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(f"{name}: x must be of a floating dtype, got {x.dtype}")
        if not x.shape:
            raise ValueError(f"{name}: x must have shape (..., n), got ()")
        w_key, b_key = jax.random.split(key)
        params = {"w": w_init(w_key, (x.shape[-1], units), x.dtype)}
        return params | ({"b": b_init(b_key, (units,), x.dtype)} if bias else {})

    return stateless(lambda p, x: ops.affine(x, p["w"], p.get("b")), init, name)
