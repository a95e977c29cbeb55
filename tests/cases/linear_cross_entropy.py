"""Cases of the linear cross entropy."""

import jax.numpy as jnp
import numpy as np
import optax

from cases.case import Case, ints, normal
from cases.measured import Measured, Target, integers, tokamax, weights
from funcnet import ops

H, W, LABELS = normal(4, 3), normal(3, 5, seed=1), ints(0, 4, 2, 4)

MOST, WEIGHTS = np.array([True, False, True, True]), np.array([0.5, 2.0, 0.0, 1.5, 3.0])
H_SOME = np.where(MOST[:, None], H, np.nan)

CASES = {
    "linear_cross_entropy": [
        # Not sharded: labels are an unsharded constant here. The tests of this rule shard them.
        Case("rank2", (H, W, LABELS), shard=(False, False, False)),
        Case("chunks", (normal(7, 3), W, ints(0, 4, 2, 2, 1, 3, 0)), {"at_once": 11}),
        Case("rank3, ignored", (normal(2, 3, 3), W, ints([0, 9, 2], [9, 9, 3])), {"ignore": 9}),
        Case(
            "ignored by chunks",
            (normal(5, 3), W, ints(0, -100, 2, 4, -100)),
            {"ignore": -100, "at_once": 1},
        ),
        Case("rank1", (normal(3), W, np.array(3, np.uint8))),
        Case("nearly right", (2 * H, W, np.argmax(H @ W, -1).astype(np.int32)), {"at_once": 10}),
        Case("one class", (H, normal(3, 1), ints(0, 0, 0, 0))),
        Case("out of range", (H, W, ints(0, -1, 2, 9)), {"ignore": 9}),
        Case("empty", (np.zeros((0, 3)), W, np.zeros((0,), np.int32))),
        Case("where", (H_SOME, W, ints(0, -1, 2, 9), MOST), {"at_once": 10}),
        Case("where, ignored", (H_SOME, W, ints(4, -1, 2, 4), MOST), {"ignore": 2}),
        Case("weights", (H, W, LABELS, None, WEIGHTS), {"at_once": 10}),
        Case("weights, where", (H_SOME, W, ints(0, -1, 2, 7), MOST, WEIGHTS), {"ignore": 7}),
    ]
}


def _linear_cross_entropy(
    h, w, labels, where=None, class_weights=None, *, ignore=None, at_once=None
):
    labels = np.asarray(labels).astype(np.int64)
    hidden = np.zeros(labels.shape, bool) if where is None else ~where
    hidden = hidden if ignore is None else hidden | (labels == ignore)
    h, index = np.where(hidden[..., None], 0.0, h), np.where(hidden, 0, labels)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(
        jnp.asarray(h @ w), jnp.asarray(index)
    )
    loss = jnp.where((index >= 0) & (index < w.shape[-1]), loss, jnp.nan)
    if class_weights is not None:
        loss = class_weights[np.clip(index, 0, w.shape[-1] - 1)] * loss
    return jnp.where(hidden, 0.0, loss)


ORACLES = {"linear_cross_entropy": _linear_cross_entropy}

RESIDUAL_BYTES = {"linear_cross_entropy": 4 * 12 + 4 * 15}  # dh and dw


def _usual(h, w, labels):
    return optax.softmax_cross_entropy_with_integer_labels(h @ w, labels).mean()


def _tokamax(module, h, w, labels):
    return module.linear_softmax_cross_entropy_loss(h, labels, w, implementation="xla")


MEASURED = {
    "linear_cross_entropy": Measured(
        _usual,
        "optax",
        lambda n, d, v: (normal(n, d), weights(d, v), integers(v, n)),
        {"n": 2048, "d": 256, "v": 32768},
        {"n": 8192, "d": 4096, "v": 32768},
        hand=lambda *args: ops.linear_cross_entropy(*args).mean(),  # computes dw once
        growth={"n": (256, 512, 1024, 2048), "v": (2048, 4096, 8192, 16384, 32768)},
        peers={
            "h w alone": lambda: lambda h, w, _: h @ w,  # only the product, without loss
            "tokamax": tokamax(_tokamax),
        },
        target=Target(0.65, 0.10),
        tpu=Target(1.62),  # a loop that runs only if the cotangents differ counts once
        gpu=Target(6.0),
    )
}
