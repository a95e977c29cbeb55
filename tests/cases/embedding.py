"""Cases of embedding."""

import numpy as np

from cases.case import Case, ints, normal
from cases.measured import Measured, Target, integers

CASES = {
    "embedding": [
        Case("rank1", (ints(0, 4, 2, 2), normal(5, 3)), shard=(False, False)),
        Case("one id", (np.array(3, np.int64), normal(5, 3))),
        Case("rank3", (np.arange(12, dtype=np.uint8).reshape(2, 1, 6) % 5, normal(5, 2))),
        Case("one row", (ints(0, 0, 0), normal(1, 2))),
        Case("from the end", (ints(-1, -5, 4, 0), normal(5, 3))),
        Case("out of range", (ints(1, 5, -6, 2), normal(5, 3))),
        Case("padding", (ints(0, 7, 2, -1, 2, 9), normal(8, 3)), {"padding": 7}),
        Case("padding from the end", (np.arange(6, dtype=np.uint8), normal(5, 3)), {"padding": -5}),
        Case("empty", (np.zeros((0, 3), np.int32), normal(5, 2))),
    ],
}


def _embedding(ids, w, *, padding=None):
    ids, rows = np.asarray(ids, int), len(w)
    wrapped = np.where(ids < 0, ids + rows, ids)
    inside = (wrapped >= 0) & (wrapped < rows)
    return np.where(inside[..., None], w[wrapped.clip(0, rows - 1)], np.nan)


ORACLES = {"embedding": _embedding}

RESIDUAL_BYTES = {"embedding": 0}

MEASURED = {
    "embedding": Measured(
        lambda ids, w: w[ids],
        "jnp",
        lambda n, v, d=64: (integers(v, n), normal(v, d, seed=1)),
        {"n": 4096, "v": 1000},
        {"n": 8192, "v": 32000, "d": 4096},
        tpu=Target(1.5),  # sums of a narrow dtype are float32, and an unknown id gives nan
        gpu=Target(1.5),
        growth={"n": (1024, 4096, 16384), "v": (1000, 10_000, 100_000)},
    )
}
