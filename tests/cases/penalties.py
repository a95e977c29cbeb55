"""Cases of the weight penalties."""

import jax
import jax.numpy as jnp
import numpy as np

from cases.case import Case, ints, normal
from cases.measured import Measured

PARAMS = {"w": normal(4, 3), "b": (normal(2), np.array(0.5)), "zero": np.zeros(2)}

MIXED = {"w": normal(4, 3), "steps": ints(3, 1), "b": normal(2, seed=1)}

CASES = {
    "l1_penalty": [
        Case("tree", (PARAMS, np.array(0.3)), shard=(False, False)),
        Case(
            "array",
            (normal(3, 2), np.array(2.0)),
        ),
        Case("integer leaf", (MIXED, np.array(0.3))),
        Case("empty", ({"w": np.zeros((0, 3))}, np.array(0.3))),
    ],
    "l2_penalty": [
        Case("tree", (PARAMS, np.array(0.3)), shard=(False, False)),
        Case("array", (normal(3, 2), np.array(2.0))),
        Case("integer leaf", (MIXED, np.array(0.3))),
        Case("empty", ({"w": np.zeros((0, 3))}, np.array(0.3))),
    ],
    "elastic_net_penalty": [
        Case("tree", (PARAMS, np.array(0.3), np.array(0.7)), shard=(False, False, False)),
        Case("array", (normal(3, 2), np.array(2.0), np.array(-1.0))),
        Case("integer leaf", (MIXED, np.array(0.3), np.array(0.7))),
        Case("empty", ({"w": np.zeros((0, 3))}, np.array(0.3), np.array(0.7))),
    ],
}


def _leaves(params):
    leaves = [np.ravel(p) for p in jax.tree.leaves(params)]
    return np.concatenate([p for p in leaves if np.issubdtype(p.dtype, np.floating)])


ORACLES = {
    "l1_penalty": lambda params, rate: rate * np.abs(_leaves(params)).sum(),
    "l2_penalty": lambda params, rate: rate / 2 * np.square(_leaves(params)).sum(),
    "elastic_net_penalty": lambda params, l1_rate, l2_rate: (
        l1_rate * np.abs(_leaves(params)).sum() + l2_rate / 2 * np.square(_leaves(params)).sum()
    ),
}

RESIDUAL_BYTES = {
    "l1_penalty": 4,  # Σ|p|
    "l2_penalty": 4,  # Σp²/2
    "elastic_net_penalty": 8,  # both
}


def _and_rates(count):
    return lambda n, c: (normal(n, c), *(normal(seed=1 + i) for i in range(count)))


MEASURED = {
    "l1_penalty": Measured(lambda p, rate: rate * jnp.abs(p).sum(), "jnp", _and_rates(1)),
    "l2_penalty": Measured(lambda p, rate: rate / 2 * (p**2).sum(), "jnp", _and_rates(1)),
    "elastic_net_penalty": Measured(
        lambda p, l1, l2: l1 * jnp.abs(p).sum() + l2 / 2 * (p**2).sum(), "jnp", _and_rates(2)
    ),
}
