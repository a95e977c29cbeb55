"""The algebra gate: compare value, linearity and cotangents in float64; explain differences."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion
from funcnet.check.diagnosis import cause
from funcnet.check.failures import line
from funcnet.check.points import (
    COMBINATION,
    COMBINED,
    FIRST,
    MOVED,
    SCALE,
    SECOND,
    SMALL,
    ZERO,
    Numbers,
    Points,
    at_point,
    numbers_from,
    points_of,
    programs_of,
)
from funcnet.check.programs import QUICK, run_all
from funcnet.check.reference import (
    Along,
    Outputs,
    along_directions,
    by_differences,
    cotangents,
    pullback,
)
from funcnet.check.report import Log
from funcnet.check.subject import Subject
from funcnet.check.tracing import twin

DIFFERENCES = "finite differences"


class Evidence(NamedTuple):
    """The numbers on which the verdict on a rule is based."""

    plain: Outputs  # the function with every rule replaced by autodiff
    reference_outputs: Outputs  # the function with the right gradient: plain or truth
    against: str  # the name of the reference in messages
    points: Points
    floats: tuple[Any, ...]  # the arguments, in the dtype of the comparison
    hand: Numbers
    reference: Numbers
    along: Along | None  # finite differences along one direction per argument
    tolerance: float
    unit: float  # ε of the coarsest dtype among the arguments

    def noise(self) -> float:
        """The largest finite noise of the cotangents, each relative to its largest element."""
        largest = 0.0
        for n, t in zip(self.hand.noise, self.reference.cotangents, strict=True):
            n, t = n[FIRST], np.abs(t[FIRST])
            size = t[np.isfinite(t)].max(initial=0.0)
            largest = max(largest, n[np.isfinite(n)].max(initial=0.0) / size if size else 0.0)
        return float(largest)


def gather(log: Log, truth: Subject | None, tolerance: float, floats: Any) -> Evidence:
    """Runs the rule and the reference; an exception of the rule propagates.

    `floats` are the arguments in the dtype of the comparison.
    """
    s = log.subject
    plain = twin(s.outputs)
    jax.eval_shape(pullback(s.outputs), floats, s.others, cotangents(plain, floats, s.others, 0))
    points = points_of(plain, s.floats, floats, s.others)
    reference = truth.outputs if truth else plain
    against = "the truth" if truth else "autodiff"
    found = numbers(s.outputs, reference, points, s.others)
    if isinstance(found.hand, Exception):
        raise found.hand
    if isinstance(found.reference, Exception):
        against = DIFFERENCES
        why = line(found.reference)
        log.warn(f"compared with {against}, because autodiff of the plain forward raises {why}")
        found = Both(found.hand, _from_differences(reference, points, s.others, found.hand))
    log.progress(DIFFERENCES)
    try:
        along = along_directions(plain, floats, s.others, tuple(d[FIRST] for d in points.dout))
    except Exception as e:
        log.warn(f"no {DIFFERENCES}, because the plain forward raises {line(e)}")
        along = None
    unit = max(criterion.eps(leaf.dtype) for leaf in s.floats)
    return Evidence(
        plain,
        reference,
        against,
        points,
        floats,
        found.hand,
        found.reference,
        along,
        tolerance,
        unit,
    )


class Both(NamedTuple):
    """The numbers of the rule and of the reference, or the exceptions that they raised."""

    hand: Any
    reference: Any


def numbers(outputs: Outputs, reference: Outputs, points: Points, others: Any) -> Both:
    """The gradients of the rule and of the reference at all points."""
    programs = programs_of(outputs, points, others)
    try:
        jax.eval_shape(pullback(reference), *at_point(points, FIRST, others))
    except Exception as e:
        return Both(numbers_from(run_all(programs, QUICK)), e)
    results = run_all([*programs, *programs_of(reference, points, others)], QUICK)
    return Both(numbers_from(results[: len(programs)]), numbers_from(results[len(programs) :]))


def _from_differences(outputs: Outputs, points: Points, others: Any, hand: Numbers) -> Numbers:
    """The reference from finite differences instead of autodiff, at the first two points."""
    doubt = max(
        float((n / np.abs(y).max(initial=1e-300)).max(initial=0.0))
        for n, y in zip(hand.noise_out, hand.out, strict=True)
    )
    two = [by_differences(outputs, *at_point(points, k, others), doubt) for k in (FIRST, SECOND)]
    pairs = [np.stack(leaves) for leaves in zip(*(t.cotangents for t in two), strict=True)]
    doubts = [np.stack(leaves) for leaves in zip(*(t.uncertainty for t in two), strict=True)]
    floats, _, _ = at_point(points, FIRST, others)
    out = [np.stack([criterion.as_wide(y)] * 2) for y in jax.jit(outputs)(floats, others)]
    return Numbers(tuple(out), tuple(pairs), tuple(0 * np.abs(y) for y in out), tuple(doubts))


def check_algebra(log: Log, e: Evidence, eager: list[np.ndarray], nones: set[str]) -> None:
    """Checks value, linearity and cotangents in float64."""
    s = log.subject
    if e.against != "the truth":  # a truth may have another value (straight-through estimator)
        for i, name in enumerate(s.output_names()):
            _check_value(log, e, i, name)
    for i, name in enumerate(s.names):
        if e.along is not None:
            distance, size = _from_along(e.along, e.hand, i)
            log.row(name, finite=distance / size if size else 0.0)
        _check_linearity(log, e, i, name)
        _check_cotangent(log, e, i, name, eager[i], name in nones)


def _check_value(log: Log, e: Evidence, i: int, name: str) -> None:
    """Compares the value that fwd returns with that of the function."""
    h, t = e.hand.out[i][FIRST], e.reference.out[i][FIRST]
    noises = e.hand.noise_out[i][FIRST], e.reference.noise_out[i][FIRST]
    w = criterion.worst(h, t, criterion.algebra(t, *noises, _dtype(e.points.dout[i]), e.unit))
    if w.ratio > 1:
        log.find("value", name, f"the value that fwd returns: {w.place} as the function", w.ratio)


def _dtype(leaf: Any) -> Any:
    return jnp.finfo(leaf.dtype).dtype


def _check_linearity(log: Log, e: Evidence, i: int, name: str) -> None:
    """bwd(−1024 (d₀ + d₁)) = −1024 (bwd(d₀) + bwd(d₁)), bwd(d₀/8192) = bwd(d₀)/8192, bwd(0) = 0."""
    h, n = e.hand.cotangents[i], e.hand.noise[i]
    for k, what, expected, noise in (
        (
            COMBINED,
            "for the output cotangent −1024 (d + e)",
            COMBINATION * (h[FIRST] + h[SECOND]),
            abs(COMBINATION) * (n[FIRST] + n[SECOND]),
        ),
        (SMALL, "for the output cotangent d / 8192", SCALE * h[FIRST], SCALE * n[FIRST]),
        (ZERO, "for a zero output cotangent", 0 * h[FIRST], 0 * n[FIRST]),
    ):
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        slack = 1e-9 + e.tolerance + 64 * criterion.eps(_dtype(e.floats[i]))
        allowed = 64 * noise + slack * largest + float(np.finfo(np.float32).tiny)
        w = criterion.worst(h[k], expected, allowed)
        if w.ratio > 1:
            usual = (
                "Usually dy is clipped, squared, normalised or ignored in bwd, or something is "
                "added that it does not multiply"
            )
            log.find("linearity", name, f"{what}, {w.place}. {usual}", w.ratio)
            return


def _check_cotangent(
    log: Log, e: Evidence, i: int, name: str, eager: np.ndarray, is_none: bool
) -> None:
    h, t = e.hand.cotangents[i], e.reference.cotangents[i]
    k, w = max(((k, _compare(e, i, k)) for k in (FIRST, SECOND)), key=lambda pair: pair[1].ratio)
    log.row(name, error=w.ratio)
    if w.ratio <= 1:
        return
    seen = max(1e-4, 50 * e.unit)
    if _near(eager, t[FIRST], seen) and not _near(h[FIRST], t[FIRST], seen):
        log.find("jit", name, f"right eagerly, but under jax.jit {w.place}", w.ratio)
        return
    why, kind = _cause(log.subject, e, i, k, w), "gradient"
    if (~np.isfinite(h[k]) & np.isfinite(t[k])).any():
        kind = "nonfinite"
    elif is_none:
        kind, why = "none", "bwd returns None for it, which JAX treats as zero"
    elif len(t) > MOVED and (_compare(e, i, MOVED).ratio <= 1 or _near(h[MOVED], t[MOVED], 1e-9)):
        kind = "kink"
        why = (
            "the two agree once the arguments are moved off their ties, zeros and corners; there "
            f"the rule must return the same as {e.against}"
        )
    more = [f". {text[0].upper()}{text[1:]}" for text in (why, _opinion(e, i)) if text]
    log.find(kind, name, f"{w.place} according to {e.against}{''.join(more)}", w.ratio)


def _compare(e: Evidence, i: int, k: int) -> criterion.Worst:
    """Compares one cotangent at one point with the reference."""
    h, t = e.hand.cotangents[i][k], e.reference.cotangents[i][k]
    n_h, n_t = (n[k] if k <= SECOND else n.max(0) for n in (e.hand.noise[i], e.reference.noise[i]))
    largest = np.abs(t[np.isfinite(t)]).max(initial=0.0)
    allowed = criterion.algebra(t, n_h, n_t, _dtype(e.floats[i]), e.unit) + e.tolerance * largest
    return criterion.worst(h, t, allowed)


def _near(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether a is close to b wherever b is finite, relative to the largest such element."""
    finite = np.isfinite(b)
    largest = np.abs(b[finite]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(a - b)[finite] <= tolerance * largest).all())


def _cause(s: Subject, e: Evidence, i: int, k: int, w: criterion.Worst) -> str:
    others: dict[str, Any] = {}
    for j, name in enumerate(s.names):
        if j != i:
            others[f"the cotangent of {name}"] = e.reference.cotangents[j][k]
        others[f"the argument {name}"] = e.floats[j]
    sizes: dict[int, str] = {}
    leaves = [*zip(s.names, e.floats, strict=True)]
    for name, d in zip(s.output_names(), e.points.dout, strict=True):
        others[f"the cotangent of the output {name}"] = d[k]
        leaves.append((name, d[k]))
    for name, leaf in leaves:
        for axis, size in enumerate(leaf.shape):
            sizes.setdefault(size, f"size of axis {axis} of {name}")
        sizes.setdefault(leaf.size, f"number of elements of {name}")
    h, t = e.hand.cotangents[i][k], e.reference.cotangents[i][k]
    return cause(h, t, w.wrong, e.floats[i], others, sizes)


def _from_along(along: Along, numbers: Numbers, i: int) -> tuple[float, float]:
    """The distance of a cotangent from the finite difference, and the size of the terms."""
    terms = numbers.cotangents[i][FIRST] * criterion.as_wide(along.directions[i])
    return abs(float(np.real(terms.sum())) - float(along.values[i])), float(np.linalg.norm(terms))


def _opinion(e: Evidence, i: int) -> str:
    """Which of the two finite differences agree with, or "" if they cannot tell them apart."""
    if e.along is None or e.against == DIFFERENCES:
        return ""
    hand, _ = _from_along(e.along, e.hand, i)
    reference, size = _from_along(e.along, e.reference, i)
    if reference < 1e-6 * size and hand > 10 * reference:
        return f"finite differences agree with {e.against}"
    if hand < 1e-6 * size and reference > 10 * hand:
        return (
            f"finite differences agree with the rule, not with {e.against}: the plain forward has "
            "a stop_gradient, a corner, or a custom derivative"
        )
    return ""
