"""Cases of the affine layer."""

import numpy as np

from cases.case import Case, normal
from cases.measured import Measured, weights

CASES = {
    "affine": [
        Case("rank2", (normal(4, 5), normal(5, 3), normal(3)), shard=(True, False, False)),
        Case("rank1", (normal(5), normal(5, 3), normal(3))),
        Case("no bias", (normal(2, 4), normal(4, 2), None)),
        Case("rank4", (normal(2, 1, 3, 4), normal(4, 2), normal(2))),
        Case("one input", (normal(3, 1), normal(1, 4), normal(4))),
        Case("a number", (normal(1), normal(1, 1), normal(1, seed=1))),
        Case("square", (normal(3, 3), normal(3, 3, seed=1), normal(3))),
        Case("empty", (np.zeros((0, 3)), normal(3, 2), normal(2))),
    ],
}


ORACLES = {
    "affine": lambda x, w, b: np.einsum("...i,ij->...j", x, w) + (0.0 if b is None else b),
}

RESIDUAL_BYTES = {
    "affine": 0,
}

MEASURED = {
    "affine": Measured(
        lambda x, w, b: x @ w + b,
        "jnp",
        lambda n, c: (normal(n, c), weights(c, c), normal(c, seed=2)),
    )
}
