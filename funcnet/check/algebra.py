"""The algebra gate: compare value, linearity and cotangents in float64; explain differences."""

import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion
from funcnet.check.deliberate import declaration
from funcnet.check.diagnosis import cause, of_nonlinearity
from funcnet.check.evidence import (
    DECLARED,
    DIFFERENCES,
    INTENT,
    TRUTH,
    Evidence,
    compare,
    from_along,
)
from funcnet.check.imprecision import NONLINEAR, SOLVED, by_a_solver, by_rounding
from funcnet.check.points import (
    COMBINATION,
    COMBINED,
    FIRST,
    MOVED,
    SCALE,
    SECOND,
    SMALL,
    ZERO,
    at_point,
)
from funcnet.check.programs import QUICK, run_all
from funcnet.check.reference import ELEMENTS, gradients
from funcnet.check.report import Log
from funcnet.check.subject import Subject, nondiff_argnums

SHARED = (
    "Every cotangent is wrong: look first at what they have in common, such as the derivative that "
    "multiplies dy"
)
ORDER = "Bwd takes the arguments in nondiff_argnums first: bwd(static, residuals, dy)"


def check_algebra(log: Log, e: Evidence, eager: list[np.ndarray], nones: set[str]) -> None:
    """Checks value, linearity and cotangents in float64."""
    s = log.subject
    if e.against != TRUTH:  # a truth may have another value (straight-through estimator)
        for i, name in enumerate(s.output_names()):
            _check_value(log, e, i, name)
    unexplained = 0
    for i, name in enumerate(s.names):
        if e.along is not None:
            distance, size = from_along(e.along, e.hand, i)
            log.row(name, finite=distance / size if size else 0.0)
        known = len(log.findings)
        if e.against != INTENT:
            _check_linearity(log, e, i, name)
        is_explained = _check_cotangent(log, e, i, name, eager[i], name in nones)
        if len(log.findings) > known and e.against not in DECLARED:
            sentence = declaration(s, e, i)
            log.add_to_last(sentence)
            is_explained |= bool(sentence)
        unexplained += not is_explained
    if 1 < len(s.names) == unexplained:
        log.add_to_last(SHARED)
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
    w = criterion.worst(
        h, t, criterion.algebra(t, *noises, criterion.real_dtype(e.points.dout[i]), e.unit)
    )
    if w.ratio > 1:
        log.find("value", name, f"the value that fwd returns: {w.place} as the function", w.ratio)


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
        slack = 1e-9 + e.tolerance + 64 * criterion.eps(criterion.real_dtype(e.floats[i]))
        allowed = 64 * noise + slack * largest + float(np.finfo(np.float32).tiny)
        w = criterion.worst(h[k], expected, allowed)
        if w.ratio > 1:
            if (~np.isfinite(h[k]) & np.isfinite(expected)).any():
                usual = "Usually bwd divides by a norm or a sum of dy, as some solvers do"
                log.find("nonfinite", name, f"{what}, {w.place}. {usual}", w.ratio)
                return
            error = float(np.abs(h[k] - expected)[w.place_of])
            solver = by_a_solver(log.subject, e, error, float(largest), NONLINEAR)
            if solver:
                log.find("accuracy", name, f"{what}, {w.place}; {solver}", w.ratio)
                return
            why = of_nonlinearity(h[FIRST], h[SECOND], h[SMALL], h[ZERO], SCALE)
            log.find("linearity", name, f"{what}, {w.place}. {why[0].upper()}{why[1:]}", w.ratio)
            if nondiff_argnums(log.subject.function):
                log.add_to_last(ORDER)
            return


def _check_cotangent(
    log: Log, e: Evidence, i: int, name: str, eager: np.ndarray, is_none: bool
) -> bool:
    """Compares one cotangent; returns whether it is right or its error has an explanation."""
    h, t = e.hand.cotangents[i], e.reference.cotangents[i]
    points = (FIRST, SECOND, COMBINED, SMALL, ZERO) if e.against == INTENT else (FIRST, SECOND)
    k, w = max(((k, compare(e, i, k)) for k in points), key=lambda pair: pair[1].ratio)
    log.row(name, error=w.ratio)
    if w.ratio <= 1:
        _check_all_elements(log, e, i, name)
        if is_none and t[FIRST].any():
            log.warn(
                f"{name}: bwd returns None, and the right cotangent is nothing but rounding at "
                f"these arguments ({w.expected:.2g}); check the rule at others too"
            )
        return True
    seen = max(1e-4, 50 * e.unit)
    if criterion.near(eager, t[FIRST], seen) and not criterion.near(h[FIRST], t[FIRST], seen):
        log.find("jit", name, f"right eagerly, but under jax.jit {w.place}", w.ratio)
        return True
    kind, why = "gradient", ""
    if (~np.isfinite(h[k]) & np.isfinite(t[k])).any():
        kind = "nonfinite"
    elif is_none:
        kind, why = "none", "the cotangent that bwd returns is None, which JAX treats as zero"
    elif imprecise := _imprecise(log, e, i, k, w):
        kind, why = "accuracy", imprecise
    elif k in (FIRST, SECOND) and _agrees_nearby(e, i):
        kind = "kink"
        why = (
            "the two agree once the arguments are moved off their ties, zeros and corners; there "
            f"the rule must return the same as {e.against}"
        )
    why = why or _cause(log.subject, e, i, k, w)
    opinion = "" if kind == "kink" else _opinion(e, i)  # central differences are of both sides
    more = [f". {text[0].upper()}{text[1:]}" for text in (why, opinion) if text]
    against = e.against if np.isfinite(e.unmended[i][k][w.place_of]) else DIFFERENCES
    log.find(kind, name, f"{w.place} according to {against}{''.join(more)}", w.ratio)
    return bool(why)


def _imprecise(log: Log, e: Evidence, i: int, k: int, w: criterion.Worst) -> str:
    """Why an error is one of precision, or "" if the formula is wrong."""
    s, h, t = log.subject, e.hand.cotangents[i][k], e.reference.cotangents[i][k]
    found = by_rounding(s, e, i, k, w)
    error, largest = abs(w.actual - w.expected), np.abs(t[np.isfinite(t)]).max(initial=0.0)
    factor = np.vdot(t, h) / np.vdot(t, t) if t.any() else 0.0
    if found or (t.size > 1 and np.abs(h - factor * t).max() < 1e-3 * error):
        return found  # no solver errs by a factor
    is_nonlinear = any((f.kind, f.argument) == ("accuracy", s.names[i]) for f in log.findings)
    return by_a_solver(s, e, error, largest, NONLINEAR if is_nonlinear else SOLVED)


def _agrees_nearby(e: Evidence, i: int) -> bool:
    """Whether a cotangent is right once the arguments are moved off ties and corners."""
    h, t = e.hand.cotangents[i], e.reference.cotangents[i]
    is_known = len(t) > MOVED and np.isfinite(t[MOVED]).any()
    return is_known and (
        compare(e, i, MOVED).ratio <= 1 or criterion.near(h[MOVED], t[MOVED], 1e-9)
    )


def _check_all_elements(log: Log, e: Evidence, i: int, name: str) -> None:
    """Compares along a random direction, if finite differences were taken of some elements only."""
    some = (e.against == DIFFERENCES or i in e.decided) and e.floats[i].size > ELEMENTS
    if not some or e.along is None:
        return
    distance, size = from_along(e.along, e.hand, i)
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


def _cause(s: Subject, e: Evidence, i: int, k: int, w: criterion.Worst) -> str:
    """The likely cause of a wrong cotangent, in one sentence, or ""."""
    leaves = [*zip(s.names, e.floats, strict=True)]
    values = {f"the argument {name}": leaf for name, leaf in leaves}
    for j, name in enumerate(s.output_names()):
        values[f"the output {name}"] = e.reference.out[j][k]
        values[f"the cotangent of the output {name}"] = e.points.dout[j][k]
        leaves.append((name, e.points.dout[j][k]))
    sizes: dict[int, str] = {}
    for name, leaf in leaves:
        for axis, size in enumerate(leaf.shape):
            sizes.setdefault(size, f"size of axis {axis} of {name}")
        sizes.setdefault(leaf.size, f"number of elements of {name}")
    h, t = e.hand.cotangents[i][k], e.reference.cotangents[i][k]
    others = {
        f"the cotangent of {name}": e.reference.cotangents[j][k]
        for j, name in enumerate(s.names)
        if j != i
    }
    integers = {
        name: np.asarray(leaf)
        for name, leaf in zip(s.other_names, s.others, strict=True)
        if jnp.issubdtype(leaf.dtype, jnp.integer)
    }
    found = _by_outputs(s, e, i, k) if len(e.points.dout) > 1 else ""
    return found or cause(
        h, t, w.wrong, e.floats[i], cotangents=others, values=values, sizes=sizes, integers=integers
    )


def _by_outputs(s: Subject, e: Evidence, i: int, k: int) -> str:
    """The output whose cotangent has a wrong share in a wrong cotangent, or ""."""
    floats, others, dout = at_point(e.points, k, s.others)
    alone = lambda j: tuple(d if n == j else jnp.zeros_like(d) for n, d in enumerate(dout))
    programs = [
        (gradients(e.reference_outputs), (floats, others, alone(j))) for j in range(len(dout))
    ]
    found = run_all(programs, QUICK)
    if any(isinstance(part, Exception) for part in found):
        return ""
    parts = np.stack([criterion.as_wide(part[i]).ravel() for part in found], 1)
    h = e.hand.cotangents[i][k].ravel()
    if h.size <= len(dout) or not (np.isfinite(h).all() and np.isfinite(parts).all()):
        return ""
    shares = np.linalg.lstsq(parts, h, rcond=None)[0].real
    if not np.allclose(parts @ shares, h, 1e-5, 1e-7 * np.abs(h).max()):
        return ""
    wrong = [
        f"it {'ignores' if abs(c) < 1e-5 else f'takes {c:.6g} times'} the cotangent of {name}"
        for name, c in zip(s.output_names(), shares, strict=True)
        if abs(c - 1) > 1e-5
    ]
    return "; ".join(wrong)


def _opinion(e: Evidence, i: int) -> str:
    """Which of the two finite differences agree with, or "" if they cannot tell them apart."""
    if e.along is None or e.against == DIFFERENCES:
        return ""
    hand, _ = from_along(e.along, e.hand, i)
    reference, size = from_along(e.along, e.reference, i)
    if reference < 1e-6 * size and hand > 10 * reference:
        return f"finite differences agree with {e.against}"
    if hand < 1e-6 * size and reference > 10 * hand:
        return (
            f"finite differences agree with the rule, not with {e.against}: the plain forward has "
            "a stop_gradient, a corner, or a custom derivative"
        )
    return ""
