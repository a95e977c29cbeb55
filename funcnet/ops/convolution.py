"""Dense and grouped convolution, and the transposed one."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._arrays import explicit_sharding
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
    """y_o = Σ_t x̃_(o·stride + t·dilation − low) w_t; x̃ is x with `gap` − 1 zeros between places."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    gap: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


def correlate(x: jax.Array, w: jax.Array, c: Correlation) -> jax.Array:
    """The values y of shape (b, *out, c_out), for w (*kernel, c_in / groups, c_out)."""
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


def correlate_bwd(
    x: jax.Array, w: jax.Array, dy: jax.Array, c: Correlation
) -> tuple[jax.Array, jax.Array]:
    """The cotangents of x and w, each a correlation again: see `conv_bwd`."""
    s, kernel, dtype = AXES[: w.ndim - 2], w.shape[:-2], jnp.result_type(x, w, dy)
    spread = lambda sizes, gap: [(n - 1) * g + 1 for n, g in zip(sizes, gap, strict=True)]
    of_x, of_w = spread(x.shape[1:-1], c.gap), spread(kernel, c.dilation)
    of_y = spread(dy.shape[1:-1], c.strides)
    lows = [low for low, _ in c.padding]
    before = [k - 1 - low for k, low in zip(of_w, lows, strict=True)]
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

    def correlation(x: jax.Array, dy: jax.Array, order: Any, out: Any) -> jax.Array:
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

    def as_they_are(x: jax.Array, dy: jax.Array) -> jax.Array:
        return correlation(x, dy, (f"C{s}N", f"I{s}O", f"{s}NC"), own)

    def transposed(x: jax.Array, dy: jax.Array) -> jax.Array:
        # Without a barrier XLA would find as_they_are again.
        x, dy = jax.lax.optimization_barrier((jnp.swapaxes(x, 0, -1), jnp.moveaxis(dy, 0, -2)))
        out = own and own.update(spec=(own.spec[-2], *own.spec[:-2], own.spec[-1]))
        return jnp.moveaxis(correlation(x, dy, (f"N{s}C", f"{s}IO", f"N{s}C"), out), 0, -2)

    def products(x: jax.Array, dy: jax.Array) -> jax.Array:
        at = Windows(x.shape[1:-1], kernel, c.strides, c.dilation, c.padding)
        x, dyT = surround(x, at), jnp.moveaxis(dy, -1, 0)
        out = own and own.update(spec=own.spec[:-3:-1])
        dims = ((tuple(range(1, x.ndim)), tuple(range(x.ndim - 1))), ((), ()))

        def product(t: jax.Array) -> jax.Array:
            return jax.lax.dot_general(dyT, tap(x, at, t), dims, out_sharding=out)

        # A loop, lest what all taps see be in memory at once.
        every = np.array([*itertools.product(*map(range, kernel))], np.int32)
        return jnp.swapaxes(jax.lax.map(product, every), -1, -2).reshape(w.shape)

    plain = c.groups == 1 and set(c.gap) == {1}
    no_kernel = plain and (len(kernel) == 3 or math.prod(kernel) == 1)  # of XLA:CPU's
    dw = jax.lax.platform_dependent(  # (2)
        x.astype(dtype),
        dy.astype(dtype),
        cpu=products if no_kernel else transposed,
        default=as_they_are,
    )
    return cotangent(dx, x), cotangent(dw, w)


def cotangent(d: jax.Array, x: jax.Array) -> jax.Array:
    """The cotangent d in the dtype of x: its real part, where a real x met a complex array."""
    return (d if jnp.iscomplexobj(x) else jnp.real(d)).astype(x.dtype)


def shifted(y: jax.Array, b: jax.Array | None) -> jax.Array:
    """Adds b, which has one number for each channel, to y."""
    return y if b is None else y + jnp.expand_dims(b, range(y.ndim - 1))


@rule
def conv(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
) -> jax.Array:
    """A convolution over 1 to 3 spatial axes, channels last.

        y_oj = Σ_t Σ_i x_(o·s + t·d − low, i) w_tij + b_j

    s are the strides, d the dilation and low the zeros padded in front of an axis. As everywhere in
    this field the kernel is not flipped: it is a correlation. With groups, the channels of input
    and output fall into as many blocks, and an output sees the inputs of its block alone; if every
    channel is a group of its own, `depthwise_conv` is faster.

    Args:
      x: Shape (..., *spatial, c_in), with any number of leading batch axes.
      w: Shape (*kernel, c_in / groups, c_out); the number of its kernel axes says how many axes of
        x are spatial.
      b: Shape (c_out,), or None for no shift.
      strides: s ≥ 1, one for all axes or one for each. Static.
      padding: "SAME" (⌈n / s⌉ windows on an axis of n, the odd zero behind), "VALID" (no zeros) or
        a pair (low, high) for each spatial axis. Static.
      dilation: d ≥ 1, one for all axes or one for each. Static.
      groups: A divisor of c_in and c_out. Static.

    Returns:
      y, shape (..., *out, c_out), of the dtype that x, w and b promote to.

    Raises:
      ValueError: If shapes or options do not fit.

    Reference: Dumoulin & Visin, 2016, A guide to convolution arithmetic, arXiv:1603.07285.

    >>> x, w = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[[10.0]], [[1.0]]])
    >>> conv(x, w, padding="VALID").ravel().tolist()
    [12.0, 24.0]
    """
    c = _of_conv(x, w, b, strides, padding, dilation, groups)
    return shifted(unfold(correlate(fold(x, w.ndim - 2), w, c), x), b)


def _check_kernel(f: str, x: jax.Array, w: jax.Array, b: jax.Array | None, groups: int) -> None:
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

    On one axis, x_p meets w_t in the output o with p = o·s + t·d − low. So

        dx_pi  = Σ_t Σ_j dy_((p + low − t·d) / s, j) w_tij,   where s divides,                (1)
        dw_tij = Σ_o dy_oj x_(o·s + t·d − low, i),   over the batch too,                      (2)
        db_j   = Σ_o dy_oj,   over the batch too.                                             (3)

    (1) is a correlation of dy, with s − 1 zeros between its places, with the flipped kernel, the
    channels of which are exchanged, at stride 1. In place of low and high it has the padding
    (k − 1)d − low in front, for a kernel of k taps, and behind it what makes dx as long as x. (2)
    is a correlation of x with dy, the steps of which are s apart, evaluated at a stride of d: batch
    and channels change places, with groups in blocks of the batch. On a CPU, x and dy are copied
    with the axes in the order of `conv`: in the body of a loop (`jax.lax.scan`) XLA has no fast
    kernel there for another order, which is what autodiff emits. On three axes, and for a kernel of
    one tap, it has none for any order; there (2) is a matrix product of dy with what each tap sees.

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


conv.defvjp(conv_fwd, conv_bwd)


@rule
def conv_transpose(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None = None,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
) -> jax.Array:
    """The transposed convolution: a stride of s makes an axis about s times as long.

        y_oj = Σ_t Σ_i x̃_(o + t·d − low, i) w_tij + b_j,   x̃_(p·s) = x_p, and 0 between

    This is the convention of `jax.lax.conv_transpose` with transpose_kernel=False and of Flax: the
    kernel is not flipped. (The transpose of `conv` with kernel v, as PyTorch and Keras have it, has
    w = v flipped on its kernel axes.) Of e = (k − 1)d + 1 places for k taps,

        "SAME":  low + high = e + s − 2, low the larger half (e − 1 if s ≥ e): n·s outputs,
        "VALID": low = e − 1, high = max(e, s) − 1: n·s + max(e − s, 0) outputs,

    and a pair is low and high themselves, with (n − 1)s + 1 + low + high − (e − 1) outputs.

    Args:
      x: Shape (..., *spatial, c_in), with any number of leading batch axes.
      w: Shape (*kernel, c_in, c_out); the number of its kernel axes says how many axes of x are
        spatial.
      b: Shape (c_out,), or None for no shift.
      strides: s ≥ 1, one for all axes or one for each. Static.
      padding: "SAME", "VALID" or a pair (low, high) for each spatial axis. Static.
      dilation: d ≥ 1, one for all axes or one for each. Static.

    Returns:
      y, shape (..., *out, c_out), of the dtype that x, w and b promote to.

    Raises:
      ValueError: If shapes or options do not fit.

    Reference: Dumoulin & Visin, 2016, section 4, arXiv:1603.07285.

    >>> x, w = jnp.array([[1.0], [2.0]]), jnp.array([[[10.0]], [[1.0]]])
    >>> conv_transpose(x, w, strides=2, padding="VALID").ravel().tolist()
    [1.0, 10.0, 2.0, 20.0]
    """
    c = _of_transpose(x, w, b, strides, padding, dilation)
    return shifted(unfold(correlate(fold(x, w.ndim - 2), w, c), x), b)


def _of_transpose(x, w, b, strides, padding, dilation) -> Correlation:
    f = "conv_transpose"
    _check_kernel(f, x, w, b, 1)
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
    return Correlation((1,) * axes, pairs, strides, dilation)


def conv_transpose_fwd(x, w, b, *, strides, padding, dilation):
    """Saves the arguments: nothing is copied."""
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    return conv_transpose.__wrapped__(x, w, b, **options), (x, w, b)


def conv_transpose_bwd(residuals, dy, *, strides, padding, dilation):
    """The cotangents of x, w and b.

    x_p meets w_t in the output o = p·s − t·d + low. So, as in `conv`, but with s on the side of x,

        dx_pi  = Σ_t Σ_j dy_(p·s − t·d + low, j) w_tij,                                       (1)
        dw_tij = Σ_p dy_(p·s − t·d + low, j) x_pi,   over the batch too,                      (2)
        db_j   = Σ_o dy_oj,   over the batch too.                                             (3)

    (1) is a convolution of stride s with the flipped kernel, and (2) a correlation of x, with s − 1
    zeros between its places, with dy.

    Reference: Dumoulin & Visin, 2016, section 4, arXiv:1603.07285.
    """
    x, w, b = residuals
    return _backward(
        x, w, b, dy, _of_transpose(x, w, b, strides, padding, dilation)
    )  # (1), (2), (3)


conv_transpose.defvjp(conv_transpose_fwd, conv_transpose_bwd)
