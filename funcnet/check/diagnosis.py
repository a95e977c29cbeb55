"""Guess the cause of a wrong cotangent by trying common patterns."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from funcnet.check.criterion import as_wide

REPEATED = "only elements at indices that appear more than once in {} are wrong: add there, not set"


class Case(NamedTuple):
    """A wrong cotangent, and what it may be made of."""

    h: np.ndarray  # the wrong cotangent
    t: np.ndarray  # the right cotangent, of the same shape
    wrong: np.ndarray  # mask of the wrong elements
    x: np.ndarray  # the argument
    cotangents: Mapping[str, np.ndarray]  # the right cotangents of the other arguments, by name
    values: Mapping[str, np.ndarray]  # arguments, outputs and their cotangents, by name
    sizes: Mapping[int, str]  # 4 → "size of axis 0 of x"
    integers: Mapping[str, np.ndarray]  # integer arguments, by name

    def is_close(self, a: Any, b: Any) -> bool:
        """Whether a equals b, up to small errors relative to the right cotangent."""
        largest = np.abs(self.t).max(initial=0.0)
        with np.errstate(all="ignore"):
            return bool(np.allclose(a, b, rtol=1e-5, atol=1e-7 * largest))


def cause(
    hand: Any,
    truth: Any,
    wrong: np.ndarray,
    argument: Any,
    *,
    cotangents: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    sizes: Mapping[int, str] | None = None,
    integers: Mapping[str, Any] | None = None,
) -> str:
    """One sentence on the likely cause of a difference, or an empty string.

    Args:
      hand: The wrong cotangent.
      truth: The right cotangent, of the same shape.
      wrong: Mask of the wrong elements.
      argument: The value of the argument.
      cotangents: The right cotangents of the other arguments, by name.
      values: The arguments, the outputs and the cotangents of the outputs, by name.
      sizes: The names of sizes: 4 → "size of axis 0 of x".
      integers: The integer arguments, by name.
    """
    wide = lambda arrays: {name: as_wide(a) for name, a in (arrays or {}).items()}
    c = Case(
        *(as_wide(hand), as_wide(truth), wrong, as_wide(argument)),
        *(wide(cotangents), wide(values), sizes or {}, integers or {}),
    )
    finite = np.isfinite(c.h) & np.isfinite(c.t)
    if not finite.all():
        return of_nonfinite(c.h, finite, c.x)
    for pattern in (_whole, _equal, _multiple, _moved, _elementwise, _summed):
        for sentence in pattern(c):
            return sentence
    share = wrong.mean() if wrong.size else 0.0
    if 0 < share < 1:
        return next(_where(c, share)) + _there(c)
    local = c.h[wrong] / np.where(c.t[wrong] == 0, np.nan, c.t[wrong])
    if np.isfinite(local).all() and np.std(local) < 1e-5 * np.abs(local).mean():
        return _factor(c, complex(local.mean()))
    return ""


def _whole(c: Case) -> Iterator[str]:
    if not c.t.any():
        yield "the right cotangent is zero everywhere"
    elif not c.h.any():
        yield "it is zero: it is never computed, or it is cut by stop_gradient"
    elif c.is_close(c.h, -c.t):
        yield "it is the negative of the right cotangent: a sign error"
    elif np.iscomplexobj(c.h):
        convention = "JAX's convention needs no conjugate here"
        if c.is_close(c.h, c.t.conj()):
            yield f"it is the conjugate of the right cotangent: {convention}"
        for name, dy in c.values.items():
            is_dy = name.startswith("the cotangent") and dy.shape == c.h.shape
            if is_dy and c.is_close(c.h, (c.t / dy).conj() * dy):
                yield f"it contains the conjugate of the right derivative: {convention}"


def _equal(c: Case) -> Iterator[str]:
    for name, other in c.cotangents.items():
        if c.t.size > 1 and other.shape == c.h.shape and c.is_close(c.h, other):
            yield f"it equals {name}: arguments or factors are exchanged"


def _multiple(c: Case) -> Iterator[str]:
    factor = np.vdot(c.t, c.h) / np.vdot(c.t, c.t)
    if c.t.size == 1 or c.is_close(c.h, factor * c.t):
        yield _factor(c, complex(factor))


def _moved(c: Case) -> Iterator[str]:
    """The right elements at wrong places."""
    is_square = c.h.ndim >= 2 and c.h.shape[-1] == c.h.shape[-2]
    if is_square and c.is_close(c.h, np.swapaxes(c.t, -1, -2)):
        yield "it is the transpose of the right cotangent"
    for axis in range(c.h.ndim):
        if c.h.shape[axis] > 1 and c.is_close(c.h, np.flip(c.t, axis)):
            yield f"it is reversed along axis {axis}"


def _elementwise(c: Case) -> Iterator[str]:
    """A factor of each element is missing or superfluous."""
    fits = {name: v for name, v in c.values.items() if _broadcasts(v, c.h) and v.size > 1}
    for name, v in fits.items():
        if v.shape == c.h.shape and c.is_close(c.h, v):
            yield f"it equals {name}: factors are exchanged or missing"
    for name, v in fits.items():
        if c.is_close(c.h, c.t * v):
            yield f"it is the right cotangent times {name}: a superfluous factor"
        elif v.all() and c.is_close(c.h, c.t / v):
            yield f"it is the right cotangent divided by {name}: a missing factor"


def _summed(c: Case) -> Iterator[str]:
    """A sum over an axis is missing, or a factor that does not vary along it."""
    d = c.h - c.t
    axes = [a for a in range(c.h.ndim) if c.h.shape[a] > 1 and (c.h.shape[a] - 1) * c.h.size >= 6]
    for axis in axes:
        if c.is_close(d + c.t, np.mean(d, axis, keepdims=True) + c.t):
            yield (
                f"the error is constant along axis {axis}: a mean or sum over that axis is missing "
                "or superfluous"
            )
    if c.wrong.mean() <= 0.5:  # a line or two, of which `_where` tells more
        return
    same = [(name, v) for name, v in c.values.items() if v.shape == c.h.shape]
    for axis in axes:
        centered = [(f"{n} minus its mean", v - v.mean(axis, keepdims=True)) for n, v in same]
        for name, v in (*same, *centered):
            if c.is_close(c.h, c.t + _along(v, d, axis)):
                yield (
                    f"along axis {axis} the error is a multiple of {name}: a term with a sum over "
                    "that axis is missing or superfluous"
                )
        if c.h.ndim > 1 and c.is_close(c.h, _along(c.t, c.h, axis)):
            yield (
                f"along axis {axis} it is a multiple of the right cotangent: a factor that does "
                "not vary along that axis is wrong or missing"
            )


def _broadcasts(v: np.ndarray, h: np.ndarray) -> bool:
    return v.ndim <= h.ndim and all(
        n in (1, m) for n, m in zip(v.shape[::-1], h.shape[::-1], strict=False)
    )


def _along(v: np.ndarray, d: np.ndarray, axis: int) -> np.ndarray:
    """The multiple of v, one factor per line along the axis, that is closest to d."""
    size = (np.abs(v) ** 2).sum(axis, keepdims=True)
    return v * (v.conj() * d).sum(axis, keepdims=True) / np.where(size == 0, 1, size)


def of_nonlinearity(first: Any, second: Any, small: Any, zero: Any, scale: float) -> str:
    """How a cotangent that is not linear depends on the cotangent dy of the output.

    Args:
      first: The cotangent for a random dy.
      second: That for another one.
      small: That for the first one times `scale`.
      zero: That for zero.
      scale: A small number.
    """
    close = lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-7 * np.abs(b).max(initial=0.0))
    if close(first, second) and close(small, zero):
        return "bwd ignores dy: multiply by it"
    if np.any(zero) and close(small, scale * (first - zero) + zero):
        return "something is added in bwd that dy does not multiply"
    if close(small, first):
        return "bwd uses no more of dy than its sign or its direction"
    if close(small, scale**2 * first):
        return "dy is squared in bwd, or multiplied twice"
    return "usually dy is clipped, normalised or compared with something in bwd"


def of_nonfinite(h: np.ndarray, finite: np.ndarray, x: np.ndarray) -> str:
    """The likely cause where a cotangent is not finite; `finite` is the mask of the others."""
    bad = x[~finite] if x.shape == h.shape else x
    if bad.size and (bad == 0).all():
        return "this happens where the argument is 0: a division by it, or its logarithm"
    if bad.size and np.abs(bad).min() > 20:
        return (
            "this happens where the argument is large: an exponential overflows, or infinities are "
            "subtracted"
        )
    return "a division by zero or an overflow on a branch that jnp.where does not select"


def _factor(c: Case, factor: complex) -> str:
    is_real = abs(factor.imag) < 1e-6 * abs(factor)
    start = f"it is {factor.real if is_real else factor:.6g} times the right cotangent"
    near = lambda value: bool(np.isclose(factor, value, rtol=1e-4))
    for n, what in c.sizes.items():
        if n > 1 and near(1 / n):
            return f"{start}, 1/{n}, and {n} is the {what}: a mean where a sum belongs"
        if n > 1 and near(n):
            return f"{start}, the {what}: a sum where a mean belongs"
    for name, v in c.values.items():
        value = v.ravel()[0] if v.size == 1 else 1.0
        if abs(value) not in (0, 0.5, 1, 2) and (near(value) or near(1 / value)):
            if near(value):
                return f"{start}, {name}: a superfluous factor"
            return f"{start}, 1 over {name}: a missing factor"
    roots = [
        f"√{n}, and {n} is the {what}: a scale 1/√{n}"
        for n, what in c.sizes.items()
        if n > 1 and (near(n**0.5) or near(n**-0.5))
    ]
    is_usual = near(2) or near(0.5)
    usual = "the factor 2 of a square or the ½ of a definition"
    if roots:
        return f"{start}: {roots[0]} is wrong or missing{f', or {usual}' if is_usual else ''}"
    return f"{start}: {usual if is_usual else 'a constant factor'}"


def _where(c: Case, share: float) -> Iterator[str]:
    """In which places the wrong elements are."""
    x, wrong = c.x, c.wrong
    for name, n in c.integers.items():
        values, counts = np.unique(n, return_counts=True)
        repeated = np.isin(np.arange(wrong.shape[0]), values[counts > 1])
        if (wrong.any(tuple(range(1, wrong.ndim))) == repeated).all():
            yield REPEATED.format(name)
    if wrong.sum() == 1:
        at = f", where the argument is {x[wrong][0]:.3g}" if x.shape == wrong.shape else ""
        yield f"only this element is wrong{at}"
    for axis in range(wrong.ndim):
        rest = tuple(a for a in range(wrong.ndim) if a != axis)
        along = wrong.any(rest)
        if along.sum() == 1 and wrong.shape[axis] > 2:
            yield f"only elements with index {int(along.argmax())} of axis {axis} are wrong"
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
        inside, outside = np.abs(x[wrong]), np.abs(x[~wrong])
        if inside.min() > outside.max():
            yield f"only elements with |argument| above {outside.max():.3g} are wrong"
        if inside.max() < outside.min():
            yield f"only elements with |argument| below {outside.min():.3g} are wrong"
    yield f"{share:.0%} of the elements are wrong"


def _there(c: Case) -> str:
    """What the wrong elements have in common, after the sentence that tells where they are."""
    h, t = c.h[c.wrong], c.t[c.wrong]
    if not h.any():
        return "; there it is zero"
    if not t.any():
        return "; there the right cotangent is zero"
    if c.is_close(h, -t):
        return "; there it is the negative of the right cotangent"
    factor = np.vdot(t, h) / np.vdot(t, t)
    if h.size > 2 and c.is_close(h, factor * t):
        return f"; there {_factor(c, complex(factor))}"
    return ""
