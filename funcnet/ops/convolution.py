"""Dense and grouped convolution, and transposed convolution."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from funcnet._arrays import explicit_sharding
from funcnet.ops._types import AnyArray, Num
from funcnet.ops._windows import (
    Ints,
    Padding,
    Windows,
    fold,
    paddings,
    per_axis,
    slide,
    surround,
    tap,
    unfold,
)
from funcnet.rule import rule

AXES = "HWD"


class Correlation(NamedTuple):
    """y_o = Σ_t x̃_(o·stride + t·dilation − low) w_t; x̃ has `gap` − 1 zeros between the x_p."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    gap: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


def correlate(x: Array, w: Array, c: Correlation) -> Array:
    """Computes y, shape (b, *out, c_out), for w of shape (*kernel, c_in / groups, c_out)."""
    s, dtype = AXES[: w.ndim - 2], jnp.result_type(x, w)
    return jax.lax.conv_general_dilated(
        x.astype(dtype),
        w.astype(dtype),
        c.strides,
        c.padding,
        c.gap,
        c.dilation,
        (f"N{s}C", f"{s}IO", f"N{s}C"),
        feature_group_count=c.groups,
    )


def shifted(y: Array, b: AnyArray | None) -> Array:
    """Adds the bias b, one number per channel, to y."""
    return y if b is None else y + jnp.expand_dims(b, range(y.ndim - 1))


@rule
def conv(
    x: Num[AnyArray, "... c_in"],
    w: Num[AnyArray, "*kernel c_in//{groups} c_out"],
    b: Num[AnyArray, "c_out"] | None = None,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
) -> Num[Array, "... c_out"]:
    """Convolution over 1 to 3 spatial axes, channels last.

        y_oj = Σ_t Σ_i x_(o·s + t·d − low, i) w_tij + b_j

    s are the strides, d is the dilation and low is the number of zeros padded in front of an axis.
    As usual in deep learning the kernel is not flipped, so this is a correlation. With groups, the
    input and output channels are split into that many blocks, and an output channel depends only
    on the input channels of its block. If every channel is a separate group, `depthwise_conv` is
    faster.

    Args:
      x: Shape (..., *spatial, c_in), with any number of leading batch axes.
      w: Shape (*kernel, c_in / groups, c_out); the number of kernel axes is the number of spatial
        axes of x.
      b: Shape (c_out,), or None for no bias.
      strides: s ≥ 1, one int for all axes or one per axis. Static.
      padding: "SAME" (⌈n / s⌉ outputs on an axis of length n; if the number of zeros is odd, the
        extra one goes at the end), "VALID" (no zeros) or one pair (low, high) per spatial axis.
        Static.
      dilation: d ≥ 1, one int for all axes or one per axis. Static.
      groups: Number of groups, a divisor of c_in and c_out. Static.

    Returns:
      y, shape (..., *out, c_out), of the dtype that x, w and b promote to.

    Raises:
      ValueError: If shapes or options do not fit.

    Reference: Dumoulin & Visin, 2016, A guide to convolution arithmetic, arXiv:1603.07285.

    >>> x, w = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[[10.0]], [[1.0]]])
    >>> conv(x, w, padding="VALID").ravel().tolist()
    [12.0, 24.0]
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    c = _of_conv(x, w, b, strides, padding, dilation, groups)
    return shifted(unfold(correlate(fold(x, w.ndim - 2), w, c), x), b)


def _check_kernel(f: str, x: Array, w: Array, b: Array | None, groups: int) -> None:
    axes = w.ndim - 2
    if axes not in (1, 2, 3) or 0 in w.shape[:-2]:
        raise ValueError(
            f"{f}: w must have shape (*kernel, c_in, c_out) with 1 to 3 kernel axes, none empty, "
            f"got {w.shape}"
        )
    if groups < 1 or w.shape[-1] % groups:
        raise ValueError(
            f"{f}: groups must be a divisor of the {w.shape[-1]} output channels, got {groups}"
        )
    if x.ndim < axes + 1 or x.shape[-1] != w.shape[-2] * groups:
        raise ValueError(
            f"{f}: x must have shape (..., {', '.join(['n'] * axes)}, {w.shape[-2] * groups}) for "
            f"w {w.shape} and groups={groups}, got {x.shape}"
        )
    if b is not None and b.shape != w.shape[-1:]:
        raise ValueError(f"{f}: b must have shape {w.shape[-1:]} for w {w.shape}, got {b.shape}")


def _of_conv(x, w, b, strides, padding, dilation, groups) -> Correlation:
    _check_kernel("conv", x, w, b, groups)
    at = slide("conv", x, w.shape[:-2], strides=strides, padding=padding, dilation=dilation)
    return Correlation(at.strides, at.padding, (1,) * len(at.sizes), at.dilation, groups)


def conv_fwd(x, w, b, *, strides, padding, dilation, groups):
    """Saves the arguments: nothing is copied."""
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    return conv.__wrapped__(x, w, b, **options), (x, w, b)


def conv_bwd(residuals, dy, *, strides, padding, dilation, groups):
    """The cotangents of x, w and b.

    On one axis, x_p is multiplied by w_t in the output o with p = o·s + t·d − low. So

        dx_pi  = Σ_t Σ_j dy_((p + low − t·d) / s, j) w_tij,   where the index is an integer,  (1)
        dw_tij = Σ_o dy_oj x_(o·s + t·d − low, i),   over the batch too,                      (2)
        db_j   = Σ_o dy_oj,   over the batch too.                                             (3)

    `correlate_bwd` computes (1) and (2) as correlations.

    Reference: Dumoulin & Visin, 2016, section 4, arXiv:1603.07285.
    """
    x, w, b = residuals
    c = _of_conv(x, w, b, strides, padding, dilation, groups)
    return _backward(x, w, b, dy, c)  # (1), (2), (3)


def _backward(x, w, b, dy, c):
    axes = w.ndim - 2
    dx, dw = correlate_bwd(fold(x, axes), w, fold(dy, axes), c)  # (1), (2)
    db = None if b is None else cotangent(dy.sum(tuple(range(dy.ndim - 1))), b)  # (3)
    return unfold(dx, x), dw, db


def correlate_bwd(x: Array, w: Array, dy: Array, c: Correlation) -> tuple[Array, Array]:
    """The cotangents of x and w for y = correlate(x, w, c), which are correlations too.

    Let s be the stride and g the gap (1 in `conv`), and let dỹ have s − 1 zeros between the
    elements of dy. x_p is multiplied by w_t in the output o with p·g = o·s + t·d − low. For k taps,
    with t replaced by k − 1 − t in the sum for dx, and low′ = (k − 1)d − low,

        dx_pi  = Σ_t Σ_j dỹ_(p·g + t·d − low′, j) w_(k−1−t)ij,                                (1)
        dw_tij = Σ_o dy_oj x̃_(o·s + t·d − low, i),   over the batch too.                      (2)

    (1) correlates dỹ with the flipped kernel, whose channel axes are exchanged, at stride g. The
    padding is low′ in front, and behind it what makes dx as long as x. (2) correlates x̃ with dy,
    whose elements are s apart, at stride d: batch and channel axes are exchanged, and groups become
    blocks of the batch.
    """
    s, kernel, dtype = AXES[: w.ndim - 2], w.shape[:-2], jnp.result_type(x, w, dy)
    spread = lambda sizes, gap: [(n - 1) * g + 1 for n, g in zip(sizes, gap, strict=True)]
    of_x, of_w = spread(x.shape[1:-1], c.gap), spread(kernel, c.dilation)
    of_y = spread(dy.shape[1:-1], c.strides)
    lows = [low for low, _ in c.padding]
    before = [k - 1 - low for k, low in zip(of_w, lows, strict=True)]  # low′
    grouped = w.reshape(*kernel, -1, c.groups, w.shape[-1] // c.groups)
    by_group = jnp.moveaxis(grouped, -2, -3).reshape(*kernel, x.shape[-1], -1)
    exchanged = jnp.flip(by_group, range(len(kernel))).swapaxes(-1, -2)
    dx = jax.lax.conv_general_dilated(  # (1)
        dy.astype(dtype),
        exchanged.astype(dtype),
        c.gap,
        [(b, n + k - 1 - m - b) for b, n, k, m in zip(before, of_x, of_w, of_y, strict=True)],
        c.strides,
        c.dilation,
        (f"N{s}C", f"{s}IO", f"N{s}C"),
        feature_group_count=c.groups,
        out_sharding=explicit_sharding(x, dy),
    )

    def correlation(x: Array, dy: Array, order: Any, out: Any) -> Array:  # (2)
        return jax.lax.conv_general_dilated(
            x,
            dy,
            c.dilation,
            [(a, m - n + b) for a, b, n, m in zip(lows, before, of_x, of_y, strict=True)],
            c.gap,
            c.strides,
            order,
            batch_group_count=c.groups,
            out_sharding=out,
        )

    own = explicit_sharding(w, dy)

    def as_they_are(x: Array, dy: Array) -> Array:
        return correlation(x, dy, (f"C{s}N", f"I{s}O", f"{s}NC"), own)

    def transposed(x: Array, dy: Array) -> Array:
        # On a CPU, x and dy are copied to the axis order of `conv`. Inside a loop (`jax.lax.scan`)
        # XLA has no fast kernel there for another order, which is what autodiff emits. Without the
        # barrier XLA would turn this back into `as_they_are`.
        x, dy = jax.lax.optimization_barrier((jnp.swapaxes(x, 0, -1), jnp.moveaxis(dy, 0, -2)))
        out = own and own.update(spec=(own.spec[-2], *own.spec[:-2], own.spec[-1]))
        return jnp.moveaxis(correlation(x, dy, (f"N{s}C", f"{s}IO", f"N{s}C"), out), 0, -2)

    def products(x: Array, dy: Array) -> Array:
        # For three spatial axes, and for a kernel of one tap, XLA:CPU has no fast kernel in any
        # order. There (2) is a matrix product of dy with the elements of x that each tap reads.
        at = Windows(x.shape[1:-1], kernel, c.strides, c.dilation, c.padding)
        x, dyT = surround(x, at), jnp.moveaxis(dy, -1, 0)
        out = own and own.update(spec=own.spec[:-3:-1])
        dims = ((tuple(range(1, x.ndim)), tuple(range(x.ndim - 1))), ((), ()))

        def product(t: Array) -> Array:
            return jax.lax.dot_general(dyT, tap(x, at, t), dims, out_sharding=out)

        # Loop over taps so that not all patches are in memory at once.
        every = np.array([*itertools.product(*map(range, kernel))], np.int32)
        return jnp.swapaxes(jax.lax.map(product, every), -1, -2).reshape(w.shape)

    plain = c.groups == 1 and set(c.gap) == {1}
    no_kernel = plain and (len(kernel) == 3 or math.prod(kernel) == 1)  # in XLA:CPU
    dw = jax.lax.platform_dependent(  # (2)
        x.astype(dtype),
        dy.astype(dtype),
        cpu=products if no_kernel else transposed,
        default=as_they_are,
    )
    return cotangent(dx, x), cotangent(dw, w)


def cotangent(d: Array, x: Array) -> Array:
    """Casts the cotangent d to the dtype of x; takes the real part of a complex d if x is real."""
    return (d if jnp.iscomplexobj(x) else jnp.real(d)).astype(x.dtype)


conv.defvjp(conv_fwd, conv_bwd)


@rule
def conv_transpose(
    x: Num[AnyArray, "... c_in"],
    w: Num[AnyArray, "*kernel c_in//{groups} c_out"],
    b: Num[AnyArray, "c_out"] | None = None,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
) -> Num[Array, "... c_out"]:
    """Transposed convolution: a stride of s makes an axis about s times as long.

        y_oj = Σ_t Σ_i x̃_(o + t·d − low, i) w_tij + b_j,   x̃_(p·s) = x_p, else 0

    This is the convention of `jax.lax.conv_transpose` with transpose_kernel=False and of Flax: the
    kernel is not flipped. (The transpose of `conv` with kernel v, which PyTorch and Keras compute,
    has w = v flipped on its kernel axes.) A kernel of k taps spans e = (k − 1)d + 1 elements, and

        "SAME":  low + high = e + s − 2, low the larger half (e − 1 if s ≥ e): n·s outputs,
        "VALID": low = e − 1, high = max(e, s) − 1: n·s + max(e − s, 0) outputs,

    and a pair gives low and high directly, with (n − 1)s + 1 + low + high − (e − 1) outputs.

    Args:
      x: Shape (..., *spatial, c_in), with any number of leading batch axes.
      w: Shape (*kernel, c_in / groups, c_out); the number of kernel axes is the number of spatial
        axes of x.
      b: Shape (c_out,), or None for no bias.
      strides: s ≥ 1, one int for all axes or one per axis. Static.
      padding: "SAME", "VALID" or a pair (low, high) for each spatial axis. Static.
      dilation: d ≥ 1, one int for all axes or one per axis. Static.
      groups: Number of groups, as in `conv`. Static.

    Returns:
      y, shape (..., *out, c_out), of the dtype that x, w and b promote to.

    Raises:
      ValueError: If shapes or options do not fit.

    Reference: Dumoulin & Visin, 2016, section 4, arXiv:1603.07285.

    >>> x, w = jnp.array([[1.0], [2.0]]), jnp.array([[[10.0]], [[1.0]]])
    >>> conv_transpose(x, w, strides=2, padding="VALID").ravel().tolist()
    [1.0, 10.0, 2.0, 20.0]
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    c = _of_transpose(x, w, b, strides, padding, dilation, groups)
    return shifted(unfold(correlate(fold(x, w.ndim - 2), w, c), x), b)


def _of_transpose(x, w, b, strides, padding, dilation, groups) -> Correlation:
    f = "conv_transpose"
    _check_kernel(f, x, w, b, groups)
    axes = w.ndim - 2
    strides, dilation = (
        per_axis(f, "strides", strides, axes),
        per_axis(f, "dilation", dilation, axes),
    )
    extent = [(k - 1) * d + 1 for k, d in zip(w.shape, dilation, strict=False)]
    pairs = paddings(f, padding, axes)
    if pairs is None:
        behind = [max(e, s) - 1 for e, s in zip(extent, strides, strict=True)]  # VALID
        pairs = tuple((e - 1, high) for e, high in zip(extent, behind, strict=True))
    if padding == "SAME":
        lows = [e - 1 if s >= e else (e + s - 1) // 2 for e, s in zip(extent, strides, strict=True)]
        whole = [e + s - 2 for e, s in zip(extent, strides, strict=True)]
        pairs = tuple((low, both - low) for low, both in zip(lows, whole, strict=True))
    sizes = x.shape[-1 - axes : -1]
    of = lambda n, s, low_high, e: (n - 1) * s + 1 + sum(low_high) - (e - 1)
    if any(
        n < 1 or of(n, *rest) < 1 for n, *rest in zip(sizes, strides, pairs, extent, strict=True)
    ):
        raise ValueError(
            f"{f}: x must have spatial axes long enough for a window of {tuple(extent)} and "
            f"padding {padding!r}, got {x.shape}"
        )
    return Correlation((1,) * axes, pairs, strides, dilation, groups)


def conv_transpose_fwd(x, w, b, *, strides, padding, dilation, groups):
    """Saves the arguments: nothing is copied."""
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    return conv_transpose.__wrapped__(x, w, b, **options), (x, w, b)


def conv_transpose_bwd(residuals, dy, *, strides, padding, dilation, groups):
    """The cotangents of x, w and b.

    x_p is multiplied by w_t in the output o = p·s − t·d + low. So, as in `conv` but with s on the
    side of x,

        dx_pi  = Σ_t Σ_j dy_(p·s − t·d + low, j) w_tij,                                       (1)
        dw_tij = Σ_p dy_(p·s − t·d + low, j) x_pi,   over the batch too,                      (2)
        db_j   = Σ_o dy_oj,   over the batch too.                                             (3)

    (1) is a convolution of dy with the flipped kernel at stride s, and (2) correlates x, with s − 1
    zeros between its elements, with dy. `correlate_bwd` computes both, with gap s and stride 1.

    Reference: Dumoulin & Visin, 2016, section 4, arXiv:1603.07285.
    """
    x, w, b = residuals
    c = _of_transpose(x, w, b, strides, padding, dilation, groups)
    return _backward(x, w, b, dy, c)  # (1), (2), (3)


conv_transpose.defvjp(conv_transpose_fwd, conv_transpose_bwd)
