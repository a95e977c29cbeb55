"""Recurrent layers: they map sequences (..., T, c) to sequences or to the last hidden state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_int, check_key
from funcnet.layers._params import check_initializers, check_params, initialize, last_axis
from funcnet.layers.base import Layer, stateless


def RNN(
    units: int,
    *,
    reverse: bool = False,
    last: bool = False,
    w_init: initializers.Initializer = initializers.lecun_normal,
) -> Layer:
    """The simple recurrent network, h_t = tanh(x_t W_x + h_{t−1} W_h + b): `funcnet.ops.rnn`.

    The initial hidden state is 0.

    Params: {"w_x": (c, units), "w_h": (units, units), "b": (units,)} in the dtype of x.
    State: none.

    Args:
      units: The size of h, at least 1.
      reverse: Whether the sequence is processed from its end to its start.
      last: Whether the output is only the hidden state after the last step, (..., units).
      w_init: Initial weights. The default keeps the variance of x and h for any number of units.

    Raises:
      ValueError: If units is less than 1 or x has no time axis; in `apply`, if params do not have
        the shapes above.
      TypeError: If units is not an integer, or reverse or last is not a boolean; in `init`, if x
        does not have a real floating dtype.
    """

    def f(p, x, h0):
        return ops.rnn(x, h0, p["w_x"], p["w_h"], p["b"], reverse=reverse)

    return _recurrent("RNN", units, 1, ("b",), f, w_init, last=last, reverse=reverse)


def LSTM(
    units: int,
    *,
    reverse: bool = False,
    last: bool = False,
    recompute: bool = False,
    w_init: initializers.Initializer = initializers.lecun_normal,
) -> Layer:
    """Long short-term memory: `funcnet.ops.lstm`. The initial states h and c are 0.

    Params: {"w_x": (c, 4 units), "w_h": (units, 4 units), "b": (4 units,)} in the dtype of x, for
    the gates i, f, g and o.
    State: none.

    Args:
      units: The size of h and c, at least 1.
      reverse: As for `RNN`.
      last: As for `RNN`.
      recompute: As for `funcnet.ops.lstm`.
      w_init: Initial weights. The default keeps the variance of x and h for any number of units.

    Raises:
      ValueError: As for `RNN`.
      TypeError: As for `RNN`.
    """

    def f(p, x, h0):
        weights = p["w_x"], p["w_h"], p["b"]
        return ops.lstm(x, h0, h0, *weights, reverse=reverse, recompute=recompute)

    return _recurrent(
        "LSTM", units, 4, ("b",), f, w_init, last=last, reverse=reverse, recompute=recompute
    )


def GRU(
    units: int,
    *,
    reverse: bool = False,
    last: bool = False,
    recompute: bool = False,
    w_init: initializers.Initializer = initializers.lecun_normal,
) -> Layer:
    """The gated recurrent unit: `funcnet.ops.gru`. The initial hidden state is 0.

    Params: {"w_x": (c, 3 units), "w_h": (units, 3 units), "b": (3 units,), "b_h": (3 units,)} in
    the dtype of x, for r, z and n.
    State: none.

    Args:
      units: The size of h, at least 1.
      reverse: As for `RNN`.
      last: As for `RNN`.
      recompute: As for `funcnet.ops.gru`.
      w_init: Initial weights. The default keeps the variance of x and h for any number of units.

    Raises:
      ValueError: As for `RNN`.
      TypeError: As for `RNN`.
    """

    def f(p, x, h0):
        weights = p["w_x"], p["w_h"], p["b"], p["b_h"]
        return ops.gru(x, h0, *weights, reverse=reverse, recompute=recompute)

    return _recurrent(
        "GRU", units, 3, ("b", "b_h"), f, w_init, last=last, reverse=reverse, recompute=recompute
    )


def _recurrent(
    kind: str,
    units: int,
    gates: int,
    biases: tuple[str, ...],
    f: Callable[..., Any],
    w_init: initializers.Initializer,
    *,
    last: bool,
    **options: bool,
) -> Layer:
    """Makes a layer from `f(params, x, h0) -> (sequence, last hidden state, ...)`."""
    units = check_int(kind, "units", units, at_least=1)
    width = gates * units
    for option, value in {"last": last, **options}.items():
        check_bool(kind, option, value)
    check_initializers(kind, w_init=w_init)
    name = f"{kind}({units}{', last=True' if last else ''})"

    def shapes(x):
        weights = {"w_x": (last_axis(name, x), width), "w_h": (units, width)}
        return weights | dict.fromkeys(biases, (width,))

    def init(key, x):
        whole = shapes(x)
        if len(x.shape) < 2:
            raise ValueError(f"{name}: x must have shape (..., T, c), got {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name}: x must be of a real floating dtype, got {x.dtype}")
        check_key(name, key)
        keys = zip(("w_x", "w_h"), jax.random.split(key), strict=True)
        w = {part: initialize(name, "w_init", w_init, k, whole[part], x.dtype) for part, k in keys}
        return w | {b: jnp.zeros(whole[b], x.dtype) for b in biases}

    def apply(params, x):
        check_params(name, params, shapes(x), x)
        h0 = jnp.zeros((*x.shape[:-2], units), x.dtype)
        sequence, final, *_ = f(params, x, h0)
        return final if last else sequence

    return stateless(apply, init, name)
