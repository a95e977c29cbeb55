"""Cases of Layer Normalization and its relatives."""

import numpy as np
from jax import lax

from cases.batch_norm import scaled, two_pass
from cases.case import Case, normal
from cases.measured import EPS, Measured, Target, columns, flax, tokamax

AFFINE = (normal(5, mean=1.0), normal(5, seed=1))
X, SOME = normal(4, 5), np.random.default_rng(0).random((4, 5)) < 0.6
SOME[1] = False  # nothing counts in a row
SOME[2] = np.arange(5) == 3  # one element does
HIDDEN = np.where(SOME, X, np.nan)
ROWS = np.array([[True], [False], [True], [True]])
PLACES = np.random.default_rng(0).random((3, 2, 2, 1)) < 0.6
PLACES[1] = False
CHANNELS = np.arange(48).reshape(2, 6, 4) % 5 > 0

CASES = {
    "layer_norm": [
        Case("rank2", (normal(4, 5), *AFFINE), shard=(True, False, False)),
        Case("rank4", (normal(2, 1, 4, 5), *AFFINE)),
        Case("rank1", (normal(5), *AFFINE), {"eps": 0.5}),
        Case("no eps", (normal(3, 5), *AFFINE), {"eps": 0.0}),
        Case("large mean", (normal(4, 5, mean=1e4), *AFFINE)),
        Case("constant", (np.array([[2.0] * 5, [1.0, 0.0, -3.0, 5.0, 0.0]]), *AFFINE)),
        Case("zero scale", (normal(4, 5), np.array([0.0, 1.0, 0.0, 1.0, -2.0]), normal(5))),
        Case("one feature", (normal(4, 1), normal(1), normal(1, seed=1))),
        Case("empty", (np.zeros((0, 5)), *AFFINE)),
        Case("where", (HIDDEN, *AFFINE, SOME)),
        Case("where, large mean", (HIDDEN + 1e4, *AFFINE, SOME)),
        Case("where of rows", (np.where(ROWS, X, np.inf), *AFFINE, ROWS), {"eps": 0.0}),
        Case("where for all", (X, *AFFINE, np.array([True, False, True, True, False]))),
        Case("no scale", (X, None, AFFINE[1])),
        Case("no bias, where", (HIDDEN, AFFINE[0], None, SOME)),
        Case("neither", (normal(2, 1, 4, 5),), {"eps": 0.5}),
    ],
    "rms_norm": [
        Case("rank2", (normal(4, 5), normal(5)), shard=(True, False)),
        Case("rank4", (normal(2, 1, 4, 5), normal(5))),
        Case("rank1", (normal(5), normal(5)), {"eps": 0.5}),
        Case("no eps", (normal(3, 5), normal(5)), {"eps": 0.0}),
        Case("zeros", (np.array([[0.0] * 5, [1.0, 0.0, -3.0, 5.0, 0.0]]), normal(5))),
        Case("large mean", (normal(4, 5, mean=1e4), normal(5))),
        Case("two features", (normal(4, 2), normal(2))),
        Case("empty", (np.zeros((0, 5)), normal(5))),
        Case("where", (HIDDEN, AFFINE[0], SOME)),
        Case("where of rows", (np.where(ROWS, X, np.inf), AFFINE[0], ROWS), {"eps": 0.0}),
        Case("where for all", (X, AFFINE[0], np.array([True, False, True, True, False]))),
        Case("no scale", (normal(2, 1, 4, 5),)),
        Case("no scale, where", (HIDDEN, None, SOME)),
    ],
    "group_norm": [
        Case(
            "rank3",
            (normal(4, 3, 6), normal(6, mean=1.0), normal(6, seed=1)),
            {"groups": 2},
            shard=(True, False, False),
        ),
        Case("rank4", (normal(2, 2, 3, 4), normal(4), normal(4, seed=1)), {"groups": 2}),
        Case("no places", (normal(3, 6), normal(6), normal(6, seed=1)), {"groups": 3, "eps": 0.5}),
        Case("one group", (normal(2, 3, 4), normal(4), normal(4, seed=1)), {"groups": 1}),
        Case("instance", (normal(2, 6, 5), *AFFINE), {"groups": 5, "eps": 0.0}),
        Case(
            "large mean",
            (normal(2, 5, 4, mean=1e4), normal(4), normal(4, seed=1)),
            {"groups": 2},
        ),
        Case("constant", (np.full((2, 2, 4), 3.0), normal(4), normal(4, seed=1)), {"groups": 2}),
        Case("empty", (np.zeros((0, 2, 4)), normal(4), normal(4, seed=1)), {"groups": 2}),
        Case(
            "where",
            (np.where(PLACES, normal(3, 2, 2, 4), np.nan), normal(4), normal(4, seed=1), PLACES),
            {"groups": 2},
        ),
        Case(
            "where, large mean",
            (np.where(SOME, X + 1e4, np.inf), *AFFINE, SOME),
            {"groups": 1},
        ),
        Case(
            "where of channels",
            (normal(2, 6, 4), normal(4), normal(4, seed=1), CHANNELS),
            {"groups": 4},
        ),
        Case("no scale", (normal(2, 3, 4), None, normal(4)), {"groups": 2}),
        Case("no bias", (normal(2, 6, 4), normal(4), None), {"groups": 4}),
        Case("neither", (normal(2, 2, 3, 4),), {"groups": 2, "eps": 0.5}),
    ],
}


def _mean(x, where, axes):
    """The mean of what counts; 0 if nothing does."""
    n = where.sum(axes, keepdims=True)
    return np.where(where, x, 0).sum(axes, keepdims=True) / np.maximum(n, 1)


def _standardised(x, where, axes, eps):
    x = np.asarray(x, np.longdouble)  # float64 loses digits for a large mean
    u = x - _mean(x, where, axes)
    return u / np.sqrt(_mean(u**2, where, axes) + eps)


def _all(where, x):
    return np.broadcast_to(True if where is None else where, np.shape(x))


def _layer_norm(x, scale=None, bias=None, where=None, *, eps=1e-5):
    where = _all(where, x)
    return np.where(where, scaled(_standardised(x, where, -1, eps), scale, bias), 0)


def _rms_norm(x, scale=None, where=None, *, eps=1e-6):
    where = _all(where, x)
    z = x / np.sqrt(_mean(np.square(x), where, -1) + eps)
    return np.where(where, scaled(z, scale, None), 0)


def _group_norm(x, scale=None, bias=None, where=None, *, groups, eps=1e-5):
    z, where = np.empty(x.shape, np.longdouble), _all(where, x)
    for g in np.split(np.arange(x.shape[-1]), groups):
        z[..., g] = _standardised(x[..., g], where[..., g], tuple(range(1, x.ndim)), eps)
    return np.where(where, scaled(z, scale, bias), 0)


ORACLES = {"layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm}

RESIDUAL_BYTES = {
    "layer_norm": 3 * 4 * 4,  # μ₀, δ and r of 4 rows
    "rms_norm": 4 * 4,  # r of 4 rows
    "group_norm": 3 * 4 * 4 * 2,  # μ₀, δ and r of 4 examples and 2 groups
}


def _group_norm(x, scale, bias):
    parted = x.reshape(*x.shape[:-1], 8, -1)
    return two_pass(parted, (1, 2, 4))[0].reshape(x.shape) * scale + bias


MEASURED = {
    "layer_norm": Measured(
        lambda x, scale, bias: two_pass(x, -1)[0] * scale + bias,
        "two-pass",
        columns,
        growth={"n": (128, 512, 2048, 8192)},
        tpu=Target(1.15),  # the second part of the mean
        peers={
            "Flax": flax(lambda nn: nn.LayerNorm(epsilon=EPS), "scale", "bias"),
            "tokamax": tokamax(lambda t, *args: t.layer_norm(*args, implementation="xla")),
        },
        target=Target(0.75, 0.5),
    ),
    "rms_norm": Measured(
        lambda x, scale: x * lax.rsqrt((x**2).mean(-1, keepdims=True) + EPS) * scale,
        "jnp",
        lambda n, c: columns(n, c)[:2],
        static={"eps": EPS},
        gpu=Target(1.18),
        peers={"Flax": flax(lambda nn: nn.RMSNorm(epsilon=EPS), "scale")},
    ),
    "group_norm": Measured(
        _group_norm,
        "two-pass",
        lambda n, s, c: (normal(n, s, s, c), normal(c, seed=1), normal(c, seed=2)),
        {"n": 16, "s": 32, "c": 64},
        {"n": 64, "s": 56, "c": 64},
        {"groups": 8},
        tpu=Target(1.15),  # the second part of the mean
        growth={"n": (1, 4, 16, 64)},
        peers={"Flax": flax(lambda nn: nn.GroupNorm(8, epsilon=EPS), "scale", "bias")},
    ),
}
