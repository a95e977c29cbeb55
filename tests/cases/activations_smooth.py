"""Cases of the smooth relatives of ReLU."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cases.activations import ELEMENTWISE
from cases.case import Case, normal
from cases.measured import Measured

TAILS = np.array([0.5, -1e30, -1001.0, -700.0, -38.0, -9.0, -0.75, 9.0, 41.0, 700.0, 1e30])

CASES = {
    "silu": [*ELEMENTWISE, Case("far", (TAILS,))],
    "gelu": [
        ELEMENTWISE[0],
        Case("exact", (normal(2, 1, 3, seed=1),), {"approximate": False}),
        Case("tails, exact", (TAILS,), {"approximate": False}),
        Case("infinite, exact", (np.array([-np.inf, 0.5, np.inf]),), {"approximate": False}),
        Case("far", (TAILS,)),
        *ELEMENTWISE[3:],
    ],
    "mish": [*ELEMENTWISE, Case("far", (TAILS,))],
    "softplus": [*ELEMENTWISE, Case("option", (normal(3, 4),), {"beta": 2.5})],
    "log_sigmoid": ELEMENTWISE,
}


def _limits(f):
    """f, but max(x, 0) at ±∞, where the formula of f gives nan."""
    return lambda x, **static: np.where(np.isinf(x), np.maximum(x, 0), f(x, **static))


def _gelu(x, *, approximate=True):
    if approximate:
        return np.asarray(jax.nn.gelu(jnp.asarray(x)))
    return x * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2)) / 2


ORACLES = {
    "silu": _limits(lambda x: x * np.asarray(jax.scipy.special.expit(jnp.asarray(x)))),
    "gelu": _limits(_gelu),
    "mish": _limits(lambda x: x * np.tanh(np.logaddexp(x, 0))),
    "softplus": lambda x, *, beta=1.0: np.logaddexp(beta * x, 0) / beta,
    "log_sigmoid": lambda x: -np.logaddexp(-x, 0),
}

RESIDUAL_BYTES = dict.fromkeys(CASES, 0)

MEASURED = {name: Measured(getattr(jax.nn, name), "jax.nn") for name in CASES} | {
    "gelu, exact": Measured(
        lambda x: jax.nn.gelu(x, approximate=False), "jax.nn", static={"approximate": False}
    )
}
