"""The logarithm of a sum of exponentials."""

import jax
import numpy as np

from cases.case import Case, normal

INF = np.inf

CASES = {
    "logsumexp": [
        Case("rank2", (normal(4, 5),), shard=(True,)),
        Case("rank1", (normal(6),)),
        Case("axis0 of 3", (normal(3, 1, 4),), {"axis": 0}),
        Case("two axes, kept", (normal(2, 3, 2, 2),), {"axis": (1, -1), "keepdims": True}),
        Case("all axes", (normal(2, 3, 4),), {"axis": None}),
        Case("offset, ties", (1e4 + np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]),)),
        Case("masked", (np.array([[0.0, 1.0, -INF], [-INF] * 3, [-800.0, -900.0, -INF]]),)),
        Case("infinite", (np.array([[0.0, INF], [1.0, 1.0]]),)),
        Case("nan", (np.array([[0.0, np.nan, 1.0], [0.0, 2.0, 1.0]]),)),
        Case("one element", (normal(3, 1),)),
        Case("empty", (np.zeros((0, 3)),)),
    ]
}

ORACLES = {"logsumexp": lambda x, axis=-1, **options: jax.nn.logsumexp(x, axis=axis, **options)}

RESIDUAL_BYTES = {"logsumexp": 4 * 20 + 4 * 4}  # e, and s of 4 rows
