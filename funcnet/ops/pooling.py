"""Max and average pooling over sliding windows."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact

from funcnet._arrays import widen
from funcnet.ops._types import AnyArray, Num, Real
from funcnet.ops._windows import (
    MOST_TERMS,
    Ints,
    Padding,
    Windows,
    fold,
    lowest_of,
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
    strides = window if strides is None else strides
    at = slide(f, x, window, strides=strides, padding=padding, ceil=True)
    if any(max(pair) >= k for pair, k in zip(at.padding, at.window, strict=True)):
        raise ValueError(f"{f}: padding must be less than the window {window}, got {padding!r}")
    return at


def _whole(at: Windows) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and strides on all axes of a folded x, batch and channels included."""
    return (1, *at.window, 1), (1, *at.strides, 1)


@rule
def max_pool(
    x: Real[AnyArray, "... c"],
    *,
    window: Ints,
    strides: Ints | None = None,
    padding: Padding = "VALID",
) -> Real[Array, "... c"]:
    """Max pooling: the maximum of each channel in windows that slide over 1 to 3 spatial axes.

        y_oc = max_t x_(o·s + t − low, c),   t ∈ window

    The padding is −∞ (for integers, the lowest number of the dtype). The gradient goes to the first
    maximum in the row-major order of the window, as with `jax.lax.reduce_window`. In a window that
    contains only −∞ that is the first position, even if it is padding; the gradient is then lost.
    If a window contains nan, the maximum is nan and the gradient goes to the first nan (with
    `reduce_window`, and here on a TPU, it goes to another position).

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      window: Window size on each of 1 to 3 spatial axes; an int k means (k, k). Static.
      strides: s ≥ 1, one int for all axes or one per axis; None for the window size. Static.
      padding: "VALID" (no padding), "SAME" (⌈n / s⌉ windows on an axis of length n; if the padding
        is odd, the extra element goes at the end), "CEIL" (as "VALID", and if a rest is left at the
        end, a last window for it, which is cut off) or one pair (low, high) per spatial axis, less
        than the window. Static.

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
    """The narrowest integer dtype that can index the positions of a window."""
    return jnp.uint8 if places <= 2**8 else jnp.uint16 if places <= 2**16 else jnp.int32


def _first_maximum(a, b):
    return jnp.where((a >= b) | (a != a), a, b)


def max_pool_fwd(x, *, window, strides, padding):
    """Saves the position of each maximum in its window (one byte for up to 256 positions), and x.

    Only a TPU reads x again, which it does faster than it handles the positions; elsewhere x is not
    kept. A window of up to 4 positions is searched at once, a larger one along one axis after
    another, starting with the last. Taking the first of equal maxima along each axis gives the
    first in row-major order. The first nan counts as the maximum.
    """
    at, lowest = _windows("max_pool", x, window, strides, padding), lowest_of("max_pool", x)
    search = functools.partial(_search, at, lowest)
    reduce = functools.partial(_reduce, at, lowest)
    best, place = jax.lax.platform_dependent(fold(x, len(at.sizes)), tpu=reduce, default=search)
    return unfold(best, x), (place, x)


def _search(at, lowest, x):
    """The maxima, and their positions in their windows."""
    dtype, best, place, step = place_dtype(math.prod(at.window)), x, None, 1
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
    return best, place


def _reduce(at, lowest, x):
    """The maxima, and zeros in place of their positions."""
    pads = ((0, 0), *at.padding, (0, 0))
    best = jax.lax.reduce_window(x, lowest, jax.lax.max, *_whole(at), pads)
    return best, jnp.zeros_like(best, place_dtype(math.prod(at.window)))


def max_pool_bwd(residuals, dy, *, window, strides, padding):
    """The cotangent of x.

    ∂y_oc/∂x_pc = 1 if p is the position of the maximum in window o, else 0. With p + low = i·s + r,
    window o = i − q reads p with its tap t = q·s + r, so

        dx_pc = Σ_q dy_(i−q, c) [place_(i−q, c) = q·s + r].                                   (1)

    The sum has one term if windows do not overlap. Autodiff of `reduce_window` saves x and searches
    for the maximum again, window by window; that is what a TPU has an instruction for.
    """
    place, x = residuals
    at = _windows("max_pool", x, window, strides, padding)
    send = functools.partial(_send_back, at)
    again = functools.partial(_search_again, at, lowest_of("max_pool", x))
    args = place, fold(x, len(at.sizes)), fold(dy, len(at.sizes))
    dx = jax.lax.platform_dependent(*args, tpu=again, default=send)  # (1)
    return (unfold(dx, x),)


def _search_again(at, lowest, place, x, g):
    """Equation (1) by the operation SelectAndScatter, the transpose of `reduce_window`."""
    return jax.vjp(lambda x: _reduce(at, lowest, x)[0], x)[1](g)[0]


def _send_back(at, place, x, g):
    def term(tap, place, g):
        tap = jnp.asarray(tap)
        return jnp.where((place == tap.astype(place.dtype)) & (tap >= 0), g, jnp.zeros_like(g))

    return spread(term, (place, g), at, reach(at))  # (1)


max_pool.defvjp(max_pool_fwd, max_pool_bwd)


@rule(inexact=("x",))
def avg_pool(
    x: Num[AnyArray, "... c"],
    *,
    window: Ints,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Inexact[Array, "... c"]:
    """Average pooling: the mean of each channel in windows that slide over 1 to 3 spatial axes.

        y_oc = (1/n_o) Σ_t x_(o·s + t − low, c),   t ∈ window

    The padding is 0. n_o is the window size or, if padding is not counted or the window is cut off,
    the number of positions in window o that are not padding.

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      window: Window size on each of 1 to 3 spatial axes; an int k means (k, k). Static.
      strides: s ≥ 1, one int for all axes or one per axis; None for the window size. Static.
      padding: "VALID" (no padding), "SAME" (⌈n / s⌉ windows on an axis of length n; if the padding
        is odd, the extra element goes at the end), "CEIL" (as "VALID", and if a rest is left at the
        end, a last window for it, which is cut off) or one pair (low, high) per spatial axis, less
        than the window. Static.
      count_include_pad: Whether n_o counts padding. Static.

    Returns:
      y, shape (..., *out, c), with the dtype of x, or the default float for integers.

    Raises:
      ValueError: If shapes or options do not fit.

    Reference: LeCun et al., 1998, Proceedings of the IEEE 86, section II.B, subsampling.

    >>> avg_pool(jnp.array([[1.0], [5.0], [2.0], [4.0]]), window=(2,)).ravel().tolist()
    [3.0, 3.0]
    """
    x = jnp.asarray(x)
    at = _windows("avg_pool", x, window, strides, padding)
    by_stage = functools.partial(_sums_by_stage, at)
    at_once = functools.partial(_reduced_sums, at=at)  # a TPU has an instruction for it
    total = jax.lax.platform_dependent(widen(fold(x, len(at.sizes))), tpu=at_once, default=by_stage)
    count = _counts(at, count_include_pad and padding != "CEIL", total.dtype)
    return unfold(total / count, x).astype(x.dtype)


def _sums_by_stage(at: Windows, x: Array) -> Array:
    """The sum of each window, along one axis after another."""
    return functools.reduce(_window_sums, stages(at), x)


def _window_sums(x: Array, at: Windows) -> Array:
    if math.prod(at.window) <= MOST_TERMS:
        return functools.reduce(operator.add, taps(x, at))
    return _reduced_sums(x, at)


def _reduced_sums(x: Array, at: Windows) -> Array:
    pads = ((0, 0), *at.padding, (0, 0))
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, *_whole(at), pads)


def _counts(at: Windows, include_pad: bool, dtype: Any) -> np.ndarray | float:
    """n_o: one number, or shape (1, *out, 1) if it differs between windows."""
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

    The sum is computed along one axis after another; on a TPU it is one `reduce_window` over dy/n
    with s − 1 zeros between its elements.
    """
    at = _windows("avg_pool", empty, window, strides, padding)
    g = widen(fold(dy, len(at.sizes)))
    g = g / _counts(at, count_include_pad and padding != "CEIL", g.dtype)
    by_stage, at_once = (functools.partial(f, at) for f in (_spread_by_stage, _spread_at_once))
    dx = jax.lax.platform_dependent(g, tpu=at_once, default=by_stage)  # (1)
    return (unfold(dx, empty).astype(dy.dtype),)


def _spread_by_stage(at, g):
    term = lambda tap, g: jnp.where(jnp.asarray(tap) >= 0, g, jnp.zeros_like(g))
    for stage in reversed(stages(at)):
        g = spread(term, (g,), stage, reach(stage))
    return g


def _spread_at_once(at, g):
    """The sums, over a window, of g with s − 1 zeros between its elements and zeros around them."""
    pads = [
        (k - 1 - low, n + low - 1 - s * (o - 1), s - 1)
        for n, k, s, (low, _), o in zip(
            at.sizes, at.window, at.strides, at.padding, at.out, strict=True
        )
    ]
    apart = jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    ones, valid = (1,) * g.ndim, ((0, 0),) * g.ndim
    return jax.lax.reduce_window(apart, 0.0, jax.lax.add, (1, *at.window, 1), ones, valid)


avg_pool.defvjp(avg_pool_fwd, avg_pool_bwd)
