"""Cases of recurrent networks."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cases.case import Case, ints, normal
from cases.measured import Measured, Target, weights


def _args(*batch, gates, steps=3, inputs=2, states=2, scale=1.0, lengths=None, bias=True):
    """x, initial states, weights, biases and lengths of a network with `gates` gates."""
    columns = gates * states
    hidden = [normal(*batch, states, seed=s) for s in ((1, 2) if gates == 4 else (1,))]
    biases = [normal(columns, seed=s) for s in ((5, 6) if gates == 3 else (5,))]
    return (
        scale * normal(*batch, steps, inputs),
        *hidden,
        scale * normal(inputs, columns, seed=3),
        normal(states, columns, seed=4),
        *(biases if bias else [None] * len(biases)),
        None if lengths is None else ints(*lengths),
    )


def _cases(gates, *more):
    args = lambda *batch, **options: _args(*batch, gates=gates, **options)
    first = args(4, steps=2)
    shard = tuple(a is not None and np.ndim(a) > 1 and len(a) == 4 for a in first)
    return [
        Case("batch", first, shard=shard),
        Case("lengths", args(4, lengths=(3, 2, 1, 0))),
        Case("no bias", args(2, bias=False)),
        Case("reverse", args(2, inputs=3), {"reverse": True}),
        Case("reverse lengths", args(3, steps=4, lengths=(4, 2, 0)), {"reverse": True}),
        *more,
        Case("no batch", args(steps=5)),
        Case("two batch axes", args(2, 1, lengths=([3], [2]))),
        Case("one of each", args(1, steps=1, inputs=1, states=1)),
        Case("saturated", args(2, scale=1.6)),
        Case("empty batch", args(0)),
        Case("no steps", args(2, steps=0, lengths=(0, 0))),
    ]


def _recompute(gates):
    return (
        Case("recompute", _args(2, gates=gates), {"recompute": True}),
        Case("recompute, no bias", _args(2, gates=gates, bias=False), {"recompute": True}),
        Case(
            "recompute reverse lengths",
            _args(2, gates=gates, lengths=(3, 1)),
            {"recompute": True, "reverse": True},
        ),
    )


def _one_bias():
    *rest, b, b_h, lengths = _args(2, gates=3)
    return Case("b alone", (*rest, b, None, lengths)), Case("b_h alone", (*rest, None, b_h))


CASES = {
    "rnn": _cases(1),
    "lstm": _cases(4, *_recompute(4)),
    "gru": _cases(3, *_recompute(3), *_one_bias()),
}


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _loop(cell, x, states, lengths, reverse):
    """Loops over examples and timesteps; a cell maps (x_t, states) to states, h first."""
    hs = np.zeros((*x.shape[:-1], states[0].shape[-1]))
    last = [np.array(s) for s in states]
    for n in np.ndindex(*x.shape[:-2]):
        length = x.shape[-2] if lengths is None else lengths[n]
        now = [s[n] for s in states]
        for t in reversed(range(length)) if reverse else range(length):
            now = cell(x[n][t], *now)
            hs[n][t] = now[0]
        for s, value in zip(last, now, strict=True):
            s[n] = value
    return (hs, *last)


def _rnn(x, h0, w_x, w_h, b, lengths=None, *, reverse=False):
    b = 0 if b is None else b
    cell = lambda x, h: (np.tanh(x @ w_x + h @ w_h + b),)
    return _loop(cell, x, (h0,), lengths, reverse)


def _lstm(x, h0, c0, w_x, w_h, b, lengths=None, *, reverse=False, recompute=False):
    b = 0 if b is None else b

    def cell(x, h, c):
        i, f, g, o = np.split(x @ w_x + h @ w_h + b, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        return _sigmoid(o) * np.tanh(c), c

    return _loop(cell, x, (h0, c0), lengths, reverse)


def _gru(x, h0, w_x, w_h, b, b_h, lengths=None, *, reverse=False, recompute=False):
    b, b_h = (0 if v is None else v for v in (b, b_h))

    def cell(x, h):
        (p_r, p_z, p_n), (q_r, q_z, q_n) = np.split(x @ w_x + b, 3), np.split(h @ w_h + b_h, 3)
        r, z = _sigmoid(p_r + q_r), _sigmoid(p_z + q_z)
        return ((1 - z) * np.tanh(p_n + r * q_n) + z * h,)

    return _loop(cell, x, (h0,), lengths, reverse)


ORACLES = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}

RESIDUAL_BYTES = {  # 4 sequences of 2 timesteps, 2 numbers per state
    "rnn": 4 * 2 * 16,  # h and the slopes
    "lstm": 4 * 6 * 16,  # h, c and four pre-activations
    "gru": 4 * 5 * 16,  # h, three pre-activations and q
}


def _sequences(gates):
    """Makes x (n, t, h), the initial states, w_x, w_h and the biases."""

    def make(t, n, h):
        states = [normal(n, h, seed=1 + i) for i in range(2 if gates == 4 else 1)]
        biases = [normal(gates * h, seed=5 + i) for i in range(2 if gates == 3 else 1)]
        w = [weights(h, gates * h, seed=3 + i) for i in range(2)]
        return normal(n, t, h), *states, *w, *biases

    return make


def _over_time(cell, x, *start):
    """Scans a cell (x_t, *state) ↦ state over time; returns all h and the last state."""

    def body(state, x_t):
        state = cell(x_t, *state)
        return state, state[0]

    last, h = lax.scan(body, start, jnp.moveaxis(x, -2, 0))
    return jnp.moveaxis(h, 0, -2), *last


def _rnn(x, h0, w_x, w_h, b):
    return _over_time(lambda x, h: (jnp.tanh(x @ w_x + h @ w_h + b),), x, h0)


def _lstm(x, h0, c0, w_x, w_h, b):
    def cell(x, h, c):
        i, f, g, o = jnp.split(x @ w_x + h @ w_h + b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    return _over_time(cell, x, h0, c0)


def _gru(x, h0, w_x, w_h, b, b_h):
    def cell(x, h):
        (r, z, n), (r_h, z_h, n_h) = (jnp.split(y, 3, -1) for y in (x @ w_x + b, h @ w_h + b_h))
        r, z = jax.nn.sigmoid(r + r_h), jax.nn.sigmoid(z + z_h)
        return ((1 - z) * jnp.tanh(n + r * n_h) + z * h,)

    return _over_time(cell, x, h0)


def _flax_lstm():
    nn = import_module("flax.linen")

    def f(x, h0, c0, w_x, w_h, b):
        cell = nn.OptimizedLSTMCell(h0.shape[-1])
        parts = zip("ifgo", *(jnp.split(a, 4, -1) for a in (w_x, w_h, b)), strict=True)
        params = {}
        for gate, of_x, of_h, bias in parts:
            params |= {f"i{gate}": {"kernel": of_x}, f"h{gate}": {"kernel": of_h, "bias": bias}}
        network = nn.RNN(cell, return_carry=True)
        (c, h), hs = network.apply({"params": {"cell": params}}, x, initial_carry=(c0, h0))
        return hs, h, c

    return f


_LSTM = Measured(
    _lstm,
    "scan",
    _sequences(4),
    {"t": 64, "n": 16, "h": 64},
    {"t": 512, "n": 64, "h": 1024},
    growth={"t": (16, 64, 256), "h": (16, 64, 256)},
    peers={"Flax": _flax_lstm},
    target=Target(0.75),
)

MEASURED = {
    "rnn": _LSTM._replace(usual=_rnn, make=_sequences(1), peers={}),
    "lstm": _LSTM,
    "lstm, wide": _LSTM._replace(sizes={"t": 128, "n": 32, "h": 256}, target=Target(1.02)),
    "gru": _LSTM._replace(
        usual=_gru, make=_sequences(3), peers={}, tpu=Target(1.18), gpu=Target(1.12)
    ),
}
