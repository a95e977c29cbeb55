"""Cases of the binary cross entropy."""

import jax.numpy as jnp
import numpy as np
import optax

from cases.case import Case, normal
from cases.measured import Measured

UNIT = np.random.default_rng(5).random((4, 5))

CASES = {
    "sigmoid_binary_cross_entropy": [
        Case("rank2", (normal(4, 5), UNIT), shard=(True, True)),
        Case("rank0", (np.array(0.3), np.array(1.0))),
        Case("bools", (normal(4, 5), UNIT > 0.5)),
        Case("ints rank3", (normal(2, 1, 3), np.array([[[0, 1, 1]], [[1, 0, 0]]], np.int32))),
        Case(
            "zeros",
            (
                np.array([[0.0, 0.0, 0.0], [0.0, -0.0, 1.0]]),
                np.array([[0.0, 0.5, 1.0], [0.25, 1.0, 0.0]]),
            ),
        ),
        Case("tails", (np.array([40.0, -40.0, 700.0, -700.0]), np.array([1.0, 0.0, 1.0, 0.0]))),
        Case("wrong", (np.array([40.0, -40.0, 1e4, -1e4]), np.array([0.0, 1.0, 0.5, 1.0]))),
        Case("empty", (np.zeros((0, 3)), np.zeros((0, 3)))),
    ]
}


def _sigmoid_binary_cross_entropy(z, y):
    return optax.losses.sigmoid_binary_cross_entropy(jnp.asarray(z), jnp.asarray(y, jnp.float64))


ORACLES = {"sigmoid_binary_cross_entropy": _sigmoid_binary_cross_entropy}

RESIDUAL_BYTES = {"sigmoid_binary_cross_entropy": 0}

MEASURED = {
    "sigmoid_binary_cross_entropy": Measured(
        optax.sigmoid_binary_cross_entropy,
        "optax",
        lambda n, c: (normal(n, c), (normal(n, c, seed=1) > 0) * 1.0),
        argnums=0,
    )
}
