"""Cases of softmax, log_softmax and logsumexp."""

import jax
import numpy as np
from numpy import inf

from cases.case import Case, normal
from cases.measured import Measured, Target

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
    ],
}


ORACLES = {
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda x, axis=-1, **options: jax.nn.logsumexp(x, axis=axis, **options),
}

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
