"""Cases of Dropout."""

import jax
import jax.numpy as jnp
import numpy as np

from cases.case import Case, normal
from cases.measured import Measured

CASES = {
    "dropout": [
        Case("rank2", (normal(4, 5), jax.random.key(0)), {"rate": 0.5}, shard=(True, False)),
        Case("rank0", (normal(), jax.random.key(1)), {"rate": 0.5}),
        Case("rank4", (normal(2, 1, 3, 4), jax.random.key(2)), {"rate": 0.2}),
        Case("old key", (normal(3, 7), jax.random.PRNGKey(3)), {"rate": 0.9}),
        Case("rate 0", (normal(3, 7), jax.random.key(4)), {"rate": 0.0}),
        Case("empty", (np.zeros((0, 3)), jax.random.key(5)), {"rate": 0.5}),
    ],
}


def _dropout(x, key, *, rate):
    """Scales the elements of x that the mask of `ops.dropout` keeps, and drops the others."""
    from funcnet import ops

    kept = np.asarray(ops.dropout(np.ones_like(x), key, rate=rate)) > 0
    return np.where(kept, x / (1 - rate), 0.0)


ORACLES = {
    "dropout": _dropout,
}

RESIDUAL_BYTES = {
    "dropout": 20,  # one byte per element, 20 elements
}

MEASURED = {
    "dropout": Measured(
        lambda x, key: jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0.0),
        "bernoulli",
        lambda n, c: (normal(n, c), jax.random.key(1)),
        static={"rate": 0.2},
    )
}
