"""Cases of Batch Normalization."""

from importlib import import_module

import jax.numpy as jnp
import numpy as np

from cases.case import Case, normal, probabilities
from cases.measured import EPS, Measured, Target, columns

X, SOME = normal(6, 3, mean=3.0), np.random.default_rng(0).random((6, 3)) < 0.6
SOME[:, 1] = False  # nothing counts in a column
ROWS = np.array([True, False, True, True, False, True])[:, None]
AFFINE = (normal(3), normal(3, seed=1))

CASES = {
    "batch_norm": [
        Case("rank2", (normal(8, 3), normal(3, mean=1.0), normal(3)), shard=(True, False, False)),
        Case("rank4", (normal(2, 3, 4, 2), normal(2, mean=1.0), normal(2))),
        Case("eps", (normal(6, 3), normal(3), normal(3, seed=1)), {"eps": 0.5}),
        Case("no eps", (normal(6, 3), normal(3), normal(3, seed=1)), {"eps": 0.0}),
        Case("one column", (normal(5, 1), normal(1), normal(1, seed=1))),
        Case("one example", (normal(1, 3), normal(3), normal(3, seed=1))),
        Case("constant", (np.full((4, 2), 3.0), normal(2), normal(2, seed=1))),
        Case("zero scale", (normal(6, 2), np.array([0.0, 1.0]), normal(2))),
        Case("large mean", (normal(6, 3, mean=1e4), normal(3), normal(3, seed=1))),
        Case("where", (np.where(SOME, X, np.nan), *AFFINE, SOME)),
        Case("where, no eps", (np.where(ROWS, X, np.inf), *AFFINE, ROWS), {"eps": 0.0}),
        Case("where, large mean", (np.where(ROWS, X + 1e4, np.nan), *AFFINE, ROWS)),
        Case("where of rank3", (X.reshape(2, 3, 3), *AFFINE, ROWS.reshape(2, 3, 1))),
        Case("no scale", (X, None, AFFINE[1])),
        Case("no bias, where", (X + 1e4, AFFINE[0], None, SOME)),
        Case("neither", (X.reshape(2, 3, 3),), {"eps": 0.5}),
    ],
    "batch_norm_inference": [
        Case(
            "rank2",
            (normal(4, 3), normal(3), normal(3, seed=1), normal(3, seed=2), probabilities(3)),
            shard=(True, False, False, False, False),
        ),
        Case(
            "rank4",
            (normal(2, 3, 1, 2), normal(2), normal(2, seed=1), normal(2, seed=2), np.ones(2)),
            {"eps": 0.1},
        ),
        Case(
            "no variance",
            (normal(4, 3), normal(3), normal(3, seed=1), normal(3, seed=2), np.zeros(3)),
        ),
        Case("no scale", (X, None, AFFINE[1], normal(3, seed=2), probabilities(3))),
        Case("no bias", (X, AFFINE[0], None, normal(3, seed=2), probabilities(3))),
    ],
}


def scaled(z, scale, bias):
    return z * (1 if scale is None else scale) + (0 if bias is None else bias)


def _batch_norm(x, scale=None, bias=None, where=None, *, eps=1e-5):
    x = np.asarray(x, np.longdouble)  # float64 loses digits for a large mean
    counts = np.broadcast_to(True if where is None else where, x.shape)
    mean, var = np.zeros((2, x.shape[-1]), np.longdouble)
    for j in range(x.shape[-1]):
        if (column := x[..., j][counts[..., j]]).size:
            mean[j], var[j] = column.mean(), column.var()
    z = (x - mean) / np.sqrt(var + eps)
    return np.where(counts, scaled(z, scale, bias), 0), mean, var


ORACLES = {
    "batch_norm": _batch_norm,
    "batch_norm_inference": lambda x, scale, bias, mean, var, *, eps=1e-5: scaled(
        (x - mean) / np.sqrt(var + eps), scale, bias
    ),
}

RESIDUAL_BYTES = {
    "batch_norm": 3 * 4 * 3,  # μ₀, δ and r of 3 columns
    "batch_norm_inference": 0,
}


def two_pass(x, axis):
    """(x − mean) / σ, mean and variance, with the variance computed from the deviations."""
    mean = x.mean(axis, keepdims=True)
    var = ((x - mean) ** 2).mean(axis, keepdims=True)
    return (x - mean) / jnp.sqrt(var + EPS), mean, var


def _usual(x, scale, bias):
    normal, mean, var = two_pass(x, 0)
    return normal * scale + bias, mean[0], var[0]


def _flax():
    # with a momentum of 0 the new running statistics are those of the batch
    norm = import_module("flax.linen").BatchNorm(False, momentum=0.0, epsilon=EPS)

    def f(x, scale, bias):
        running = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": running}
        y, new = norm.apply(variables, x, mutable=["batch_stats"])
        return y, *new["batch_stats"].values()

    return f


MEASURED = {
    "batch_norm": Measured(
        _usual,
        "two-pass",
        columns,
        {"n": 512, "c": 1024},
        growth={"n": (128, 512, 2048)},
        peers={"Flax": _flax},
        target=Target(0.55, 0.55),
    ),
    "batch_norm_inference": Measured(
        lambda x, scale, bias, mean, var: (x - mean) / jnp.sqrt(var + EPS) * scale + bias,
        "jnp",
        lambda n, c: (*columns(n, c), normal(c, seed=3), normal(c, seed=4) ** 2 + 0.1),
    ),
}
