"""Cases of the piecewise linear activations and of hard_silu."""

import jax
import jax.numpy as jnp
import numpy as np

from cases.activations import ELEMENTWISE
from cases.case import Case, normal
from cases.measured import Measured, Target

KINKS = Case("kinks", (np.array([-3.0, -1.0, -0.0, 0.0, 1.0, 3.0, 6.0]),))
BELOW = Case("below", (np.nextafter([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0], -np.inf),))

CASES = {
    "leaky_relu": [
        ELEMENTWISE[0],
        KINKS,
        Case("option", (normal(3, 4),), {"negative_slope": 0.3}),
        Case("no slope", (normal(3, 4),), {"negative_slope": 0.0}),
        *ELEMENTWISE[1:],
    ],
    "prelu": [
        Case("features", (normal(4, 3), normal(3, seed=1)), shard=(True, False)),
        Case("one slope", (KINKS.args[0], normal(seed=1))),
        Case("channels", (normal(2, 3, 4), normal(3, 1, seed=1))),
        Case("rank0", (normal(), normal(seed=1))),
        Case("tails", (np.array([-np.inf, -700.0, -0.0, np.nan, np.inf]), np.array(0.25))),
        Case("infinite", (np.array([[-2.0, np.inf], [0.5, -3.0]]), np.array([0.25, 0.5]))),
        Case("empty", (np.zeros((0, 3)), normal(3))),
    ],
    **{
        name: [ELEMENTWISE[0], KINKS, BELOW, *ELEMENTWISE[1:]]
        for name in ("relu6", "hard_tanh", "hard_sigmoid", "hard_silu")
    },
}
CASES["hard_tanh"] += [Case("bounds", KINKS.args, {"low": -1.0, "high": 3.0})]

ORACLES = {
    "leaky_relu": lambda x, *, negative_slope=0.01: np.where(x >= 0, x, negative_slope * x),
    "prelu": lambda x, slope: np.where(x < 0, slope * x, x),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_tanh": lambda x, *, low=-1.0, high=1.0: np.clip(x, low, high),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_silu": lambda x: np.where(x == -np.inf, 0, x * (np.clip(x + 3, 0, 6) / 6)),
}

RESIDUAL_BYTES = {  # one byte per element, 8 elements
    "leaky_relu": 8,
    "prelu": 0,
    "relu6": 8,
    "hard_tanh": 8,
    "hard_sigmoid": 8,
    "hard_silu": 0,
}

MEASURED = {name: Measured(getattr(jax.nn, name), "jax.nn") for name in CASES if name != "prelu"}
MEASURED["prelu"] = Measured(
    lambda x, a: jnp.where(x < 0, a * x, x), "jnp", lambda n, c: (normal(n, c), normal(c, seed=1))
)
# The saved mask keeps XLA:TPU from fusing both passes, alone; in a network they are apart anyway.
MEASURED["hard_sigmoid"] = MEASURED["hard_sigmoid"]._replace(tpu=Target(1.52))
MEASURED["leaky_relu"] = MEASURED["leaky_relu"]._replace(tpu=Target(1.04))
