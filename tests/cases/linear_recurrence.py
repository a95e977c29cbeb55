"""Cases of the linear recurrence."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from cases.case import Case, normal, probabilities
from cases.measured import Measured, Target


def _args(*batch, steps, channels=2, h0=True):
    a = normal(*batch, steps, channels, scale=0.7)
    b = normal(*batch, steps, channels, seed=1)
    return (a, b, normal(*batch, channels, seed=2)) if h0 else (a, b, None)


CASES = {
    "linear_recurrence": [
        Case("batch", _args(4, steps=5), shard=(True, True, True)),
        Case("from zero", _args(2, steps=4, h0=False)),
        Case("reverse", _args(2, steps=7), {"reverse": True}),
        Case("reverse from zero", _args(1, steps=6, h0=False), {"reverse": True}),
        Case("zeros", (np.array([[0.5], [0.0], [-2.0]]), normal(3, 1), normal(1))),
        Case("no batch", _args(steps=11, channels=1)),
        Case("two batch axes", _args(2, 3, steps=2)),
        Case("one step", _args(2, steps=1)),
        Case("one step in reverse", _args(2, steps=1, h0=False), {"reverse": True}),
        Case("averages", (probabilities(2, 5, 3), normal(2, 5, 3, mean=1e3), normal(2, 3))),
        Case("no steps", _args(2, steps=0)),
        Case("empty batch", _args(0, steps=3)),
    ],
}


def _linear_recurrence(a, b, h0=None, *, reverse=False):
    h = 0.0 if h0 is None else h0
    hs = np.zeros_like(b)
    for t in reversed(range(b.shape[-2])) if reverse else range(b.shape[-2]):
        hs[..., t, :] = h = a[..., t, :] * h + b[..., t, :]
    return hs


ORACLES = {"linear_recurrence": _linear_recurrence}

RESIDUAL_BYTES = {"linear_recurrence": 4 * 4 * 5 * 2}  # h


def _associative(a, b, h0):
    b = b.at[..., 0, :].add(a[..., 0, :] * h0)
    compose = lambda first, second: (first[0] * second[0], second[0] * first[1] + second[1])
    return lax.associative_scan(compose, (a, b), axis=a.ndim - 2)[1]


def _sequential(a, b, h0):
    def body(h, factors):
        h = factors[0] * h + factors[1]
        return h, h

    steps = jnp.moveaxis(a, -2, 0), jnp.moveaxis(b, -2, 0)
    return jnp.moveaxis(lax.scan(body, h0, steps)[1], 0, -2)


_RECURRENCE = Measured(
    _associative,
    "associative_scan",
    lambda t, n=8, c=128: (
        1 / (1 + np.exp(normal(n, t, c))),
        normal(n, t, c, seed=1),
        normal(n, c),
    ),
    {"t": 1024},
    {"t": 4096, "n": 1, "c": 4096},
    growth={"t": (64, 256, 1024)},
    tpu=Target(1.21),
    gpu=Target(3.7),  # beside a scan, which takes as many launches as steps
)

MEASURED = {
    "linear_recurrence": _RECURRENCE,
    "linear_recurrence, sequential": _RECURRENCE._replace(usual=_sequential, source="scan"),
}
