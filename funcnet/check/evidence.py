"""The evidence: what the rule and its reference compute at the same points."""

from typing import Any, NamedTuple

import jax
import numpy as np

from funcnet.check import criterion
from funcnet.check.failures import line
from funcnet.check.points import (
    COMBINATION,
    COMBINED,
    FIRST,
    REST,
    SECOND,
    SEEDS,
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
from funcnet.check.tangents import plain_of

AUTODIFF, TRUTH, INTENT = "autodiff", "the truth", "the intent"
DIFFERENCES = "finite differences"
DECLARED = TRUTH, INTENT
# Where differences are the reference, the plain forward is often a solver that stops early, whose
# own derivative differs from that of the solution.
SOLVED = 1e-4
START = 1e-5  # the influence of a solver's start, relative to the largest derivative
EXPLAINED = 1e-4  # the largest share of a cotangent that rounding of the arguments may explain


class Evidence(NamedTuple):
    """The numbers on which the verdict on a rule is based."""

    plain: Outputs  # the function with every rule replaced by autodiff
    reference_outputs: Outputs  # the function with the right gradient: plain or truth
    against: str  # the name of the reference in messages
    points: Points
    floats: tuple[Any, ...]  # the arguments, in the dtype of the comparison
    hand: Numbers
    reference: Numbers
    unmended: tuple[Any, ...]  # cotangents of the reference without finite differences
    along: Along | None  # finite differences along one direction per argument
    decided: frozenset[int]  # arguments for which finite differences overrule autodiff
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


class Reference(NamedTuple):
    """A function that has the right gradient, and its name in messages."""

    outputs: Outputs
    name: str


def gather(log: Log, declared: Reference | None, tolerance: float, floats: Any) -> Evidence:
    """Runs the rule and the reference; an exception of the rule propagates.

    The reference is the declared one, or else autodiff of the plain forward. `floats` are the
    arguments in the dtype of the comparison.
    """
    s = log.subject
    plain = plain_of(s)
    jax.eval_shape(pullback(s.outputs), floats, s.others, cotangents(plain, floats, s.others, 0))
    points = points_of(plain, s.floats, floats, s.others)
    reference, against = declared or Reference(plain, AUTODIFF)
    found = numbers(s.outputs, reference, points, s.others)
    if isinstance(found.hand, Exception):
        raise found.hand
    if isinstance(found.reference, Exception):
        if against == INTENT:
            raise found.reference
        against = DIFFERENCES
        why = line(found.reference)
        log.warn(f"compared with {against}, because autodiff of the plain forward raises {why}")
        found = Both(found.hand, _from_differences(reference, points, s.others))
    for unmeasured in (found.hand.unmeasured, getattr(found.reference, "unmeasured", "")):
        if unmeasured:
            log.warn(f"rounding was not measured, because in perturbed arithmetic {unmeasured}")
    if against != INTENT:
        log.progress(DIFFERENCES)
    decided: frozenset[int] = frozenset()
    unmended = found.reference.cotangents
    try:
        along = None
        if against != INTENT:
            outputs = reference if against == TRUTH else plain
            dout = tuple(d[FIRST] for d in points.dout)
            along = along_directions(outputs, floats, s.others, dout)
        if along is not None and against == AUTODIFF:
            decided = _overruled(along, found.hand, found.reference)
            found = Both(found.hand, _mended(plain, points, s.others, found.reference, decided))
    except Exception as e:
        log.warn(f"no {DIFFERENCES}, because the plain forward raises {line(e)}")
        along = None
    for i in decided:
        log.warn(
            f"{s.names[i]}: {DIFFERENCES} decide, which agree with the rule and not with autodiff "
            "of the plain forward (it has a stop_gradient, a loop, or a custom derivative)"
        )
    unit = max(criterion.eps(leaf.dtype) for leaf in s.floats)
    return Evidence(
        plain,
        reference,
        against,
        points,
        floats,
        found.hand,
        found.reference,
        unmended,
        along,
        decided,
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


def _from_differences(outputs: Outputs, points: Points, others: Any) -> Numbers:
    """The reference from finite differences instead of autodiff, at the first two points."""
    two = [by_differences(outputs, *at_point(points, k, others)) for k in (FIRST, SECOND)]
    pairs = [np.stack(leaves) for leaves in zip(*(t.cotangents for t in two), strict=True)]
    doubts = [np.stack(leaves) for leaves in zip(*(t.noise for t in two), strict=True)]
    floats, _, _ = at_point(points, FIRST, others)
    out = [np.stack([criterion.as_wide(y)] * 2) for y in jax.jit(outputs)(floats, others)]
    return Numbers(tuple(out), tuple(pairs), tuple(0 * np.abs(y) for y in out), tuple(doubts))


def _overruled(along: Along, hand: Numbers, reference: Numbers) -> frozenset[int]:
    """The arguments for which finite differences agree with the rule and not with autodiff."""
    found = []
    for i, (value, doubt) in enumerate(zip(along.values, along.noise, strict=True)):
        by_hand, size = from_along(along, hand, i)
        by_auto, _ = from_along(along, reference, i)
        size = max(size, abs(float(value)))
        near = 1e-6 * size + 10 * doubt
        is_certain = np.isfinite(size) and near < 1e-3 * size < by_auto
        if is_certain and by_hand < max(near, by_auto / 100):  # a solver may stop early
            found.append(i)
    return frozenset(found)


def _mended(
    plain: Outputs, points: Points, others: Any, reference: Numbers, decided: frozenset[int]
) -> Numbers:
    """The reference, from finite differences where autodiff is overruled, or not finite.

    At the other points it is nan where it is overruled: nothing is compared there.
    """
    finite = all(np.isfinite(y[: SECOND + 1]).all() for y in reference.out)
    masks = [
        np.ones(t.shape[1:], bool) if i in decided else ~np.isfinite(t[FIRST])
        for i, t in enumerate(reference.cotangents)
    ]
    if not finite or not any(m.any() for m in masks):
        return reference
    cotangents_, noises = list(map(np.copy, reference.cotangents)), [*map(np.copy, reference.noise)]
    for i in decided:
        cotangents_[i][:] = np.nan
    for k in (FIRST, SECOND):
        found = by_differences(plain, *at_point(points, k, others), masks)
        each = zip(masks, found.cotangents, found.noise, strict=True)
        for i, (mask, d, noise) in enumerate(each):
            cotangents_[i][k][mask] = d[mask]
            noises[i][k][mask] = noise[mask]
    return reference._replace(cotangents=tuple(cotangents_), noise=tuple(noises))


def compare(e: Evidence, i: int, k: int) -> criterion.Worst:
    """Compares one cotangent at one point with the reference."""
    h, t = e.hand.cotangents[i][k], e.reference.cotangents[i][k]
    noises = e.hand.noise[i], e.reference.noise[i]
    n_h, n_t = (n[k] if k <= SECOND else n.max(0) for n in noises)
    if k == COMBINED:
        n_h, n_t = 2 * abs(COMBINATION) * n_h, 2 * abs(COMBINATION) * n_t
    largest = np.abs(t[np.isfinite(t)]).max(initial=0.0)
    allowed = (
        criterion.algebra(t, n_h, n_t, criterion.real_dtype(e.floats[i]), e.unit)
        + e.tolerance * largest
    )
    if e.against == DIFFERENCES or i in e.decided:
        allowed = allowed + SOLVED * largest
        if not h.any():  # the start of a solver has influence only because the solver stops early
            allowed = allowed + START * _largest_of_all(e, k) / np.maximum(1, np.abs(e.floats[i]))
    return criterion.worst(h, t, allowed + explained(e, i, k, largest))


def _largest_of_all(e: Evidence, k: int) -> float:
    """The largest derivative by any argument, relative to the size of the argument, at least 1."""
    with np.errstate(invalid="ignore"):
        sizes = [
            np.abs(t[k]) * np.maximum(1, np.abs(x))
            for t, x in zip(e.reference.cotangents, e.floats, strict=True)
        ]
    return float(max(x[np.isfinite(x)].max(initial=0.0) for x in map(np.asarray, sizes)))


def explained(e: Evidence, i: int, k: int, largest: float) -> Any:
    """The change of each element if all arguments change by 8 ulps of their own dtype.

    A formula may use what holds up to that rounding: that float32 probabilities sum to 1.
    """
    t = e.reference.cotangents[i]
    if len(t) <= REST + SEEDS or e.unit <= criterion.eps(criterion.real_dtype(e.floats[i])):
        return 0.0  # there are no perturbed points, or the arguments have all digits
    with np.errstate(invalid="ignore"):
        spread = np.nan_to_num(np.abs(t[REST + SEEDS :] - t[FIRST]).max(0))
    if k != FIRST:  # the perturbed points have the first cotangents of the outputs
        size = np.abs(t[FIRST][np.isfinite(t[FIRST])]).max(initial=0.0)
        spread = spread.max(initial=0.0) * (largest / size if size else 0.0)
    return np.minimum(8 * spread, EXPLAINED * largest)  # at ties an ulp changes all


def from_along(along: Along, numbers: Numbers, i: int) -> tuple[float, float]:
    """The distance of a cotangent from the finite difference, and the size of the terms."""
    terms = numbers.cotangents[i][FIRST] * criterion.as_wide(along.directions[i])
    return abs(float(np.real(terms.sum())) - float(along.values[i])), float(np.linalg.norm(terms))
