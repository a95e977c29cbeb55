"""When is a cotangent right? The one answer of this project, for its tests and for its checker.

**The algebra**, in float64. Two programs for one gradient may differ by what rounding explains,

    |h − t| ≤ 8 ε|t| + 8 (n_h + n_t) + 4 ε max|t| + ν,

with the hand-written h, the reference t, the noise n of each (`funcnet.check.rounding`), ε of the
dtype and ν its smallest normal number. The noise is that of 64 units in the last place, so this is
about 10⁻¹³ of the terms that the element is made of: what is above it is another formula.

**The accuracy**, in the dtype that is used. With a truth t from float64 (the rule's or autodiff's,
whichever has the smaller noise), and s the largest change of t under ±1 ulp in all arguments and
cotangents, of 12 random ones,

    r = max |h − t| / (8 ε|t| + 8 s + 8 n + ν)

is the error over what the arguments' own rounding explains: at most 1, or at most twice that of
autodiff, or autodiff fails too and the next clause holds. An error below two ulps of the largest
element is a warning only. And over 8 cotangents the rule must not be far behind autodiff: within 4
times its root mean square error (and one ulp) or 4 times its largest (and two ulps); `strict` asks
for 1.05 (and ¼ ulp) and 2 (and one ulp), and makes the warning a finding.

Reference: Griewank, Kulshreshtha, Walther, On the numerical stability of algorithmic
differentiation, 2012: autodiff is backward stable, which is why the bound is of this kind.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Worst(NamedTuple):
    """The element with the largest error over what is allowed."""

    ratio: float  # at most 1 is right
    place_of: tuple[int, ...]
    actual: Any
    expected: Any
    wrong: np.ndarray  # which elements are

    @property
    def place(self) -> str:
        """The element: "at [2, 0] it is 3.1, must be 1.5"."""
        at = f"at {list(self.place_of)} " if self.place_of else ""
        return f"{at}it is {_number(self.actual)}, must be {_number(self.expected)}"


def _number(x: Any) -> str:
    x = complex(x)
    return f"{x:.6g}" if x.imag else f"{x.real:.6g}"


def eps(dtype: Any) -> float:
    """The distance from 1 to the next number of this dtype."""
    return float(jnp.finfo(dtype).eps)


def as_wide(x: Any) -> np.ndarray:
    """As float64 or complex128."""
    is_complex = jnp.issubdtype(jnp.result_type(x), jnp.complexfloating)
    return np.asarray(x).astype(np.complex128 if is_complex else np.float64)


def worst(actual: Any, expected: Any, allowed: Any) -> Worst:
    """Compares where `expected` is finite; an `actual` that is not has an infinite ratio there."""
    a, e = as_wide(actual), as_wide(expected)
    allowed = np.broadcast_to(np.asarray(allowed, np.float64), e.shape)
    with np.errstate(all="ignore"):
        ratios = np.abs(a - e) / allowed
    ratios = np.where(np.isfinite(a), ratios, np.inf)
    ratios = np.where(np.isfinite(e) & ~(np.isinf(allowed) & np.isfinite(a)), ratios, 0.0)
    ratios = np.where(a == e, 0.0, ratios)
    if not ratios.size:
        return Worst(0.0, (), 0.0, 0.0, ratios > 1)
    index = np.unravel_index(np.argmax(ratios), ratios.shape)
    index = tuple(int(i) for i in index)
    return Worst(float(ratios[index]), index, a[index], e[index], ratios > 1)


def algebra(
    truth: Any, noise_hand: Any, noise_truth: Any, dtype: Any, unit: float = 0.0
) -> np.ndarray:
    """What the algebra allows, for each element.

    `unit` is ε of the dtype that the rule is used in: it may compute in that one always.
    """
    t = np.abs(as_wide(truth))
    largest = t[np.isfinite(t)].max(initial=0.0)
    n_t, n_h = np.asarray(noise_truth, np.float64), np.asarray(noise_hand, np.float64)
    # A rule that is itself unstable in float64 is not right by that.
    n_h = np.minimum(n_h, np.maximum(100 * n_t, 1000 * max(unit, eps(dtype)) * largest))
    with np.errstate(invalid="ignore"):
        own = 8 * eps(dtype) * t
    tiny = float(jnp.finfo(dtype).tiny)
    return np.nan_to_num(own) + 8 * (n_h + n_t) + 4 * eps(dtype) * largest + tiny


def accuracy(truth: Any, spread: Any, noise: Any, dtype: Any) -> np.ndarray:
    """What the accuracy allows in this dtype, for each element."""
    t = np.abs(as_wide(truth))
    conditioning = np.asarray(spread, np.float64) + np.asarray(noise, np.float64)
    tiny = float(jnp.finfo(dtype).tiny)
    return 8 * eps(dtype) * np.nan_to_num(t) + 8 * conditioning + tiny


class Errors(NamedTuple):
    """Errors of one cotangent over several seeds, in units in the last place of its size."""

    rms: float  # of the root mean square of the truth
    largest: float  # of the largest element of the truth


def errors(computed: Any, truth: Any, dtype: Any) -> Errors:
    """The errors where both are finite."""
    c, t = as_wide(computed), as_wide(truth)
    both = np.isfinite(c) & np.isfinite(t)
    if not both.any():
        return Errors(0.0, 0.0)
    d, t = np.abs(c[both] - t[both]), np.abs(t[both])
    size, largest = np.sqrt((t**2).mean()), t.max()
    if size == 0:
        return Errors(0.0, 0.0) if not d.any() else Errors(np.inf, np.inf)
    ulp = eps(dtype)
    return Errors(float(np.sqrt((d**2).mean()) / (ulp * size)), float(d.max() / (ulp * largest)))


def not_inferior(hand: Errors, auto: Errors, *, strict: bool = False) -> bool:
    """Whether the rule is about as accurate as autodiff: see the head of this file."""
    if strict:
        return hand.rms <= 1.05 * auto.rms + 0.25 and hand.largest <= 2 * auto.largest + 1
    return hand.rms <= 4 * auto.rms + 1 or hand.largest <= 4 * auto.largest + 2
