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
    REST,
    SCALE,
    SECOND,
    SEEDS,
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
    ELEMENTS,
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
# Where differences are the reference, the plain forward is often a solver that stops early, whose
# own derivative differs from that of the solution.
SOLVED = 1e-4
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
        found = Both(found.hand, _from_differences(reference, points, s.others))
    log.progress(DIFFERENCES)
    decided: frozenset[int] = frozenset()
    unmended = found.reference.cotangents
    try:
        along = along_directions(plain, floats, s.others, tuple(d[FIRST] for d in points.dout))
        if against == "autodiff":
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
        by_hand, size = _from_along(along, hand, i)
        by_auto, _ = _from_along(along, reference, i)
        size = max(size, abs(float(value)))
        if np.isfinite(size) and by_hand < 1e-6 * size + 10 * doubt < 1e-3 * size < by_auto:
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
    _check_everything_was_compared(log, e)


def _check_everything_was_compared(log: Log, e: Evidence) -> None:
    """Records what leaves the rule undecided: arguments of which no element was compared."""
    s = log.subject
    if not all(np.isfinite(y[FIRST]).any() for y in e.reference.out if y.size):
        log.undecide("the value of the function is not finite, so that no gradient was compared")
        return
    for i, (name, leaf) in enumerate(zip(s.names, e.floats, strict=True)):
        compared = [np.isfinite(e.reference.cotangents[i][k]).any() for k in (FIRST, SECOND)]
        hand = e.hand.cotangents[i][FIRST]
        left = np.isfinite(hand) & ~np.isfinite(e.reference.cotangents[i][FIRST])
        if any(compared) and leaf.size <= ELEMENTS and left.any():
            log.warn(
                f"{name}: {left.sum()} of {leaf.size} elements were not compared: neither "
                f"{e.against} nor {DIFFERENCES} give a finite number there"
            )
        if leaf.size and not any(compared):
            why = "finite differences of the plain forward are not certain"
            if i not in e.decided and e.against != DIFFERENCES:
                why = f"{e.against} is not finite there, and {DIFFERENCES} are not certain"
            log.undecide(f"no element of the cotangent of {name} was compared: {why}")
    if not any(leaf.size for leaf in e.floats):
        log.undecide("no argument has an element")


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
    k, w = max(((k, compare(e, i, k)) for k in (FIRST, SECOND)), key=lambda pair: pair[1].ratio)
    log.row(name, error=w.ratio)
    if w.ratio <= 1:
        _check_all_elements(log, e, i, name)
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
    elif len(t) > MOVED and (compare(e, i, MOVED).ratio <= 1 or _near(h[MOVED], t[MOVED], 1e-9)):
        kind = "kink"
        why = (
            "the two agree once the arguments are moved off their ties, zeros and corners; there "
            f"the rule must return the same as {e.against}"
        )
    more = [f". {text[0].upper()}{text[1:]}" for text in (why, _opinion(e, i)) if text]
    against = e.against if np.isfinite(e.unmended[i][k][w.place_of]) else DIFFERENCES
    log.find(kind, name, f"{w.place} according to {against}{''.join(more)}", w.ratio)


def _check_all_elements(log: Log, e: Evidence, i: int, name: str) -> None:
    """Compares along a random direction, if finite differences were taken of some elements only."""
    some = (e.against == DIFFERENCES or i in e.decided) and e.floats[i].size > ELEMENTS
    if not some or e.along is None:
        return
    distance, size = _from_along(e.along, e.hand, i)
    doubt = float(e.along.noise[i])
    if np.isnan(distance):
        log.undecide(f"{ELEMENTS} elements of the cotangent of {name} were compared, not all")
    elif distance > 1e-6 * size + 10 * doubt:
        what = (
            f"along a random direction the derivative is {float(e.along.values[i]):.6g}, and the "
            f"cotangent is wrong by {distance:.2g}; the {ELEMENTS} elements that were compared one "
            "by one are right"
        )
        log.find("gradient", name, what, distance / (1e-6 * size + 10 * doubt))


def compare(e: Evidence, i: int, k: int) -> criterion.Worst:
    """Compares one cotangent at one point with the reference."""
    h, t = e.hand.cotangents[i][k], e.reference.cotangents[i][k]
    n_h, n_t = (n[k] if k <= SECOND else n.max(0) for n in (e.hand.noise[i], e.reference.noise[i]))
    largest = np.abs(t[np.isfinite(t)]).max(initial=0.0)
    allowed = criterion.algebra(t, n_h, n_t, _dtype(e.floats[i]), e.unit) + e.tolerance * largest
    if e.against == DIFFERENCES or i in e.decided:
        allowed = allowed + SOLVED * largest
    return criterion.worst(h, t, allowed + explained(e, i, k, largest))


def explained(e: Evidence, i: int, k: int, largest: float) -> Any:
    """The change of each element if all arguments change by 8 ulps of their own dtype.

    A formula may use what holds up to that rounding: that float32 probabilities sum to 1.
    """
    t = e.reference.cotangents[i]
    if len(t) <= REST + SEEDS or e.unit <= criterion.eps(_dtype(e.floats[i])):
        return 0.0  # there are no perturbed points, or the arguments have all digits
    with np.errstate(invalid="ignore"):
        spread = np.nan_to_num(np.abs(t[REST + SEEDS :] - t[FIRST]).max(0))
    if k != FIRST:  # the perturbed points have the first cotangents of the outputs
        size = np.abs(t[FIRST][np.isfinite(t[FIRST])]).max(initial=0.0)
        spread = spread.max(initial=0.0) * (largest / size if size else 0.0)
    return np.minimum(8 * spread, EXPLAINED * largest)  # at ties an ulp changes all


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
