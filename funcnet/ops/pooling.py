"""Pooling: the maximum or the mean under windows that slide, or of everything."""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._arrays import widen
from funcnet.ops._windows import (
    MOST_TERMS,
    Ints,
    Padding,
    Windows,
    fold,
    reach,
    slide,
    spread,
    stages,
    taps,
    unfold,
    window_sizes,
)
from funcnet.rule import rule


def _windows(f, x, window, strides, padding) -> Windows:
    window = window_sizes(f, "window", window)
    if x.ndim < len(window) + 1:
        raise ValueError(
            f"{f}: x must have shape (..., *spatial, c) with {len(window)} spatial axes, "
            f"got {x.shape}"
        )
    at = slide(f, x, window, strides=window if strides is None else strides, padding=padding)
    if any(max(pair) >= k for pair, k in zip(at.padding, at.window, strict=True)):
        raise ValueError(f"{f}: padding must be less than the window {window}, got {padding!r}")
    return at


def _whole(at: Windows) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and strides on all axes of a folded x."""
    return (1, *at.window, 1), (1, *at.strides, 1)


@rule
def max_pool(
    x: jax.Array,
    *,
    window: Ints,
    strides: Ints | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """The maximum of each channel under windows that slide over 1 to 3 spatial axes.

        y_oc = max_t x_(o·s + t − low, c),   t ∈ window

    What is padded is −∞ (of integers, the least one of the dtype). The gradient goes to the first
    maximum in the row-major order of the window, as with `jax.lax.reduce_window`: under nothing but
    −∞ that is the first place, even if it is padding, where the gradient is lost. A nan in a window
    is its maximum; the gradient goes to the first nan (with `reduce_window` to some other place).

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      window: The size on each spatial axis, 1 to 3 of them; an int k is (k, k). Static.
      strides: s ≥ 1, one for all axes or one for each; None for the window itself. Static.
      padding: "VALID" (none), "SAME" (⌈n / s⌉ windows on an axis of n, the odd place behind) or a
        pair (low, high) for each spatial axis, less than the window. Static.

    Returns:
      y, shape (..., *out, c), with the dtype of x.

    Raises:
      ValueError: If shapes or options do not fit.

    Reference: Source C 7.4 explains pooling; Scherer et al., 2010, ICANN, section 3.

    >>> max_pool(jnp.array([[1.0], [5.0], [2.0], [4.0]]), window=(2,)).ravel().tolist()
    [5.0, 4.0]
    """
    return max_pool_fwd(x, window=window, strides=strides, padding=padding)[0]


def place_dtype(places: int) -> Any:
    """The narrowest dtype that numbers the places of a window."""
    return jnp.uint8 if places <= 2**8 else jnp.uint16 if places <= 2**16 else jnp.int32


def _lowest(f: str, x: jax.Array) -> np.ndarray:
    """What no number of the dtype of x is below, and padding is."""
    if jnp.iscomplexobj(x):
        raise TypeError(f"{f}: x must be real, got {x.dtype}")
    if x.dtype == jnp.bool_:
        return np.array(False)
    integer = jnp.issubdtype(x.dtype, jnp.integer)
    return np.array(jnp.iinfo(x.dtype).min if integer else -np.inf, x.dtype)


def _first_maximum(a, b):
    return jnp.where((a >= b) | (a != a), a, b)


def max_pool_fwd(x, *, window, strides, padding):
    """Saves the place of each maximum in its window, in one byte for up to 256 places; not x.

    The maximum is taken along one axis at a time, the last first, of up to 4 places at once; the
    first of equals at each is the first in row-major order. A nan ends the search.
    """
    at = _windows("max_pool", x, window, strides, padding)
    dtype, lowest = place_dtype(math.prod(at.window)), _lowest("max_pool", x)
    best, place, step = fold(x, len(at.sizes)), None, 1
    for stage in [at] if math.prod(at.window) <= 4 else stages(at):
        several = list(taps(best, stage, lowest))
        inner = [0] * len(several) if place is None else list(taps(place, stage, 0))
        number = lambda t, inner=inner, step=step: jnp.asarray(inner[t] + t * step, dtype)
        best = functools.reduce(_first_maximum, several)
        place = jnp.broadcast_to(number(len(several) - 1), best.shape)
        for t, candidate in reversed(list(enumerate(several[:-1]))):
            is_it = (candidate == best) | (candidate != candidate)
            place = jnp.where(is_it, number(t), place)
        step *= len(several)
    return unfold(best, x), (place, x[..., :0])


def max_pool_bwd(residuals, dy, *, window, strides, padding):
    """The cotangent of x.

    ∂y_oc/∂x_pc = 1 if p is the place of the maximum under window o, else 0. With p + low = i·s + r,
    window o = i − q sees p with its tap t = q·s + r, so

        dx_pc = Σ_q dy_(i−q, c) [place_(i−q, c) = q·s + r].                                   (1)

    That is one term if windows do not overlap. Autodiff of `reduce_window` keeps x, and looks for
    the maximum again, window by window.
    """
    place, empty = residuals
    at = _windows("max_pool", empty, window, strides, padding)
    g = fold(dy, len(at.sizes))

    def term(tap, place, g):
        tap = jnp.asarray(tap)
        return jnp.where((place == tap.astype(place.dtype)) & (tap >= 0), g, jnp.zeros_like(g))

    return (unfold(spread(term, (place, g), at, reach(at)), empty),)  # (1)


max_pool.defvjp(max_pool_fwd, max_pool_bwd)


@rule(inexact=("x",))
def avg_pool(
    x: jax.Array,
    *,
    window: Ints,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """The mean of each channel under windows that slide over 1 to 3 spatial axes.

        y_oc = (1/n_o) Σ_t x_(o·s + t − low, c),   t ∈ window

    What is padded is 0. n_o is the size of the window, or, if padding does not count, the number of
    places in it that are not padding.

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      window: The size on each spatial axis, 1 to 3 of them; an int k is (k, k). Static.
      strides: s ≥ 1, one for all axes or one for each; None for the window itself. Static.
      padding: "VALID" (none), "SAME" (⌈n / s⌉ windows on an axis of n, the odd place behind) or a
        pair (low, high) for each spatial axis, less than the window. Static.
      count_include_pad: Whether padding counts in n_o. Static.

    Returns:
      y, shape (..., *out, c), with the dtype of x, or the default float for integers.

    Raises:
      ValueError: If shapes or options do not fit.

    Reference: LeCun et al., 1998, Proceedings of the IEEE 86, section II.B, subsampling.

    >>> avg_pool(jnp.array([[1.0], [5.0], [2.0], [4.0]]), window=(2,)).ravel().tolist()
    [3.0, 3.0]
    """
    at = _windows("avg_pool", x, window, strides, padding)
    total = widen(fold(x, len(at.sizes)))
    for stage in stages(at):
        total = _window_sums(total, stage)
    return unfold(total / _counts(at, count_include_pad, total.dtype), x).astype(x.dtype)


def _window_sums(x: jax.Array, at: Windows) -> jax.Array:
    if math.prod(at.window) <= MOST_TERMS:
        return functools.reduce(operator.add, taps(x, at))
    pads = ((0, 0), *at.padding, (0, 0))
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, *_whole(at), pads)


def _counts(at: Windows, include_pad: bool, dtype: Any) -> np.ndarray | float:
    """n_o, shape (1, *out, 1) if it differs."""
    if include_pad or not any(map(any, at.padding)):
        return float(math.prod(at.window))
    count = np.ones(())
    for n, k, s, (low, _), o in zip(
        at.sizes, at.window, at.strides, at.padding, at.out, strict=True
    ):
        first = np.arange(o) * s - low
        count = np.multiply.outer(count, np.minimum(first + k, n) - np.maximum(first, 0))
    return count[None, ..., None].astype(dtype)


def avg_pool_fwd(x, *, window, strides, padding, count_include_pad):
    """Saves nothing."""
    options = {"strides": strides, "padding": padding, "count_include_pad": count_include_pad}
    return avg_pool.__wrapped__(x, window=window, **options), x[..., :0]


def avg_pool_bwd(empty, dy, *, window, strides, padding, count_include_pad):
    """The cotangent of x.

    ∂y_oc/∂x_pc = 1/n_o if window o covers p, else 0. With p + low = i·s + r, these windows are
    o = i − q for all q ≥ 0 with q·s + r < k, on every axis:

        dx_pc = Σ_q dy_(i−q, c) / n_(i−q).                                                    (1)

    The sum is taken along one axis after the other.
    """
    at = _windows("avg_pool", empty, window, strides, padding)
    g = widen(fold(dy, len(at.sizes)))
    dx = g / _counts(at, count_include_pad, g.dtype)
    term = lambda tap, g: jnp.where(jnp.asarray(tap) >= 0, g, jnp.zeros_like(g))
    for stage in reversed(stages(at)):
        dx = spread(term, (dx,), stage, reach(stage))  # (1)
    return (unfold(dx, empty).astype(dy.dtype),)


avg_pool.defvjp(avg_pool_fwd, avg_pool_bwd)


def _spatial(f: str, x: jax.Array, spatial: int) -> tuple[int, ...]:
    """The spatial axes, which stand before the channels."""
    if spatial < 1 or x.ndim < spatial + 1:
        raise ValueError(
            f"{f}: x must have shape (..., *spatial, c) with {spatial} spatial axes, at least one, "
            f"got {x.shape}"
        )
    if 0 in x.shape[-1 - spatial : -1]:
        raise ValueError(f"{f}: x must have spatial axes of at least 1, got {x.shape}")
    return tuple(range(x.ndim - 1 - spatial, x.ndim - 1))


@rule(inexact=("x",))
def global_avg_pool(x: jax.Array, *, spatial: int = 2) -> jax.Array:
    """The mean of each channel over all places.

        y_c = (1/n) Σ_p x_pc,   n the number of places

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      spatial: The number of spatial axes, at least 1. Static.

    Returns:
      y, shape (..., c), with the dtype of x, or the default float for integers.

    Raises:
      ValueError: If x has too few axes, or a spatial axis of no places.

    Reference: Lin et al., 2014, Network in network, section 3.2, arXiv:1312.4400.

    >>> global_avg_pool(jnp.array([[[1.0], [3.0]], [[2.0], [6.0]]])).tolist()
    [3.0]
    """
    return widen(x).mean(_spatial("global_avg_pool", x, spatial)).astype(x.dtype)


def global_avg_pool_fwd(x, *, spatial):
    """Saves nothing."""
    return global_avg_pool.__wrapped__(x, spatial=spatial), x[..., :0]


def global_avg_pool_bwd(empty, dy, *, spatial):
    """The cotangent of x.

    ∂y_c/∂x_pc = 1/n at every place, so

    dx_pc = dy_c / n.                                                                     (1)
    """
    axes = _spatial("global_avg_pool", empty, spatial)
    dx = widen(dy) / math.prod(empty.shape[i] for i in axes)
    return (_everywhere(dx.astype(dy.dtype), empty, axes),)  # (1)


def _everywhere(y: jax.Array, empty: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(jnp.expand_dims(y, axes), (*empty.shape[:-1], y.shape[-1]))


global_avg_pool.defvjp(global_avg_pool_fwd, global_avg_pool_bwd)


@rule
def global_max_pool(x: jax.Array, *, spatial: int = 2) -> jax.Array:
    """The maximum of each channel over all places.

        y_c = max_p x_pc

    The gradient goes to the first maximum in row-major order, as in `max_pool`, where autodiff of
    `jnp.max` divides it among equals; and to the first nan.

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      spatial: The number of spatial axes, at least 1. Static.

    Returns:
      y, shape (..., c), with the dtype of x.

    Raises:
      ValueError: If x has too few axes, or a spatial axis of no places.

    Reference: Oquab et al., 2015, CVPR, Is object localization for free?, section 3.

    >>> global_max_pool(jnp.array([[[1.0], [3.0]], [[2.0], [6.0]]])).tolist()
    [6.0]
    """
    axes, lowest = _spatial("global_max_pool", x, spatial), _lowest("global_max_pool", x)
    window = tuple(n if i in axes else 1 for i, n in enumerate(x.shape))
    pooled = jax.lax.reduce_window(x, lowest, jax.lax.max, window, window, "VALID")
    return jnp.squeeze(pooled, axes)


def global_max_pool_fwd(x, *, spatial):
    """Saves the place of each maximum: four bytes for each output; not x.

    The maxima over the last axis, the last two, … say in which row the first one is, where in that
    row, and so on: after the maximum no array of the size of x is searched.
    """
    first, *_ = axes = _spatial("global_max_pool", x, spatial)
    inner = [x]
    for axis in reversed(axes):
        inner.append(inner[-1].max(axis))
    y, place, chosen = inner.pop(), 0, []
    for m in reversed(inner):
        for i in chosen:
            m = _at(m, i, first)
        is_it, size = (m == jnp.expand_dims(y, first)) | (m != m), m.shape[first]
        number = _number((size,), m.ndim)
        chosen.append(jnp.where(is_it, number, size).min(first))
        place = place * size + chosen[-1]
    return y, (place, x[..., :0])


def _at(m: jax.Array, i: jax.Array, axis: int) -> jax.Array:
    """The slice of m at i along an axis, for each channel; i has no spatial axes."""
    index = jnp.expand_dims(i, tuple(range(axis, m.ndim - 1)))
    return jnp.take_along_axis(m, index, axis).squeeze(axis)


def _number(sizes: tuple[int, ...], ndim: int) -> np.ndarray:
    """The number of each place in row-major order, shape (1, …, 1, *sizes, 1)."""
    lead = (1,) * (ndim - len(sizes) - 1)
    return np.arange(math.prod(sizes), dtype=np.int32).reshape(*lead, *sizes, 1)


def global_max_pool_bwd(residuals, dy, *, spatial):
    """The cotangent of x.

    ∂y_c/∂x_pc is 1 at the first place of the maximum, else 0, so

    dx_pc = dy_c [p = first_c].                                                           (1)
    """
    first, empty = residuals
    axes = _spatial("global_max_pool", empty, spatial)
    number = _number(tuple(empty.shape[i] for i in axes), empty.ndim)
    chosen = number == jnp.expand_dims(first, axes)
    return (jnp.where(chosen, jnp.expand_dims(dy, axes), jnp.zeros((), dy.dtype)),)  # (1)


global_max_pool.defvjp(global_max_pool_fwd, global_max_pool_bwd)
