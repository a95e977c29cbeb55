"""Cases of dense, grouped and transposed convolution; the oracle is a loop in NumPy."""

import itertools
import math

import numpy as np
from jax import lax

from cases.case import Case, normal
from cases.measured import Measured, weights

CASES = {
    "conv": [
        Case("2d", (normal(4, 3, 3, 2), normal(2, 2, 2, 3), normal(3)), shard=(True, False, False)),
        Case("no batch", (normal(5, 2), normal(3, 2, 4))),
        Case(
            "strides and dilation",
            (normal(2, 7, 6, 1), normal(3, 2, 1, 2), normal(2)),
            {"strides": (2, 3), "dilation": (1, 2)},
        ),
        Case(
            "groups",
            (normal(2, 5, 4), normal(3, 2, 6), normal(6)),
            {"groups": 2, "padding": "VALID", "strides": 2},
        ),
        Case(
            "3d, two batch axes",
            (normal(2, 1, 3, 2, 3, 2), normal(2, 1, 2, 2, 1), normal(1)),
            {"padding": ((1, 0), (0, 2), (1, 1))},
        ),
        Case(
            "strides leave a rest",
            (normal(8, 2), normal(2, 2, 3)),
            {"strides": 3, "padding": "VALID"},
        ),
        Case("one tap", (normal(2, 3, 3, 2), normal(1, 1, 2, 2), normal(2)), {"strides": 2}),
        Case("empty", (np.zeros((0, 4, 2)), normal(3, 2, 3), normal(3))),
    ],
    "conv_transpose": [
        Case(
            "2d",
            (normal(4, 2, 2, 2), normal(3, 2, 2, 3), normal(3)),
            {"strides": 2},
            shard=(True, False, False),
        ),
        Case("no batch", (normal(5, 2), normal(3, 2, 4)), {"padding": "VALID"}),
        Case(
            "dilation",
            (normal(2, 3, 4, 1), normal(3, 2, 1, 2), normal(2)),
            {"strides": (2, 1), "dilation": (1, 2)},
        ),
        Case("gaps", (normal(2, 3, 2), normal(2, 2, 3)), {"strides": 4, "padding": "VALID"}),
        Case("gaps, same", (normal(2, 3, 2), normal(2, 2, 3)), {"strides": 4}),
        Case(
            "3d, two batch axes",
            (normal(2, 1, 2, 1, 2, 2), normal(2, 1, 2, 2, 1), normal(1)),
            {"strides": 2, "padding": ((1, 0), (0, 2), (1, 1))},
        ),
        Case("groups", (normal(2, 3, 4), normal(3, 2, 6), normal(6)), {"strides": 2, "groups": 2}),
        Case(
            "groups, 2d",
            (normal(1, 2, 3, 3), normal(2, 3, 1, 3)),
            {"strides": (1, 3), "dilation": (2, 1), "padding": "VALID", "groups": 3},
        ),
        Case("empty", (np.zeros((0, 4, 2)), normal(3, 2, 3), normal(3)), {"strides": 2}),
    ],
}


def each(value, axes):
    return (value,) * axes if isinstance(value, int) else tuple(value)


def same(sizes, extent, strides):
    missing = [
        max((math.ceil(n / s) - 1) * s + e - n, 0)
        for n, e, s in zip(sizes, extent, strides, strict=True)
    ]
    return [(m // 2, m - m // 2) for m in missing]


def ceil(size, extent, stride):
    """As many windows as start inside the axis, up to the first that reaches its end."""
    start = 0
    while start + extent < size and start + stride < size:
        start += stride
    return 0, max(start + extent - size, 0)


def pads_of(padding, sizes, extent, strides):
    if padding == "SAME":
        return same(sizes, extent, strides)
    if padding == "CEIL":
        return [*map(ceil, sizes, extent, strides)]
    return [(0, 0)] * len(sizes) if padding == "VALID" else padding


def conv_loop(x, w, b=None, *, strides=1, padding="SAME", dilation=1, groups=1):
    """Computes each output from the definition in a loop."""
    x, w = np.asarray(x, float), np.asarray(w, float)
    kernel, axes = w.shape[:-2], w.ndim - 2
    strides, dilation = each(strides, axes), each(dilation, axes)
    lead, sizes = x.shape[: -axes - 1], x.shape[-axes - 1 : -1]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = pads_of(padding, sizes, extent, strides)
    xp = np.pad(x.reshape(-1 if x.size else 0, *x.shape[len(lead) :]), [(0, 0), *pads, (0, 0)])
    out = [(n - e) // s + 1 for n, e, s in zip(xp.shape[1:-1], extent, strides, strict=True)]
    y = np.zeros((xp.shape[0], *out, w.shape[-1]))
    per_in, per_out = w.shape[-2], w.shape[-1] // groups
    for o in itertools.product(*map(range, out)):
        for t in itertools.product(*map(range, kernel)):
            p = tuple(i * s + j * d for i, s, j, d in zip(o, strides, t, dilation, strict=True))
            for g in range(groups):
                seen = xp[(slice(None), *p)][:, g * per_in : (g + 1) * per_in]
                block = slice(g * per_out, (g + 1) * per_out)
                y[(slice(None), *o, block)] += seen @ w[t][:, block]
    return y.reshape(*lead, *y.shape[1:]) + (0 if b is None else b)


def conv_transpose_loop(x, w, b=None, *, strides=1, padding="SAME", dilation=1, groups=1):
    """Adds the contribution of each input to the outputs that it reaches."""
    x, w = np.asarray(x, float), np.asarray(w, float)
    kernel, axes = w.shape[:-2], w.ndim - 2
    strides, dilation = each(strides, axes), each(dilation, axes)
    lead, sizes = x.shape[: -axes - 1], x.shape[-axes - 1 : -1]
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    flat = x.reshape(-1 if x.size else 0, *x.shape[len(lead) :])
    full = [(n - 1) * s + e for n, s, e in zip(sizes, strides, extent, strict=True)]
    y = np.zeros((flat.shape[0], *full, w.shape[-1]))
    for p in itertools.product(*map(range, sizes)):
        for t in itertools.product(*map(range, kernel)):
            at = zip(p, strides, kernel, t, dilation, strict=True)
            o = tuple(i * s + (k - 1 - j) * d for i, s, k, j, d in at)
            blocks = zip(
                np.split(flat[(slice(None), *p)], groups, -1),
                np.split(w[t], groups, -1),
                strict=True,
            )
            y[(slice(None), *o)] += np.concatenate([a @ v for a, v in blocks], -1)
    for axis, (n, s, e) in enumerate(zip(sizes, strides, extent, strict=True), 1):
        if padding == "SAME":  # n·s outputs: the full output cropped on both sides
            low = e - 1 if s >= e else math.ceil((e + s - 2) / 2)
            length = n * s
        elif padding == "VALID":
            low, length = e - 1, n * s + max(e - s, 0)
        else:
            low, high = padding[axis - 1]
            length = (n - 1) * s + 1 + low + high - (e - 1)
        start = e - 1 - low
        behind = max(start + length - y.shape[axis], 0)
        y = np.pad(y, [(0, behind if i == axis else 0) for i in range(y.ndim)])
        y = np.take(y, range(start, start + length), axis)
    return y.reshape(*lead, *y.shape[1:]) + (0 if b is None else b)


ORACLES = {"conv": conv_loop, "conv_transpose": conv_transpose_loop}

RESIDUAL_BYTES = {"conv": 0, "conv_transpose": 0}

DIMS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def _images(widths):
    """Images (n, s, s, c), a 3 × 3 kernel from c to `widths`(c) channels, and a bias."""

    def make(n, s, c):
        return normal(n, s, s, c), weights(3, 3, c, widths(c)), normal(widths(c), seed=2)

    return make


MEASURED = {
    "conv": Measured(
        lambda x, w, b: lax.conv_general_dilated(x, w, (1, 1), "SAME", **DIMS) + b,
        "lax",
        _images(lambda c: 2 * c),
        {"n": 16, "s": 32, "c": 32},
        {"n": 64, "s": 56, "c": 64},
        growth={"n": (1, 4, 16, 64)},
    ),
    "conv_transpose": Measured(
        lambda x, w, b: lax.conv_transpose(x, w, (2, 2), "SAME", **DIMS) + b,
        "lax",
        _images(lambda c: c // 2),
        {"n": 16, "s": 32, "c": 32},
        {"n": 64, "s": 56, "c": 64},
        {"strides": 2},
        growth={"n": (1, 4, 16, 64)},
    ),
}
