"""Compare the rule with autodiff under the same transformations."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion
from funcnet.check.evidence import DIFFERENCES, Evidence, compare, explained
from funcnet.check.failures import classify, line
from funcnet.check.points import FIRST, MOVED
from funcnet.check.programs import QUICK, run_all
from funcnet.check.reference import along_directions, cotangents, gradients
from funcnet.check.report import Log
from funcnet.check.rounding import noise
from funcnet.check.subject import Subject
from funcnet.check.transformations import (
    CHECK_VMA,
    FEWER,
    Trial,
    all_trials,
    along_gradient,
    own_trials,
)

USUAL = {
    "second derivative": "Usually a residual is cut by stop_gradient, or bwd computes something "
    "that is not differentiable",
    "batch size": "The rule contains a fixed size that must be read from a shape",
    "vmap": "The backward pass must not reduce over the batch axis that vmap adds. The usual cause "
    "is a custom_vmap rule or a callback that does",
}
SHARED = (
    "under jax.vmap over some arguments an output depends on no batched argument, and JAX's "
    "custom_vjp counts its cotangent once per example (jax 0.12 raises). Make all outputs depend "
    "on all arguments, or declare the rule by funcnet.rule, which does that"
)
CONSTRAINED = (
    "near the arguments the rule differs from its reference, so it may use a relation among them "
    "(probabilities that sum to 1); its second derivative was not compared"
)
ELSEWHERE = (
    "at other arguments, which the trials of transformations use, the rule differs from its "
    "reference; the transformations themselves change nothing"
)
BY_DIFFERENCES = (
    f"{DIFFERENCES} of the gradient agree with the rule's second derivative, and not with that "
    "according to {} (it has a jnp.where at a point, or a custom derivative)"
)
WITHOUT = "the rule without it"
PCAST = (
    "in jax.shard_map with check_vma=True: jax.lax.pcast the arguments first, or use funcnet.rule"
)


def check_transformations(log: Log, e: Evidence) -> set[str]:
    """Runs all trials of a rule whose plain gradient is right; returns the labels that raise."""
    s = log.subject
    at = (e.floats, s.others, tuple(d[FIRST] for d in e.points.dout))
    raised = set()
    by_itself = _by_itself(e)
    more = "" if by_itself else ", second derivative, batch size"
    log.progress(f"vmap, scan, remat{more}, sharding")
    if by_itself:
        try:
            trials = [*own_trials(s, *at)]
        except Exception as error:
            log.warn(f"not checked under vmap, scan and so on: the rule raises {line(error)}")
            return raised
    else:
        trials = [*all_trials(s, e.reference_outputs, *at)]
    programs = [(trial.program(s.outputs), trial.at) for trial in trials]
    to_run = [trial for trial in trials if trial.expected is None]
    programs += [(trial.program(e.reference_outputs), trial.at) for trial in to_run]
    results = run_all(programs, QUICK)
    by_reference = iter(results[len(trials) :])
    own: dict[str, Any] = {}
    for trial, actual in zip(trials, results[: len(trials)], strict=True):
        expected = next(by_reference) if trial.expected is None else trial.expected
        if isinstance(expected, Exception):
            continue  # the function does not support this transformation
        if isinstance(actual, Exception):
            raised.add(trial.label)
            continue
        if by_itself:
            _compare(log, e, trial, actual, expected, WITHOUT)
        elif _differs(e, actual, expected):
            rounding = _rounding(e, trial)
            if not _differs(e, actual, expected, rounding):
                continue
            if trial.kind == "second derivative":
                if _by_differences(s, trial, actual):
                    log.warn(BY_DIFFERENCES.format(e.against))
                    continue
                if _is_constrained(e):
                    log.warn(CONSTRAINED)
                    continue
            # A trial moves the arguments. If the rule differs from the reference there without the
            # transformation too, the transformation is not to blame.
            own = own or _own_results(s, at)
            if trial.in_usual_size is not None:
                is_elsewhere = _differs_there(s, e, trial.in_usual_size)
            else:
                is_elsewhere = trial.label in own and not _differs(e, actual, own[trial.label])
            if is_elsewhere:
                log.warn(ELSEWHERE)
            else:
                _compare(log, e, trial, actual, expected, e.against, rounding)
    return raised


def _rounding(e: Evidence, trial: Trial) -> tuple[Any, ...]:
    """What rounding explains of the reference's result; not measured where nothing differs."""
    program = trial.program(e.reference_outputs)
    (found,) = run_all([(lambda *at: noise(program, *at), trial.at)], QUICK)
    if isinstance(found, Exception):
        return (0.0,) * len(e.floats)
    return tuple(8 * np.nan_to_num(criterion.as_wide(n), posinf=0.0) for n in found)


def _by_itself(e: Evidence) -> bool:
    """Whether autodiff is no reference, so that the rule is compared with itself."""
    return e.against == DIFFERENCES or bool(e.decided)


def _by_differences(s: Subject, trial: Trial, actual: Any) -> bool:
    """Whether finite differences of the rule's gradient agree with its second derivative."""
    floats, others, dout = trial.at
    gradient = lambda floats, others: (along_gradient(s.outputs)(floats, others, dout),)
    along = along_directions(gradient, floats, others, (jnp.ones(()),))
    terms = [np.asarray(d * u).ravel() for d, u in zip(actual, along.directions, strict=True)]
    found = np.array([t.sum().real for t in terms])
    sizes = np.array([np.linalg.norm(t) for t in terms])
    near = 1e-6 * np.maximum(sizes, np.abs(along.values)) + 10 * along.noise
    return bool((np.abs(found - along.values) <= near).all() and (near <= 1e-3 * sizes.max()).all())


def _own_results(s: Subject, at: Any) -> dict[str, Any]:
    try:
        return {trial.label: trial.expected for trial in own_trials(s, *at)}
    except Exception:
        return {}


def _differs_there(s: Subject, e: Evidence, at: Any) -> bool:
    """Whether the rule differs from its reference at these arguments."""
    there = run_all([(gradients(f), at) for f in (s.outputs, e.reference_outputs)], QUICK)
    return not any(isinstance(x, Exception) for x in there) and _differs(e, *there)


def _is_constrained(e: Evidence) -> bool:
    """Whether the rule is right at the arguments, but not near them, by more than rounding there.

    The noise is not measured there. The arguments are moved by about 1e-4 of their size.
    """
    pairs = zip(e.hand.cotangents, e.reference.cotangents, strict=True)
    is_near = [criterion.near(h[MOVED], t[MOVED], 1e-5) for h, t in pairs]
    return any(compare(e, i, MOVED).ratio > 1 and not near for i, near in enumerate(is_near))


def check_again(log: Log, e: Evidence, raised: set[str]) -> None:
    """Repeats raising trials in the arguments' own dtype; reports where only the rule raises."""
    if _by_itself(e):
        return  # whether the plain forward supports the transformation is not known
    s = log.subject
    dout = cotangents(e.plain, s.floats, s.others, 0)
    for trial in all_trials(s, e.reference_outputs, s.floats, s.others, dout):
        if trial.label in raised:
            by_hand, by_reference = run_all(
                [(trial.program(f), trial.at) for f in (s.outputs, e.reference_outputs)], QUICK
            )
            if isinstance(by_hand, Exception) and not isinstance(by_reference, Exception):
                _raised(log, e, trial, by_hand)


def _worst(
    e: Evidence, i: int, actual: Any, expected: Any, rounding: tuple[Any, ...]
) -> criterion.Worst:
    """Compares one cotangent of a trial with the expected one."""
    share = 1e-6 + e.tolerance + 100 * e.noise()
    a, t = criterion.as_wide(actual), criterion.as_wide(expected)
    size = np.abs(e.reference.cotangents[i][FIRST])
    largest = max(np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in (t, size))
    by_rounding = float(np.max(explained(e, i, FIRST, largest), initial=0.0))
    allowed = share * largest + by_rounding + float(np.finfo(np.float32).tiny)
    return criterion.worst(a, t, allowed + (rounding[i] if rounding else 0.0))


def _differs(e: Evidence, actual: Any, expected: Any, rounding: tuple[Any, ...] = ()) -> bool:
    pairs = enumerate(zip(actual, expected, strict=True))
    return any(_worst(e, i, a, t, rounding).ratio > 1 for i, (a, t) in pairs)


def _compare(
    log: Log,
    e: Evidence,
    trial: Trial,
    actual: Any,
    expected: Any,
    against: str,
    rounding: tuple[Any, ...] = (),
) -> None:
    for i, (name, a, t) in enumerate(zip(log.subject.names, actual, expected, strict=True)):
        w = _worst(e, i, a, t, rounding)
        if w.ratio <= 1:
            continue
        if trial.kind == CHECK_VMA:
            log.warn(f"{trial.label}, the cotangent of {name} is wrong: {w.place}")
        elif trial.kind == "vmap" and trial.shares_an_output(e.plain):
            log.warn(SHARED)
        else:
            what = f"{trial.label}: {w.place} according to {against}. {USUAL.get(trial.kind, '')}"
            what = what.removesuffix(". ")
            if trial.may_point_outside:  # an index past the end of the shorter axis
                log.warn(f"{name}: {what}. Not a finding, because an integer may not fit that size")
            else:
                log.find(trial.kind, name, what, w.ratio)


def _raised(log: Log, e: Evidence, trial: Trial, error: Exception) -> None:
    if trial.kind == CHECK_VMA:
        log.warn(PCAST)
    elif trial.kind == "second derivative":
        log.warn(f"the rule has no second derivative: {line(error)}")
    elif trial.kind == "vmap" and trial.shares_an_output(e.plain):
        log.warn(SHARED)
    elif trial.kind == "batch size" and trial.label.startswith(FEWER):
        log.warn(f"{trial.label} the rule raises {line(error)}")
    else:
        log.findings.append(classify(error, trial.kind, log.subject.names, trial.label))
