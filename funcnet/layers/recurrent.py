"""Recurrent layers: they map sequences (..., T, c) to sequences or to the last hidden state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_int, check_key, check_number, check_tree
from funcnet.layers._params import check_initializers, check_params, initialize, last_axis
from funcnet.layers.base import Layer, check_none


def RNN(
    units: int,
    *,
    bias: bool = True,
    reverse: bool = False,
    last: bool = False,
    stateful: bool = False,
    w_init: initializers.Initializer = initializers.lecun_normal,
) -> Layer:
    """The simple recurrent network, h_t = tanh(x_t W_x + h_{t−1} W_h + b): `funcnet.ops.rnn`.

    `apply` also takes `lengths`, integers of shape (...), as the op does. The initial hidden state
    is 0, unless the layer is stateful: then it is in the state, and the new state is the hidden
    state after the last step. So a long sequence may be processed in pieces, or step by step, and
    the final state of one layer may be the initial state of another. A gradient goes through the
    state if it is part of what is differentiated.

    Params: {"w_x": (c, units), "w_h": (units, units), "b": (units,)} in the dtype of x. There is no
    "b" if bias is False.
    State: none; if stateful, {"h": (..., units) of zeros} in the dtype of x.

    Args:
      units: The size of h, at least 1.
      bias: Whether the layer has a bias, which is initially 0.
      reverse: Whether the sequence is processed from its end to its start.
      last: Whether the output is only the hidden state after the last step, (..., units).
      stateful: Whether the hidden state is kept from one call to the next.
      w_init: Initial weights. The default keeps the variance of x and h for any number of units.

    Raises:
      ValueError: If units is less than 1 or x has no time axis; in `apply`, if params or state do
        not have the shapes above, or lengths are not integers of shape (...).
      TypeError: If units is not an integer, or another option is not a boolean; in `init`, if x
        does not have a real floating dtype.

    >>> layer, x = RNN(3, stateful=True), jnp.ones((2, 4, 5))  # two sequences of 4 steps
    >>> params, state = layer.init(jax.random.key(0), x)
    >>> whole, _ = layer.apply(params, state, x)
    >>> first, state = layer.apply(params, state, x[:, :3])
    >>> rest, state = layer.apply(params, state, x[:, 3:])
    >>> bool(jnp.allclose(jnp.concatenate([first, rest], 1), whole))
    True
    """
    options = {"bias": bias, "reverse": reverse, "last": last, "stateful": stateful}
    return _recurrent("RNN", ops.rnn, units, 1, ("h",), ("b",), w_init, **options)


def LSTM(
    units: int,
    *,
    bias: bool = True,
    forget_bias: float = 0.0,
    reverse: bool = False,
    last: bool = False,
    stateful: bool = False,
    recompute: bool = False,
    w_init: initializers.Initializer = initializers.lecun_normal,
) -> Layer:
    """Long short-term memory: `funcnet.ops.lstm`, with lengths and initial states as for `RNN`.

    Params: {"w_x": (c, 4 units), "w_h": (units, 4 units), "b": (4 units,)} in the dtype of x, for
    the gates i, f, g and o. There is no "b" if bias is False.
    State: none; if stateful, {"h": (..., units), "c": (..., units)} of zeros in the dtype of x.

    Args:
      units: The size of h and c, at least 1.
      bias: As for `RNN`.
      forget_bias: The initial bias of the gate f; that of the other gates is 0. With 1, the layer
        starts by remembering c, which helps with long sequences (Jozefowicz et al., 2015).
      reverse: As for `RNN`.
      last: As for `RNN`.
      stateful: As for `RNN`, for h and c.
      recompute: As for `funcnet.ops.lstm`.
      w_init: Initial weights. The default keeps the variance of x and h for any number of units.

    Raises:
      ValueError: As for `RNN`; if forget_bias is not finite, or is not 0 although bias is False.
      TypeError: As for `RNN`; if forget_bias is not a number.
    """
    check_number("LSTM", "forget_bias", forget_bias)
    options = {"bias": bias, "reverse": reverse, "last": last, "stateful": stateful}
    options |= {"recompute": recompute}
    layer = _recurrent("LSTM", ops.lstm, units, 4, ("h", "c"), ("b",), w_init, **options)
    if forget_bias == 0:
        return layer
    if not bias:
        raise ValueError(f"LSTM: forget_bias must be 0 without a bias, got {forget_bias}")

    def init(key, x):
        params, state = layer.init(key, x)
        return params | {"b": params["b"].at[units : 2 * units].set(forget_bias)}, state

    return layer._replace(init=init)


def GRU(
    units: int,
    *,
    bias: bool = True,
    reverse: bool = False,
    last: bool = False,
    stateful: bool = False,
    recompute: bool = False,
    w_init: initializers.Initializer = initializers.lecun_normal,
) -> Layer:
    """The gated recurrent unit: `funcnet.ops.gru`, with lengths and initial state as for `RNN`.

    Params: {"w_x": (c, 3 units), "w_h": (units, 3 units), "b": (3 units,), "b_h": (3 units,)} in
    the dtype of x, for r, z and n. There are no "b" and "b_h" if bias is False.
    State: none; if stateful, {"h": (..., units) of zeros} in the dtype of x.

    Args:
      units: The size of h, at least 1.
      bias: Whether the layer has the biases b and b_h, which are initially 0.
      reverse: As for `RNN`.
      last: As for `RNN`.
      stateful: As for `RNN`.
      recompute: As for `funcnet.ops.gru`.
      w_init: Initial weights. The default keeps the variance of x and h for any number of units.

    Raises:
      ValueError: As for `RNN`.
      TypeError: As for `RNN`.
    """
    options = {"bias": bias, "reverse": reverse, "last": last, "stateful": stateful}
    options |= {"recompute": recompute}
    return _recurrent("GRU", ops.gru, units, 3, ("h",), ("b", "b_h"), w_init, **options)


def _recurrent(
    kind: str,
    op: Callable[..., Any],
    units: int,
    gates: int,
    states: tuple[str, ...],
    biases: tuple[str, ...],
    w_init: initializers.Initializer,
    *,
    bias: bool,
    last: bool,
    stateful: bool,
    **options: bool,
) -> Layer:
    """Makes a layer from `op(x, *states, w_x, w_h, *biases, lengths) -> (sequence, *states)`."""
    units = check_int(kind, "units", units, at_least=1)
    width = gates * units
    given = {"bias": bias, "last": last, "stateful": stateful}
    for option, value in {**given, **options}.items():
        check_bool(kind, option, value)
    check_initializers(kind, w_init=w_init)
    usual = {"bias": True, "last": False, "stateful": False}
    shown = [f"{option}={given[option]}" for option in given if given[option] != usual[option]]
    name = f"{kind}({', '.join([str(units), *shown])})"

    def shapes(x):
        weights = {"w_x": (last_axis(name, x), width), "w_h": (units, width)}
        return weights | (dict.fromkeys(biases, (width,)) if bias else {})

    def zeros(x):
        return jnp.zeros((*x.shape[:-2], units), x.dtype)

    def init(key, x):
        whole = shapes(x)
        if len(x.shape) < 2:
            raise ValueError(f"{name}: x must have shape (..., T, c), got {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name}: x must be of a real floating dtype, got {x.dtype}")
        check_key(name, key)
        keys = zip(("w_x", "w_h"), jax.random.split(key), strict=True)
        w = {part: initialize(name, "w_init", w_init, k, whole[part], x.dtype) for part, k in keys}
        b = {part: jnp.zeros(shape, x.dtype) for part, shape in whole.items() if part in biases}
        return w | b, {s: zeros(x) for s in states} if stateful else ()

    def apply(params, state, x, *, key=None, train=False, lengths=None):
        del key, train
        check_params(name, params, shapes(x), x)
        start = dict.fromkeys(states, zeros(x))
        if stateful:
            check_tree(name, "state", state, "init", start)
            start = state
        else:
            check_none(name, "state", state)
        weights = params["w_x"], params["w_h"], *(params.get(b) for b in biases)
        y, *final = op(x, *(start[s] for s in states), *weights, lengths, **options)
        y = final[0] if last else y
        if not stateful:
            return y, state
        return y, {s: h.astype(state[s].dtype) for s, h in zip(states, final, strict=True)}

    return Layer(init, apply, name)
