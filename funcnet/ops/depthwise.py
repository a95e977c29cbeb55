"""Depthwise convolution: one kernel per channel."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from funcnet._arrays import wide_dtype, widen
from funcnet._barrier import barrier
from funcnet.ops._types import AnyArray, Num
from funcnet.ops._windows import (
    Ints,
    Padding,
    Windows,
    fold,
    reach,
    slide,
    split_axis,
    spread,
    taps,
    unfold,
)
from funcnet.ops.convolution import Correlation, correlate, correlate_bwd, cotangent, shifted
from funcnet.rule import rule

MOST_TAPS = 64  # of a kernel computed tap by tap; each tap is one term in the program
LONGEST_RUN = 32  # elements summed in one run


@rule
def depthwise_conv(
    x: Num[AnyArray, "... c"],
    w: Num[AnyArray, "*kernel c"],
    b: Num[AnyArray, "c"] | None = None,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
) -> Num[Array, "... c"]:
    """Convolution over 1 to 3 spatial axes of each channel separately.

        y_oc = Σ_t x_(o·s + t·d − low, c) w_tc + b_c

    Strides, padding and dilation are those of `conv`, and the result equals `conv` with groups=c.
    On a CPU y is computed as a sum of shifted products over the taps t of kernels of up to 64 taps,
    as fast as memory bandwidth allows. Larger kernels and other platforms use XLA's grouped
    convolution, in the forward and the backward pass.

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      w: Shape (*kernel, c); the number of kernel axes is the number of spatial axes of x.
      b: Shape (c,), or None for no bias.
      strides: s ≥ 1, one int for all axes or one per axis. Static.
      padding: "SAME" (⌈n / s⌉ outputs on an axis of length n; if the number of zeros is odd, the
        extra one goes at the end), "VALID" (no zeros) or one pair (low, high) per spatial axis.
        Static.
      dilation: d ≥ 1, one int for all axes or one per axis. Static.

    Returns:
      y, shape (..., *out, c), of the dtype that x, w and b promote to.

    Raises:
      ValueError: If shapes or options do not fit.

    Reference: Chollet, 2017, Xception, section 2, arXiv:1610.02357.

    >>> x, w = jnp.array([[1.0, 1.0], [2.0, 3.0]]), jnp.array([[10.0, 0.0], [1.0, 5.0]])
    >>> depthwise_conv(x, w, padding="VALID").tolist()
    [[12.0, 15.0]]
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    b = None if b is None else jnp.asarray(b)
    at = _windows(x, w, b, strides, padding, dilation)
    run = lambda f: functools.partial(f, at)
    return _by_platform(at, run(_grouped), run(_tap_by_tap), x, w, b)


def _by_platform(at: Windows, grouped: Callable[..., Any], taps: Callable[..., Any], *args: Any):
    """`taps(*args)` on a CPU if the kernel is small, else `grouped(*args)`."""
    if math.prod(at.window) > MOST_TAPS:
        return grouped(*args)
    return jax.lax.platform_dependent(*args, cpu=taps, default=grouped)


def _grouped(at: Windows, x: Array, w: Array, b: Array | None) -> Array:
    folded = fold(x, len(at.sizes))
    return shifted(unfold(correlate(folded, _dense(w), _correlation(at, w)), x), b)


def _tap_by_tap(at: Windows, x: Array, w: Array, b: Array | None) -> Array:
    folded, dtype = fold(x, len(at.sizes)), jnp.result_type(x, w)
    wide = wide_dtype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype
    kernel = w.astype(wide).reshape(-1, *(1,) * len(w.shape), w.shape[-1])
    terms = [x_t.astype(wide) * w_t for x_t, w_t in zip(taps(folded, at), kernel, strict=True)]
    y = unfold(functools.reduce(operator.add, terms), x)
    if b is None:
        return y.astype(dtype)
    wide_b = widen(b) if jnp.issubdtype(b.dtype, jnp.inexact) else b
    return shifted(y, wide_b).astype(jnp.result_type(dtype, b))


def _windows(x, w, b, strides, padding, dilation) -> Windows:
    f, axes = "depthwise_conv", w.ndim - 1
    if axes not in (1, 2, 3) or 0 in w.shape:
        raise ValueError(
            f"{f}: w must have shape (*kernel, c) with 1 to 3 kernel axes, none empty, "
            f"got {w.shape}"
        )
    if x.ndim < axes + 1 or x.shape[-1] != w.shape[-1]:
        raise ValueError(
            f"{f}: x must have shape (..., {', '.join(['n'] * axes)}, {w.shape[-1]}) for "
            f"w {w.shape}, got {x.shape}"
        )
    if b is not None and b.shape != w.shape[-1:]:
        raise ValueError(f"{f}: b must have shape {w.shape[-1:]} for w {w.shape}, got {b.shape}")
    return slide(f, x, w.shape[:-1], strides=strides, padding=padding, dilation=dilation)


def _dense(w: Array) -> Array:
    """The kernel in the shape that `correlate` takes: one input channel per group."""
    return w[..., None, :]


def _correlation(at: Windows, w: Array) -> Correlation:
    return Correlation(at.strides, at.padding, (1,) * len(at.sizes), at.dilation, w.shape[-1])


def depthwise_conv_fwd(x, w, b, *, strides, padding, dilation):
    """Saves the arguments: nothing is copied."""
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    return depthwise_conv.__wrapped__(x, w, b, **options), (x, w, b)


def depthwise_conv_bwd(residuals, dy, *, strides, padding, dilation):
    """The cotangents of x, w and b.

    On one axis, x_p is multiplied by w_t in the output o with p = o·s + t·d − low. So

        dx_pc = Σ_t dy_((p + low − t·d) / s, c) w_tc,   where the index is an integer,        (1)
        dw_tc = Σ_o dy_oc x_(o·s + t·d − low, c),   over the batch too,                       (2)
        db_c  = Σ_o dy_oc,   over the batch too.                                              (3)

    Write p + low = i·s + r. Then t·d = q·s + r with q = i − o, so that (1) is a sum over shifts by
    q of the whole array dy, multiplied by the taps at q: no tap is visited where the index is not
    an integer. (2) computes all taps in one pass over x and dy, as one reduction of many arrays.
    The padded copies of x and dy take a little more memory than autodiff, at a fraction of its
    time.

    Reference: Chollet, 2017, Xception, section 2, arXiv:1610.02357.
    """
    x, w, b = barrier(residuals)
    at = _windows(x, w, b, strides, padding, dilation)
    db = None if b is None else cotangent(dy.sum(tuple(range(dy.ndim - 1))), b)  # (3)
    run = lambda f: functools.partial(f, at)
    dx, dw = _by_platform(at, run(_grouped_bwd), run(_tap_by_tap_bwd), x, w, dy)  # (1), (2)
    return dx, dw, db


def _grouped_bwd(at, x, w, dy):
    folded, g = (fold(a, len(at.sizes)) for a in (x, dy))
    dx, dw = correlate_bwd(folded, _dense(w), g, _correlation(at, w))
    return unfold(dx, x), dw.reshape(w.shape)


def _tap_by_tap_bwd(at, x, w, dy):
    # Without the barrier of the caller XLA would keep the padded and shifted copies of x of fwd.
    folded, g = (fold(a, len(at.sizes)) for a in (x, dy))
    wide = widen(g)
    kernel = w.astype(wide.dtype).reshape(-1, w.shape[-1])

    def term(tap, dy_q):
        rows = [jax.lax.index_in_dim(kernel, max(t, 0), keepdims=False) for t in tap.flat]
        product = dy_q * jnp.stack(rows).reshape(*tap.shape[:-1], -1)
        return product if (tap >= 0).all() else jnp.where(tap >= 0, product, 0.0)

    dx = spread(term, (wide,), at, reach(at))  # (1)
    products = [x_t.astype(wide.dtype) * wide for x_t in taps(folded, at)]
    dw = _sums(products).reshape(w.shape)  # (2)
    return unfold(cotangent(dx, x), x), cotangent(dw, w)


def _sums(arrays):
    """Sums each array over all axes but the last, in one pass over all arrays, and stacks the sums.

    The sums are first over runs of at most 32 elements of the last spatial axis, then over one axis
    after another: a sum in parts rounds less than one long sum.
    """
    *lead, places, _ = arrays[0].shape
    runs = -(-places // LONGEST_RUN)
    if runs > 1:
        pads = [(0, 0, 0)] * len(lead) + [(0, runs * LONGEST_RUN - places, 0), (0, 0, 0)]
        zero = jnp.zeros((), arrays[0].dtype)
        arrays = [jax.lax.pad(a, zero, pads) for a in arrays]
        arrays = [split_axis(a, len(lead), LONGEST_RUN) for a in arrays]
    axis = arrays[0].ndim - 2
    zeros = (jnp.zeros((), arrays[0].dtype),) * len(arrays)
    add = lambda a, b: tuple(map(operator.add, a, b))
    sums = jnp.stack(jax.lax.reduce(tuple(arrays), zeros, add, (axis,)))
    while sums.ndim > 2:
        sums = sums.sum(-2)
    return sums


depthwise_conv.defvjp(depthwise_conv_fwd, depthwise_conv_bwd)
