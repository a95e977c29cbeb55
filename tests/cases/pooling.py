"""Cases of pooling; the oracle computes each window separately."""

import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

from cases.case import Case, normal
from cases.convolution import each, pads_of
from cases.measured import Measured, Target

TIES = np.array([[1, 3, 3, 0], [3, 3, 0, 3], [2, 2, 2, 2], [2, 2, 2, 2]], float)[None, ..., None]
INF = -np.inf
MASKED = np.array([[INF, INF, INF, 1, INF], [2, INF, INF, INF, INF]])[..., None]

WINDOWS = [
    Case("2x2", (normal(4, 4, 4, 2),), {"window": (2, 2)}, shard=(True,)),
    Case("no batch", (normal(6, 2),), {"window": (3,), "strides": 1}),
    Case("overlap", (normal(2, 5, 6, 2),), {"window": (3, 3), "strides": 2, "padding": "SAME"}),
    Case("a rest", (normal(2, 7, 5, 1),), {"window": (2, 3), "strides": (3, 4)}),
    Case(
        "3d, two batch axes",
        (normal(1, 2, 4, 3, 3, 1),),
        {"window": (2, 1, 3), "strides": 1, "padding": ((1, 0), (0, 0), (1, 2))},
    ),
    Case("one column", (normal(6, 3, 2),), {"window": (5, 1)}),
    Case("one place", (normal(4, 2),), {"window": (1,)}),
    Case("empty", (np.zeros((0, 4, 2)),), {"window": (2,)}),
    Case("ceil", (normal(2, 6, 7, 2),), {"window": (3, 2), "strides": 2, "padding": "CEIL"}),
    Case("ceil, gaps", (normal(2, 6, 7, 1),), {"window": (2, 2), "strides": 3, "padding": "CEIL"}),
    Case(
        "ceil, no rest",
        (normal(7, 4, 1),),
        {"window": (5, 2), "strides": (2, 1), "padding": "CEIL"},
    ),
    Case(
        "ceil, one window",
        (normal(2, 3, 1, 1),),
        {"window": (5, 5), "strides": 2, "padding": "CEIL"},
    ),
]
GLOBAL = [
    Case("2d", (normal(4, 3, 2, 2),), shard=(True,)),
    Case("no batch", (normal(6, 2),), {"spatial": 1}),
    Case("3d, two batch axes", (normal(2, 1, 2, 3, 2, 2),), {"spatial": 3}),
    Case("one place", (normal(2, 1, 1, 3),)),
    Case("large mean", (normal(2, 3, 3, 2, mean=1e4),)),
    Case("empty", (np.zeros((0, 3, 2)),), {"spatial": 1}),
]

CASES = {
    "max_pool": [
        *WINDOWS,
        Case("ties", (TIES,), {"window": (2, 2), "strides": 1, "padding": "SAME"}),
        Case("masked", (MASKED,), {"window": (3,), "strides": 1, "padding": ((2, 1),)}),
        Case("nan", (np.where(TIES == 0, np.nan, TIES),), {"window": (2, 2), "strides": 1}),
        Case("256 places", (normal(1, 17, 16, 1),), {"window": (16, 16), "strides": (15, 1)}),
        Case("many places", (normal(1, 20, 15, 1),), {"window": (18, 15), "strides": 2}),
        Case("many windows on a place", (normal(1, 10, 10, 1),), {"window": (9, 9), "strides": 1}),
    ],
    "avg_pool": [
        *WINDOWS,
        Case(
            "padding does not count",
            (normal(2, 5, 6, 2),),
            {"window": (3, 3), "strides": 2, "padding": "SAME", "count_include_pad": False},
        ),
        Case("wide", (normal(1, 70, 1),), {"window": (66,), "strides": 1, "padding": "SAME"}),
    ],
    "global_avg_pool": GLOBAL,
    "global_max_pool": [
        *GLOBAL,
        Case("ties", (np.concatenate([TIES, np.zeros_like(TIES)]),)),
        Case("masked", (np.full((2, 3, 1), INF),), {"spatial": 1}),
    ],
}


def _pool(reduce, fill):
    def pool(x, *, window, strides=None, padding="VALID"):
        x, axes = np.asarray(x, float), len(window)
        strides = window if strides is None else each(strides, axes)
        lead, sizes = x.shape[: -axes - 1], x.shape[-axes - 1 : -1]
        pads = pads_of(padding, sizes, window, strides)
        none = [(0, 0)] * len(lead)
        xp = np.pad(x, [*none, *pads, (0, 0)], constant_values=fill)
        padded = xp.shape[-axes - 1 : -1]
        out = [(n - k) // s + 1 for n, k, s in zip(padded, window, strides, strict=True)]
        y = np.zeros((*lead, *out, x.shape[-1]))
        for o in itertools.product(*map(range, out)):
            at = tuple(slice(i * s, i * s + k) for i, s, k in zip(o, strides, window, strict=True))
            y[(..., *o, slice(None))] = reduce(xp[(..., *at, slice(None))], axes)
        return y

    return pool


def _over(f):
    return lambda x, axes: f(x, axis=tuple(range(-axes - 1, -1)))


def _avg_pool(x, *, count_include_pad=True, **static):
    count_include_pad &= static.get("padding") != "CEIL"
    mean = _pool(_over(np.mean), 0.0)(x, **static)
    return (
        mean if count_include_pad else mean / _pool(_over(np.mean), 0.0)(np.ones_like(x), **static)
    )


ORACLES = {
    "max_pool": _pool(_over(np.max), -np.inf),
    "avg_pool": _avg_pool,
    "global_avg_pool": lambda x, *, spatial=2: _over(np.mean)(x, spatial),
    "global_max_pool": lambda x, *, spatial=2: _over(np.max)(x, spatial),
}

RESIDUAL_BYTES = {
    "max_pool": 32,  # one byte per output, 32 outputs
    "avg_pool": 0,
    "global_avg_pool": 0,
    "global_max_pool": 4 * 8,  # one index per output, 8 outputs
}


def _images(n, s, c):
    return (normal(n, s, s, c),)


def _reduced(x, start, f, window=2):
    whole, strides = (1, window, window, 1), (1, 2, 2, 1)
    return lax.reduce_window(x, start, f, whole, strides, "VALID")


OF_WINDOWS = {"n": 64, "s": 28, "c": 32}
OF_ALL = {"n": 16, "s": 32, "c": 64}
LARGE = {"n": 64, "s": 112, "c": 64}

MEASURED = {
    "max_pool": Measured(
        lambda x: _reduced(x, -jnp.inf, lax.max),
        "reduce_window",
        _images,
        OF_WINDOWS,
        LARGE,
        {"window": (2, 2)},
        growth={"n": (1, 4, 16, 64)},
        target=Target(0.06),
    ),
    "max_pool, overlapping": Measured(
        lambda x: _reduced(x, -jnp.inf, lax.max, 3),
        "reduce_window",
        _images,
        OF_WINDOWS,
        LARGE,
        {"window": (3, 3), "strides": (2, 2)},
    ),
    "avg_pool": Measured(
        lambda x: _reduced(x, 0.0, lax.add) / 4,
        "reduce_window",
        _images,
        OF_WINDOWS,
        LARGE,
        {"window": (2, 2)},
        tpu=Target(1.52),  # sums of a narrow dtype are float32
    ),
    "global_avg_pool": Measured(lambda x: x.mean((1, 2)), "jnp", _images, OF_ALL, LARGE),
    "global_max_pool": Measured(lambda x: x.max((1, 2)), "jnp", _images, OF_ALL, LARGE),
}
