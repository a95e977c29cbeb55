"""The criterion for a right cotangent, shared by the tests and the checker of this project.

**The algebra** is compared in float64. Two programs for the same gradient may differ by what
rounding explains,

    |h − t| ≤ 8 ε|t| + 8 (n_h + n_t) + 4 ε max|t| + ν + min(8 s, 10⁻⁴ max|t|),

where h is the hand-written cotangent, t the reference, n_h and n_t the noise of each
(`funcnet.check.rounding`), ε the machine epsilon of the dtype and ν its smallest normal number. The
noise comes from perturbations of 64 units in the last place, so the bound is about 10⁻¹³ of the
terms that are summed in the element. s is the change of t if the arguments change by 1 ulp of their
own dtype, 0 if that is float64: a formula may use what holds up to this rounding. A larger
difference means that the formulas differ. If t comes from finite differences, 10⁻⁴ max|t| more is
allowed (`funcnet.check.algebra`), because the plain forward may be a solver that stops early.

**The accuracy** is measured in the working dtype. The truth t is a float64 cotangent (the rule's or
autodiff's, whichever has the smaller noise), n is its noise, and s is the largest change of t over
12 random perturbations of all arguments and cotangents by ±1 ulp. Then

    r = max |h − t| / (8 ε|t| + 8 s + 8 n + ν)

is the error divided by what rounding of the arguments explains. It must be at most 1 or at most
twice that of autodiff; if autodiff exceeds 1 too, the next condition alone decides. An error below
two ulps of the largest element is only a warning. Over 8 cotangents the rule must also be nearly as
accurate as autodiff: within 4 times its root mean square error (plus one ulp) or 4 times its
largest error (plus two ulps). `strict` requires both 1.05 times (plus ¼ ulp) and 2 times (plus one
ulp), and turns the warning into a finding.

Reference: Griewank, Kulshreshtha, Walther, On the numerical stability of algorithmic
differentiation, 2012: autodiff is backward stable, which is why the bound has this form.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Worst(NamedTuple):
    """The element with the largest ratio of its error to the allowed error."""

    ratio: float  # right if at most 1
    place_of: tuple[int, ...]
    actual: Any
    expected: Any
    wrong: np.ndarray  # mask of the wrong elements

    @property
    def place(self) -> str:
        """The element in words: "at [2, 0] it is 3.1, must be 1.5"."""
        at = f"at {list(self.place_of)} " if self.place_of else ""
        return f"{at}it is {_number(self.actual)}, must be {_number(self.expected)}"


def _number(x: Any) -> str:
    x = complex(x)
    return f"{x:.6g}" if x.imag else f"{x.real:.6g}"


def eps(dtype: Any) -> float:
    """The distance from 1 to the next number of this dtype."""
    return float(jnp.finfo(dtype).eps)


def real_dtype(x: Any) -> Any:
    """The real dtype with the precision of an array."""
    return jnp.finfo(x.dtype).dtype


def as_wide(x: Any) -> np.ndarray:
    """Converts x to a NumPy array of float64 or complex128."""
    is_complex = jnp.issubdtype(jnp.result_type(x), jnp.complexfloating)
    return np.asarray(x).astype(np.complex128 if is_complex else np.float64)


def worst(actual: Any, expected: Any, allowed: Any) -> Worst:
    """Compares where `expected` is finite; a nonfinite `actual` has an infinite ratio there."""
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
    """The difference that the algebra gate allows, one number per element.

    `unit` is ε of the working dtype: the rule may compute in it even for wider arguments.
    """
    t = np.abs(as_wide(truth))
    largest = t[np.isfinite(t)].max(initial=0.0)
    n_t, n_h = np.asarray(noise_truth, np.float64), np.asarray(noise_hand, np.float64)
    # Limit the noise of the rule: an unstable rule must not pass because it is unstable.
    n_h = np.minimum(n_h, np.maximum(100 * n_t, 1000 * max(unit, eps(dtype)) * largest))
    with np.errstate(invalid="ignore"):
        own = 8 * eps(dtype) * t
    tiny = float(jnp.finfo(dtype).tiny)
    return np.nan_to_num(own) + 8 * (n_h + n_t) + 4 * eps(dtype) * largest + tiny


def accuracy(truth: Any, spread: Any, noise: Any, dtype: Any) -> np.ndarray:
    """The error that the accuracy gate allows in this dtype, one number per element."""
    t = np.abs(as_wide(truth))
    conditioning = np.asarray(spread, np.float64) + np.asarray(noise, np.float64)
    tiny = float(jnp.finfo(dtype).tiny)
    return 8 * eps(dtype) * np.nan_to_num(t) + 8 * conditioning + tiny


def near(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether a is close to b wherever b is finite, relative to the largest such element."""
    finite = np.isfinite(b)
    largest = np.abs(b[finite]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(a - b)[finite] <= tolerance * largest).all())


class Errors(NamedTuple):
    """Errors of one cotangent over several seeds, in units in the last place (ulps)."""

    rms: float  # in ulps of the root mean square of the truth
    largest: float  # in ulps of the largest element of the truth


def errors(computed: Any, truth: Any, dtype: Any) -> Errors:
    """The errors over the elements where both arrays are finite."""
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
    """Whether the rule is about as accurate as autodiff (see the module docstring)."""
    if strict:
        return hand.rms <= 1.05 * auto.rms + 0.25 and hand.largest <= 2 * auto.largest + 1
    return hand.rms <= 4 * auto.rms + 1 or hand.largest <= 4 * auto.largest + 2
