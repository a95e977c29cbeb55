"""Cases of the activation functions."""

import jax
import jax.numpy as jnp
import numpy as np

from cases.case import Case, normal
from cases.measured import Measured

ELEMENTWISE = [
    Case("rank1", (normal(8),), shard=(True,)),
    Case("rank0", (normal(),)),
    Case("rank4", (normal(2, 1, 3, 4),)),
    Case("zeros", (np.array([[0.0, -0.0, 1.0], [-1.0, 0.0, 0.0]]),)),
    Case("wide", (normal(5, 7, scale=10.0),)),
    Case("tails", (np.array([0.5, -700.0, -88.0, -40.0, -17.0, 17.0, 40.0, 88.0, 700.0]),)),
    Case("infinite", (np.array([-np.inf, 0.5, np.inf]),)),
    Case("nan", (np.array([np.nan, 0.5, -np.nan]),)),
    Case("empty", (np.zeros((0, 3)),)),
]

CASES = {
    "identity": ELEMENTWISE,
    "step": ELEMENTWISE,
    "sigmoid": ELEMENTWISE,
    "tanh": ELEMENTWISE,
    "relu": ELEMENTWISE,
    "softsign": ELEMENTWISE,
}


ORACLES = {
    "identity": lambda x: x,
    "step": lambda x: np.heaviside(x, 1.0),
    "sigmoid": lambda x: jax.scipy.special.expit(jnp.asarray(x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "softsign": lambda x: np.sign(x) * (1 - 1 / (1 + np.abs(x))),
}

RESIDUAL_BYTES = {
    "identity": 0,
    "step": 0,
    "sigmoid": 0,
    "tanh": 0,
    "softsign": 0,
    "relu": 8,  # one byte per element, 8 elements
}

MEASURED = {
    "identity": Measured(lambda x: x, "x"),
    "step": Measured(lambda x: jnp.where(x > 0, 1.0, 0.0).astype(x.dtype), "jnp"),
    "sigmoid": Measured(jax.nn.sigmoid, "jax.nn"),
    "tanh": Measured(jnp.tanh, "jnp"),
    "relu": Measured(jax.nn.relu, "jax.nn"),
    "softsign": Measured(jax.nn.soft_sign, "jax.nn"),
}
