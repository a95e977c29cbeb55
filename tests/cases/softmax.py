"""Cases of softmax, log_softmax and logsumexp."""

import jax
import numpy as np
from numpy import inf

from cases.case import Case, normal
from cases.measured import Measured, Target

X, SOME = normal(4, 5), np.random.default_rng(0).random((4, 5)) < 0.6
SOME[1] = False  # nothing counts in a row
HIDDEN = np.where(SOME, X, np.nan)
MASKED = [
    Case("where", (HIDDEN, SOME)),
    Case("where for all", (X, np.array([True, False, True, True, True]))),
    Case("where of columns", (np.where(SOME, X, np.inf), SOME), {"axis": 0}),
    Case("where of all", (normal(2, 4, 5), SOME), {"axis": None}),
    Case("where nothing", (np.full((2, 3), np.nan), np.zeros((2, 1), bool))),
    Case("where, −∞", (np.array([[1.0, -inf, 3.0, 9.0]]), np.array([[True, True, True, False]]))),
]

BY_SLICE = [
    Case("rank2", (normal(4, 5),), shard=(True,)),
    Case("rank1", (normal(6),)),
    Case("axis0", (normal(3, 4),), {"axis": 0}),
    Case("axis1of4", (normal(2, 3, 1, 4),), {"axis": 1}),
    Case("two axes", (normal(2, 3, 4),), {"axis": (0, -1)}),
    Case("all axes", (normal(3, 4),), {"axis": None}),
    Case("one class", (normal(3, 1),)),
    Case("ties", (np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]),)),
    Case("offset", (normal(3, 5, mean=1000.0),)),
    Case("scaled", (normal(3, 5, scale=30.0),)),
    Case("masked", (np.array([[0.0, 1.0, -inf], [-inf, 2.0, -inf]]),)),
    Case("nan", (np.array([[0.0, np.nan, 1.0], [0.0, 2.0, 1.0]]),)),
    Case("empty", (np.zeros((0, 3)),)),
    Case("no class", (np.zeros((2, 0)),)),
    *MASKED,
]

CASES = {
    "softmax": BY_SLICE,
    "log_softmax": BY_SLICE,
    "logsumexp": [
        Case("rank2", (normal(4, 5),), shard=(True,)),
        Case("rank1", (normal(6),)),
        Case("axis0 of 3", (normal(3, 1, 4),), {"axis": 0}),
        Case("two axes, kept", (normal(2, 3, 2, 2),), {"axis": (1, -1), "keepdims": True}),
        Case("all axes", (normal(2, 3, 4),), {"axis": None}),
        Case("offset, ties", (1e4 + np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]),)),
        Case("masked", (np.array([[0.0, 1.0, -inf], [-inf] * 3, [-800.0, -900.0, -inf]]),)),
        Case("infinite", (np.array([[0.0, inf], [1.0, 1.0]]),)),
        Case("nan", (np.array([[0.0, np.nan, 1.0], [0.0, 2.0, 1.0]]),)),
        Case("one element", (normal(3, 1),)),
        Case("empty", (np.zeros((0, 3)),)),
        *MASKED,
    ],
}


def _softmax(x, where=None, axis=-1):
    y = jax.nn.softmax(x, axis, where)
    some = True if where is None else np.broadcast_to(where, x.shape).any(axis, keepdims=True)
    return np.where(some, y, 0)


def _log_softmax(x, where=None, axis=-1):
    y = jax.nn.log_softmax(x, axis, where)
    return np.where(True if where is None else where, y, -inf)


def _logsumexp(x, where=None, axis=-1, **options):
    return jax.nn.logsumexp(x, axis=axis, where=where, **options)


ORACLES = {"softmax": _softmax, "log_softmax": _log_softmax, "logsumexp": _logsumexp}

RESIDUAL_BYTES = {
    "softmax": 4 * 20,  # y, which is also the output
    "log_softmax": 4 * 20 + 4 * 4,  # e, and s of 4 rows
    "logsumexp": 4 * 20 + 4 * 4,  # the same
}

MEASURED = {
    # its second ⟨·, y⟩, which autodiff lacks, makes it accurate
    "softmax": Measured(jax.nn.softmax, "jax.nn", tpu=Target(1.23)),
    "log_softmax": Measured(jax.nn.log_softmax, "jax.nn", gpu=Target(1.21)),
    "logsumexp": Measured(lambda x: jax.nn.logsumexp(x, -1), "jax.nn"),
}
