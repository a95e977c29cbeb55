"""Compare the rule with autodiff under the same transformations."""

from typing import Any

import numpy as np

from funcnet.check import criterion
from funcnet.check.algebra import DIFFERENCES, Evidence
from funcnet.check.failures import classify, line
from funcnet.check.points import FIRST
from funcnet.check.programs import QUICK, run_all
from funcnet.check.reference import cotangents
from funcnet.check.report import Log
from funcnet.check.transformations import CHECK_VMA, FEWER, Trial, all_trials

USUAL = {
    "second derivative": "Usually a residual is cut by stop_gradient, or bwd computes something "
    "that is not differentiable",
    "batch size": "The rule contains a fixed size that must be read from a shape",
    "vmap": "The bwd must not reduce over the batch axis that vmap adds: it must not use a "
    "custom_vmap that does, nor a callback that mistakes this axis for one of its own",
}
SHARED = (
    "under jax.vmap over some arguments an output depends on no batched argument, and JAX's "
    "custom_vjp counts its cotangent once per example (jax 0.12 raises). Make all outputs depend "
    "on all arguments, or declare the rule by funcnet.rule, which does that"
)
PCAST = (
    "Cast every argument to vary over the same mesh axes (jax.lax.pcast) before the rule, or "
    "declare it by funcnet.rule, which does that"
)


def check_transformations(log: Log, e: Evidence) -> set[str]:
    """Runs all trials of a rule whose plain gradient is right; returns the labels that raise."""
    if e.against == DIFFERENCES:
        log.warn("not checked under vmap, scan and so on, because there is no reference")
        return set()
    s = log.subject
    at = (e.floats, s.others, tuple(d[FIRST] for d in e.points.dout))
    raised = set()
    trials = [*all_trials(s, e.reference_outputs, *at)]
    programs = [(trial.program(s.outputs), trial.at) for trial in trials]
    to_run = [trial for trial in trials if trial.expected is None]
    programs += [(trial.program(e.reference_outputs), trial.at) for trial in to_run]
    results = run_all(programs, QUICK)
    by_reference = iter(results[len(trials) :])
    for trial, actual in zip(trials, results[: len(trials)], strict=True):
        expected = next(by_reference) if trial.expected is None else trial.expected
        if isinstance(expected, Exception):
            continue  # the function does not support this transformation
        if isinstance(actual, Exception):
            raised.add(trial.label)
        else:
            _compare(log, e, trial, actual, expected)
    return raised


def check_again(log: Log, e: Evidence, raised: set[str]) -> None:
    """Repeats raising trials in the arguments' own dtype; reports where only the rule raises."""
    s = log.subject
    dout = cotangents(e.plain, s.floats, s.others, 0)
    for trial in all_trials(s, e.reference_outputs, s.floats, s.others, dout):
        if trial.label in raised:
            by_hand, by_reference = run_all(
                [(trial.program(f), trial.at) for f in (s.outputs, e.reference_outputs)], QUICK
            )
            if isinstance(by_hand, Exception) and not isinstance(by_reference, Exception):
                _raised(log, e, trial, by_hand)


def _compare(log: Log, e: Evidence, trial: Trial, actual: Any, expected: Any) -> None:
    # Such mistakes are large, so the noise of the transformed program is not measured again.
    share = 1e-6 + e.tolerance + 100 * e.noise()
    for i, (name, a, t) in enumerate(zip(log.subject.names, actual, expected, strict=True)):
        a, t = criterion.as_wide(a), criterion.as_wide(t)
        size = np.abs(e.reference.cotangents[i][FIRST])
        largest = max(np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in (t, size))
        w = criterion.worst(a, t, share * largest + float(np.finfo(np.float32).tiny))
        if w.ratio <= 1:
            continue
        if trial.kind == CHECK_VMA:
            log.warn(f"{trial.label}, the cotangent of {name} is wrong: {w.place}")
        elif trial.kind == "vmap" and trial.shares_an_output(e.plain):
            log.warn(SHARED)
        else:
            what = f"{trial.label}: {w.place} according to {e.against}. {USUAL.get(trial.kind, '')}"
            what = what.removesuffix(". ")
            if trial.may_point_outside:  # an index past the end of the shorter axis
                log.warn(f"{name}: {what}. Not a finding, because an index may be out of bounds")
            else:
                log.find(trial.kind, name, what, w.ratio)


def _raised(log: Log, e: Evidence, trial: Trial, error: Exception) -> None:
    if trial.kind == CHECK_VMA:
        log.warn(f"{trial.label} the rule raises {line(error)}. {PCAST}")
    elif trial.kind == "second derivative":
        log.warn(f"the rule has no second derivative: {line(error)}")
    elif trial.kind == "vmap" and trial.shares_an_output(e.plain):
        log.warn(SHARED)
    elif trial.kind == "batch size" and trial.label.startswith(FEWER):
        log.warn(f"{trial.label} the rule raises {line(error)}")
    else:
        log.findings.append(classify(error, trial.kind, log.subject.names, trial.label))
