"""The fully connected layer."""

import jax
import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_int, check_key
from funcnet.layers._params import check_initializers, check_params, initialize, last_axis
from funcnet.layers.base import Layer, stateless


def Dense(
    units: int,
    *,
    bias: bool = True,
    w_init: initializers.Initializer = initializers.lecun_normal,
    b_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """A fully connected layer, Y = X · W + b: `funcnet.ops.affine` with its parameters.

    Params: {"w": (n, units), "b": (units,)} in the dtype of x, where n is the length of the last
    axis of x. There is no "b" if bias is False.
    State: none.

    Args:
      units: The number of neurons, at least 1.
      bias: Whether the layer has a bias.
      w_init: Initial weights. The default, which is also Flax's, keeps the variance of x for any
        number of neurons. `funcnet.initializers.he` suits a layer that is followed by ReLU.
      b_init: Initial biases.

    Raises:
      ValueError: If units is less than 1 or x is a scalar; in `apply`, if params do not have the
        shapes above.
      TypeError: If units is not an integer or bias is not a boolean; in `init`, if x does not have
        a floating dtype.

    >>> Dense(50)
    Dense(50)
    """
    units = check_int("Dense", "units", units, at_least=1)
    check_bool("Dense", "bias", bias)
    check_initializers("Dense", w_init=w_init, b_init=b_init)
    name = f"Dense({units})" if bias else f"Dense({units}, bias=False)"

    def shapes(x):
        return {"w": (last_axis(name, x), units)} | ({"b": (units,)} if bias else {})

    def init(key, x):
        whole = shapes(x)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(f"{name}: x must be of a floating dtype, got {x.dtype}")
        check_key(name, key)
        w_key, b_key = jax.random.split(key)
        params = {"w": initialize(name, "w_init", w_init, w_key, whole["w"], x.dtype)}
        if bias:
            params["b"] = initialize(name, "b_init", b_init, b_key, (units,), x.dtype)
        return params

    def f(params, x):
        check_params(name, params, shapes(x), x)
        return ops.affine(x, params["w"], params.get("b"))

    return stateless(f, init, name)
