"""The linear recurrence."""

import numpy as np

from cases.case import Case, normal, probabilities


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
