"""Guess the cause of a wrong cotangent by trying common patterns."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from funcnet.check.criterion import as_wide


def cause(
    hand: Any,
    truth: Any,
    wrong: np.ndarray,
    argument: Any,
    others: Mapping[str, Any],
    sizes: Mapping[int, str],
) -> str:
    """One sentence on the likely cause of a difference, or an empty string.

    Args:
      hand: The wrong cotangent.
      truth: The right cotangent, of the same shape.
      wrong: Mask of the wrong elements.
      argument: The value of the argument, of the same shape.
      others: The right cotangents of the other arguments, all arguments, and the output
        cotangents, by name.
      sizes: The names of sizes: 4 → "size of axis 0 of x".
    """
    h, t, x = as_wide(hand), as_wide(truth), as_wide(argument)
    for sentence in _patterns(h, t, wrong, x, others, sizes):
        return sentence
    return ""


def _patterns(
    h: np.ndarray,
    t: np.ndarray,
    wrong: np.ndarray,
    x: np.ndarray,
    others: Mapping[str, Any],
    sizes: Mapping[int, str],
) -> Iterator[str]:
    close = lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-7 * np.abs(t).max(initial=0.0))
    finite = np.isfinite(h) & np.isfinite(t)
    if not finite.all():
        yield from _nonfinite(h, finite, x)
        return
    if not t.any():
        yield "the right cotangent is zero everywhere"
        return
    if not h.any():
        yield "it is zero: it is never computed, or it is cut by stop_gradient"
        return
    if close(h, -t):
        yield "it is the negative of the right cotangent: a sign error"
        return
    if np.iscomplexobj(h) and close(h, t.conj()):
        yield "it is the conjugate of the right cotangent: JAX's convention needs no conjugate here"
        return
    factor = np.vdot(t, h) / np.vdot(t, t)
    if t.size == 1 or close(h, factor * t):
        yield _factor(factor.real, sizes)
        return
    if h.ndim >= 2 and h.shape[-1] == h.shape[-2] and close(h, np.swapaxes(t, -1, -2)):
        yield "it is the transpose of the right cotangent"
        return
    for axis in range(h.ndim):
        if h.shape[axis] > 1 and close(h, np.flip(t, axis)):
            yield f"it is reversed along axis {axis}"
            return
    for name, other in others.items():
        other = as_wide(other)
        if other.shape == h.shape and close(h, other):
            yield f"it equals {name}: arguments or factors are exchanged or missing"
            return
    d = h - t
    for axis in range(h.ndim):
        if h.shape[axis] > 1 and close(d + t, np.mean(d, axis, keepdims=True) + t):
            yield (
                f"the error is constant along axis {axis}: a mean or sum over that axis is missing "
                "or superfluous"
            )
            return
    share = wrong.mean() if wrong.size else 0.0
    if 0 < share < 1:
        yield from _where(wrong, x, share)
        return
    local = h[wrong] / np.where(t[wrong] == 0, np.nan, t[wrong])
    if np.isfinite(local).all() and np.std(local) < 1e-5 * np.abs(local).mean():
        yield _factor(float(np.real(local.mean())), sizes)


def _nonfinite(h: np.ndarray, finite: np.ndarray, x: np.ndarray) -> Iterator[str]:
    bad = x[~finite] if x.shape == h.shape else x
    if bad.size and (bad == 0).all():
        yield "this happens where the argument is 0: a division by it, or its logarithm"
    elif bad.size and np.abs(bad).min() > 20:
        yield (
            "this happens where the argument is large: an exponential overflows, or infinities are "
            "subtracted"
        )
    else:
        yield "a division by zero or an overflow on a branch that jnp.where does not select"


def _factor(factor: float, sizes: Mapping[int, str]) -> str:
    start = f"it is {factor:.6g} times the right cotangent"
    for n, what in sizes.items():
        if n > 1 and np.isclose(factor, 1 / n, rtol=1e-4):
            return f"{start}, 1/{n}, and {n} is the {what}: a mean where a sum belongs"
        if n > 1 and np.isclose(factor, n, rtol=1e-4):
            return f"{start}, the {what}: a sum where a mean belongs"
    if np.isclose(factor, 2, rtol=1e-4) or np.isclose(factor, 0.5, rtol=1e-4):
        return f"{start}: the factor 2 of a square or the ½ of a definition"
    return f"{start}: a constant factor"


def _where(wrong: np.ndarray, x: np.ndarray, share: float) -> Iterator[str]:
    if wrong.sum() == 1:
        yield "only this element is wrong"
        return
    for axis in range(wrong.ndim):
        rest = tuple(a for a in range(wrong.ndim) if a != axis)
        along = wrong.any(rest)
        if along.sum() == 1 and wrong.shape[axis] > 2:
            yield f"only elements with index {int(along.argmax())} of axis {axis} are wrong"
            return
    if x.shape == wrong.shape and not np.iscomplexobj(x):
        for name, region in {
            "negative": x < 0,
            "positive": x > 0,
            "zero": x == 0,
            "not positive": x <= 0,
            "not negative": x >= 0,
        }.items():
            if region.any() and not region.all() and (wrong == region).all():
                yield f"all elements where the argument is {name} are wrong, no others: one branch"
                return
        if wrong.any() and not wrong.all():
            inside, outside = np.abs(x[wrong]), np.abs(x[~wrong])
            if inside.min() > outside.max():
                yield f"only elements with |argument| above {outside.max():.3g} are wrong"
                return
            if inside.max() < outside.min():
                yield f"only elements with |argument| below {outside.min():.3g} are wrong"
                return
    yield f"{share:.0%} of the elements are wrong"
