"""Recurrent layers: sequences (..., T, c) in, sequences or the last state out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet.layers.base import Layer, stateless


def RNN(
    units: int,
    *,
    reverse: bool = False,
    last: bool = False,
    w_init: initializers.Initializer = initializers.xavier,
) -> Layer:
    """The simple recurrent network, h_t = tanh(x_t W_x + h_{t−1} W_h + b): `funcnet.ops.rnn`.

    The state before the first step is 0.

    Params: {"w_x": (c, units), "w_h": (units, units), "b": (units,)} in the dtype of x.
    State: none.

    Args:
      units: The length of h, at least 1.
      reverse: Whether it reads from the end.
      last: Whether the output is the state after the last step, (..., units), instead of all.
      w_init: Initial weights.

    Raises:
      ValueError: If units is less than 1; from `init`, if x has no axis of time.
    """

    def f(p, x, h0):
        return ops.rnn(x, h0, p["w_x"], p["w_h"], p["b"], reverse=reverse)

    return _recurrent("RNN", units, 1, ("b",), f, last, w_init)


def LSTM(
    units: int,
    *,
    reverse: bool = False,
    last: bool = False,
    recompute: bool = False,
    w_init: initializers.Initializer = initializers.xavier,
) -> Layer:
    """Long short-term memory: `funcnet.ops.lstm`. The states before the first step are 0.

    Params: {"w_x": (c, 4 units), "w_h": (units, 4 units), "b": (4 units,)} in the dtype of x, for
    the gates i, f, g and o.
    State: none.

    Args:
      units: The length of h and c, at least 1.
      reverse: As for `RNN`.
      last: As for `RNN`.
      recompute: As for the op.
      w_init: Initial weights.

    Raises:
      ValueError: As for `RNN`.
    """

    def f(p, x, h0):
        weights = p["w_x"], p["w_h"], p["b"]
        return ops.lstm(x, h0, h0, *weights, reverse=reverse, recompute=recompute)

    return _recurrent("LSTM", units, 4, ("b",), f, last, w_init)


def GRU(
    units: int,
    *,
    reverse: bool = False,
    last: bool = False,
    recompute: bool = False,
    w_init: initializers.Initializer = initializers.xavier,
) -> Layer:
    """The gated recurrent unit: `funcnet.ops.gru`. The state before the first step is 0.

    Params: {"w_x": (c, 3 units), "w_h": (units, 3 units), "b": (3 units,), "b_h": (3 units,)} in
    the dtype of x, for r, z and n.
    State: none.

    Args:
      units: The length of h, at least 1.
      reverse: As for `RNN`.
      last: As for `RNN`.
      recompute: As for the op.
      w_init: Initial weights.

    Raises:
      ValueError: As for `RNN`.
    """

    def f(p, x, h0):
        weights = p["w_x"], p["w_h"], p["b"], p["b_h"]
        return ops.gru(x, h0, *weights, reverse=reverse, recompute=recompute)

    return _recurrent("GRU", units, 3, ("b", "b_h"), f, last, w_init)


def _recurrent(
    kind: str,
    units: int,
    gates: int,
    biases: tuple[str, ...],
    f: Callable[..., Any],
    last: bool,
    w_init: initializers.Initializer,
) -> Layer:
    """A layer of f(params, x, h0), which returns the sequence first and the last state second."""
    if units < 1:
        raise ValueError(f"{kind}: units must be at least 1, got {units}")
    name = f"{kind}({units}{', last=True' if last else ''})"

    def init(key, x):
        if len(x.shape) < 2:
            raise ValueError(f"{name}: x must have shape (..., T, c), got {x.shape}")
        x_key, h_key = jax.random.split(key)
        width = gates * units
        w = {
            "w_x": w_init(x_key, (x.shape[-1], width), x.dtype),
            "w_h": w_init(h_key, (units, width), x.dtype),
        }
        return w | {b: jnp.zeros((width,), x.dtype) for b in biases}

    def apply(params, x):
        h0 = jnp.zeros((*x.shape[:-2], units), x.dtype)
        sequence, final, *_ = f(params, x, h0)
        return final if last else sequence

    return stateless(apply, init, name)
