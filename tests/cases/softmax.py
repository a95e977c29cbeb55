"""Softmax and its logarithm."""

import jax
import numpy as np

from cases.case import Case, normal

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
    Case("masked", (np.array([[0.0, 1.0, -np.inf], [-np.inf, 2.0, -np.inf]]),)),
    Case("nan", (np.array([[0.0, np.nan, 1.0], [0.0, 2.0, 1.0]]),)),
    Case("empty", (np.zeros((0, 3)),)),
    Case("no class", (np.zeros((2, 0)),)),
]

CASES = {
    "softmax": BY_SLICE,
    "log_softmax": BY_SLICE,
}


ORACLES = {
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
}

RESIDUAL_BYTES = {
    "softmax": 4 * 20,  # y, which is also the output
    "log_softmax": 4 * 20 + 4 * 4,  # e, and s of 4 rows
}
