"""Cases of the gated linear units."""

import jax
import numpy as np

from cases.activations_smooth import ORACLES as SMOOTH
from cases.case import Case, normal
from cases.measured import Measured, matrices

TAILS = (
    np.array([0.5, -np.inf, -700.0, -38.0, -9.0, -0.75, 9.0, 41.0, 700.0]),
    np.array([-2.0, 1.0, 1.0, -1.0, 3.0, 0.0, -1.0, 0.5, 1.0]),
)

COMMON = [
    Case("rank2", (normal(4, 3), normal(4, 3, seed=1)), shard=(True, True)),
    Case("rank0", (normal(), normal(seed=1))),
    Case("rank4", (normal(2, 1, 3, 2), normal(2, 1, 3, 2, seed=1))),
    Case("zeros", (np.zeros((2, 3)), normal(2, 3))),
    Case("tails", TAILS),
    Case("empty", (np.zeros((0, 3)), np.zeros((0, 3)))),
]

CASES = {
    "swiglu": COMMON,
    "glu": COMMON,
    "geglu": [
        COMMON[0],
        Case("exact", (normal(3, 2), normal(3, 2, seed=1)), {"approximate": False}),
        Case("tails, exact", TAILS, {"approximate": False}),
        *COMMON[2:],
    ],
}

ORACLES = {
    "swiglu": lambda gate, up: SMOOTH["silu"](gate) * up,
    "glu": lambda gate, up: jax.scipy.special.expit(gate) * up,
    "geglu": lambda gate, up, **static: SMOOTH["gelu"](gate, **static) * up,
}

RESIDUAL_BYTES = {"swiglu": 0, "glu": 0, "geglu": 0}

LARGE = {"n": 8192, "c": 11008}

MEASURED = {
    "swiglu": Measured(lambda a, b: jax.nn.silu(a) * b, "jax.nn", matrices, large=LARGE),
    "glu": Measured(lambda a, b: jax.nn.sigmoid(a) * b, "jax.nn", matrices, large=LARGE),
    "geglu": Measured(lambda a, b: jax.nn.gelu(a) * b, "jax.nn", matrices, large=LARGE),
}
