"""The evidence: the rule and the reference, run at the points of a check."""

from typing import Any, NamedTuple

import jax
import numpy as np

from funcnet.check import criterion
from funcnet.check.failures import line
from funcnet.check.intent import Declared
from funcnet.check.points import (
    FIRST,
    SECOND,
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
from funcnet.check.tracing import trace, twin

DIFFERENCES, TRUTH, INTENT = "finite differences", "the truth", "the intent"
# Where differences are the reference, the plain forward is often a solver that stops early, whose
# own derivative differs from that of the solution.
SOLVED = 1e-4


class Evidence(NamedTuple):
    """The numbers on which the verdict on a rule is based."""

    plain: Outputs  # the function with every rule replaced by autodiff
    reference_outputs: Outputs  # the function with the right gradient: plain or truth
    against: str  # the name of the reference in messages
    declared: str  # "truth", "intent" or ""
    points: Points
    floats: tuple[Any, ...]  # the arguments, in the dtype of the comparison
    hand: Numbers
    reference: Numbers
    unmended: tuple[Any, ...]  # cotangents of the reference without finite differences
    along: Along | None  # finite differences along one direction per argument
    decided: frozenset[int]  # arguments for which finite differences overrule autodiff
    tolerance: float
    unit: float  # ε of the coarsest dtype among the arguments
    traced: Any  # the jaxpr of the gradient by the rule

    def noise(self) -> float:
        """The largest finite noise of the cotangents, each relative to its largest element."""
        largest = 0.0
        for n, t in zip(self.hand.noise, self.reference.cotangents, strict=True):
            n, t = n[FIRST], np.abs(t[FIRST])
            size = t[np.isfinite(t)].max(initial=0.0)
            largest = max(largest, n[np.isfinite(n)].max(initial=0.0) / size if size else 0.0)
        return float(largest)


def gather(log: Log, declared: Declared | None, tolerance: float, floats: Any) -> Evidence:
    """Runs the rule and the reference; an exception of the rule propagates.

    `floats` are the arguments in the dtype of the comparison.
    """
    s = log.subject
    plain = twin(s.outputs)
    at = floats, s.others, cotangents(plain, floats, s.others, 0)
    traced = trace(pullback(s.outputs), *at)[0]
    points = points_of(plain, s.floats, floats, s.others)
    reference = declared.outputs if declared else plain
    against = declared.against if declared else "autodiff"
    found = numbers(s.outputs, reference, points, s.others)
    if isinstance(found.hand, Exception):
        raise found.hand
    if isinstance(found.reference, Exception):
        if against == INTENT:
            raise found.reference
        against = DIFFERENCES
        why = line(found.reference)
        of = declared.against if declared else "the plain forward"
        log.warn(f"compared with {against}, because autodiff of {of} raises {why}")
        found = Both(found.hand, _from_differences(reference, points, s.others))
    decided: frozenset[int] = frozenset()
    along = None
    unmended = found.reference.cotangents
    try:
        if against != INTENT:  # it is no derivative
            log.progress(DIFFERENCES)
            dout = tuple(d[FIRST] for d in points.dout)
            along = along_directions(reference, floats, s.others, dout)
        if against == "autodiff" and along is not None:
            decided = _overruled(along, found.hand, found.reference)
            found = Both(found.hand, _mended(plain, points, s.others, found.reference, decided))
    except Exception as e:
        log.warn(f"no {DIFFERENCES}, because the plain forward raises {line(e)}")
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
        declared.name if declared else "",
        points,
        floats,
        found.hand,
        found.reference,
        unmended,
        along,
        decided,
        tolerance,
        unit,
        traced,
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
        if (
            np.isfinite(size)
            and by_hand < SOLVED * size + 10 * doubt < 10 * SOLVED * size < by_auto
        ):
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


def from_along(along: Along, numbers: Numbers, i: int) -> tuple[float, float]:
    """The distance of a cotangent from the finite difference, and the size of the terms."""
    terms = numbers.cotangents[i][FIRST] * criterion.as_wide(along.directions[i])
    return abs(float(np.real(terms.sum())) - float(along.values[i])), float(np.linalg.norm(terms))
