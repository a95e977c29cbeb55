"""Cases of depthwise convolution; the oracle is dense convolution with one group per channel."""

import numpy as np
from jax import lax

from cases.case import Case, normal
from cases.convolution import DIMS, conv_loop
from cases.measured import Measured, Target, weights

CASES = {
    "depthwise_conv": [
        Case("2d", (normal(4, 3, 3, 2), normal(2, 3, 2), normal(2)), shard=(True, False, False)),
        Case("no batch", (normal(5, 3), normal(3, 3))),
        Case(
            "strides and dilation",
            (normal(2, 7, 6, 2), normal(3, 2, 2), normal(2)),
            {"strides": (2, 3), "dilation": (1, 2)},
        ),
        Case(
            "strides share a factor with dilation",
            (normal(2, 11, 2), normal(3, 2)),
            {"strides": 4, "dilation": 2, "padding": ((3, 5),)},
        ),
        Case(
            "gaps", (normal(2, 9, 2), normal(2, 2), normal(2)), {"strides": 4, "padding": "VALID"}
        ),
        Case(
            "3d, two batch axes",
            (normal(2, 1, 3, 2, 3, 2), normal(2, 1, 2, 2), normal(2)),
            {"padding": ((1, 0), (0, 2), (1, 1))},
        ),
        Case("long", (normal(1, 70, 2), normal(3, 2), normal(2))),
        Case("many taps", (normal(1, 3, 4, 2), normal(9, 9, 2), normal(2)), {"strides": (1, 2)}),
        Case("empty", (np.zeros((0, 4, 2)), normal(3, 2), normal(2))),
    ],
}

ORACLES = {
    "depthwise_conv": lambda x, w, b=None, **static: conv_loop(
        x, w[..., None, :], b, groups=w.shape[-1], **static
    ),
}

RESIDUAL_BYTES = {"depthwise_conv": 0}


def _grouped(x, w, b):
    """XLA's grouped convolution, in which each channel is a group."""
    w = w[:, :, None, :]
    groups = {"feature_group_count": x.shape[-1]}
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", **DIMS, **groups) + b


MEASURED = {
    "depthwise_conv": Measured(
        _grouped,
        "lax",
        lambda n, s, c: (normal(n, s, s, c), weights(3, 3, c), normal(c, seed=2)),
        {"n": 8, "s": 32, "c": 64},
        {"n": 64, "s": 56, "c": 64},
        growth={"n": (1, 2, 4, 8)},
        target=Target(0.1),
    )
}
