"""Cases of the binary cross entropy."""

import jax.numpy as jnp
import numpy as np
import optax

from cases.case import Case, normal
from cases.measured import Measured

Z, UNIT, ONE = normal(4, 5), np.random.default_rng(5).random((4, 5)), np.ones(())
SOME, MOST = np.random.default_rng(0).random((4, 5)) < 0.6, np.array([True, False, True, True])

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
        Case("where", (np.where(SOME, Z, np.nan), np.where(SOME, UNIT, np.inf), SOME)),
        Case("examples", (np.where(MOST[:, None], Z, np.inf), UNIT, MOST)),
        Case("ignore", (np.where(SOME, Z, np.nan), np.where(SOME, UNIT, -1.0)), {"ignore": -1}),
        Case("ignore ints", (Z, np.where(SOME, UNIT > 0.5, -1), MOST), {"ignore": -1}),
        Case("ignore bools", (Z, UNIT > 0.5), {"ignore": 0}),
        Case("weight", (Z, UNIT, None, np.array(2.5))),
        Case("weights", (40 * Z, UNIT, None, np.array([0.5, 2.0, 1.0, 0.0, 3.0]))),
        Case("weights of each", (Z, UNIT > 0.5, None, np.exp(Z[:, :1]))),
        Case("weights, where", (np.where(SOME, Z, np.nan), UNIT, SOME, np.exp(Z)), {"ignore": 0}),
        Case("weights, zeros", (np.zeros((2, 3)), np.array([[0.0, 0.5, 1.0]] * 2), None, 2 * ONE)),
    ]
}


def _sigmoid_binary_cross_entropy(z, y, where=None, pos_weight=1.0, *, ignore=None):
    z, y = np.asarray(z, float), np.asarray(y, float)
    where = np.ones(z.shape, bool) if where is None else where
    counts = (where if where.ndim == z.ndim else where[..., None]) & (y != ignore)
    z, y = jnp.asarray(np.where(counts, z, 0.0)), jnp.asarray(np.where(counts, y, 0.0))
    of_ones = optax.losses.sigmoid_binary_cross_entropy(z, jnp.ones_like(z))
    of_zeros = optax.losses.sigmoid_binary_cross_entropy(z, jnp.zeros_like(z))
    return np.where(counts, pos_weight * y * of_ones + (1 - y) * of_zeros, 0.0)


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
