"""The accuracy gate: compare rule and autodiff with a float64 truth, in the working dtype."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion
from funcnet.check.diagnosis import of_nonfinite
from funcnet.check.evidence import DECLARED, DIFFERENCES, Evidence, numbers
from funcnet.check.failures import classify, line
from funcnet.check.points import FIRST, REST, SEEDS, points_of
from funcnet.check.programs import QUICK, Program, run_all
from funcnet.check.reference import (
    Outputs,
    array,
    narrowed,
    pullback,
    stack,
    wide_arithmetic,
    widened,
)
from funcnet.check.report import Log
from funcnet.check.tracing import equations, trace

LOSSES = (
    "Usually a residual is kept in a coarser dtype, nearly equal numbers are subtracted (1 − y, "
    "exp(x − logsumexp)), or a sum is accumulated in the narrow dtype"
)

BFLOAT16 = jnp.dtype("bfloat16")
# If bfloat16 is not asked for, only a relative error above GROSS refutes a rule there, and only if
# that of autodiff is below RIGHT.
GROSS, RIGHT = 0.05, 0.02


def check_accuracy(log: Log, e: Evidence, dtypes: list[Any], *, strict: bool) -> None:
    """Checks the accuracy in the dtype of the arguments and in each of `dtypes`.

    Where all arguments are float32, it also looks for gross errors in bfloat16.
    """
    s = log.subject
    own = {jnp.finfo(leaf.dtype).dtype for leaf in s.floats}
    narrow = [d for d in own if jnp.finfo(d).bits < 64 and len(own) == 1]
    if e.against == DIFFERENCES or e.decided or e.floats is s.floats:
        return  # there is no reference with more digits
    is_real = {leaf.dtype for leaf in s.floats} == own  # there is no narrower complex dtype
    if is_real and own == {jnp.dtype("float32")} and BFLOAT16 not in dtypes:
        _check_bfloat16(log, e)
    for dtype in dict.fromkeys([*narrow, *dtypes]):
        log.progress(f"accuracy in {dtype}")
        floats = tuple(narrowed(leaf, dtype) for leaf in s.floats)
        points, hand, reference = e.points, e.hand, e.reference
        if dtype not in narrow:
            with wide_arithmetic():
                points = points_of(e.plain, floats, tuple(map(widened, floats)), s.others)
                hand, reference = numbers(s.outputs, e.reference_outputs, points, s.others)
        types = [y.dtype for y in jax.eval_shape(e.plain, floats, s.others)]
        dout = [
            tuple(array(d[REST + k], type_) for d, type_ in zip(points.dout, types, strict=True))
            for k in range(SEEDS)
        ]
        pulls = (_for_seeds(f, floats, s.others, dout) for f in (s.outputs, e.reference_outputs))
        by_hand, by_auto = run_all(pulls)
        if isinstance(by_hand, Exception):
            log.findings.append(classify(by_hand, "error", s.names, f"in {dtype}"))
            continue
        if isinstance(by_auto, Exception):
            log.warn(
                f"accuracy in {dtype} not measured, because {e.against} raises {line(by_auto)}"
            )
            continue
        for i, name in enumerate(s.names):
            d = by_hand[i]
            if d.dtype != floats[i].dtype:
                log.find(
                    "dtype", name, f"the cotangent is {d.dtype}, the argument is {floats[i].dtype}"
                )
            measured = accurate(
                hand.cotangents[i],
                reference.cotangents[i],
                hand.noise[i],
                reference.noise[i],
                criterion.as_wide(d),
                criterion.as_wide(by_auto[i]),
                dtype,
                tolerance=e.tolerance,
                strict=strict,
                against=e.against,
            )
            if dtype in narrow:
                log.row(name, ulp_hand=measured.hand.rms, ulp_auto=measured.auto.rms)
            if measured.kind == "note":
                log.warn(f"in {dtype}, {name}: {measured.message}")
            elif measured.kind:
                log.find(measured.kind, name, f"in {dtype}, {measured.message}", measured.ratio)
            if measured.kind == "nonfinite":
                h = criterion.as_wide(d)[0]
                why = of_nonfinite(h, np.isfinite(h), criterion.as_wide(floats[i]))
                log.add_to_last(why[0].upper() + why[1:])


def _check_bfloat16(log: Log, e: Evidence) -> None:
    """Finds large errors in bfloat16 that autodiff does not have."""
    s = log.subject
    log.progress(f"gross errors in {BFLOAT16}")
    floats = tuple(narrowed(leaf, BFLOAT16) for leaf in s.floats)
    try:
        types = [y.dtype for y in jax.eval_shape(e.plain, floats, s.others)]
    except Exception:  # the function does not take this dtype
        return
    dout = tuple(array(d[REST], type_) for d, type_ in zip(e.points.dout, types, strict=True))
    at = floats, s.others, dout
    pulls = [pullback(f) for f in (s.outputs, e.reference_outputs)]
    try:
        loops = any(_has_open_loop(pull, *at) for pull in pulls)
    except Exception:  # it is repeated below, and reported
        loops = False
    if loops:
        log.warn(f"not tried in {BFLOAT16}, in which a loop until convergence might never end")
        return
    by_hand, by_auto = run_all([(pull, at) for pull in pulls], QUICK)
    if isinstance(by_auto, Exception):
        return
    if isinstance(by_hand, Exception):
        log.warn(f"in {BFLOAT16} the rule raises {line(by_hand)}")
        return
    for i, name in enumerate(s.names):
        h, a = by_hand[1][i], by_auto[1][i]
        t = e.reference.cotangents[i][REST]
        if h.dtype != BFLOAT16:
            log.warn(f"in {BFLOAT16}, {name}: the cotangent is {h.dtype}")
        hand, auto = (
            criterion.errors(criterion.as_wide(x), t, BFLOAT16).rms * criterion.eps(BFLOAT16)
            for x in (h, a)
        )
        if hand > GROSS and auto < RIGHT:
            what = (
                f"in {BFLOAT16} the RMS error is {hand:.0%} of the cotangent, that of "
                f"{e.against} is {auto:.1%}"
            )
            log.find("accuracy", name, what, hand / GROSS)


def _has_open_loop(f: Any, *args: Any) -> bool:
    """Whether f has a loop whose number of passes is not known before it runs."""
    jaxpr, _ = trace(f, *args)
    return any(eqn.primitive.name == "while" for eqn in equations(jaxpr, of_rules=True))


def _for_seeds(outputs: Outputs, floats: Any, others: Any, dout: list[Any]) -> Program:
    """A program for the cotangents at fixed arguments, for several output cotangents."""
    pull = lambda floats, others, dout: jax.lax.map(
        lambda d: pullback(outputs)(floats, others, d)[1], dout
    )
    return pull, (floats, others, stack(dout))


class Accuracy(NamedTuple):
    """The verdict on the accuracy of one cotangent; `kind` is empty if nothing is wrong."""

    kind: str
    message: str
    ratio: float
    hand: criterion.Errors
    auto: criterion.Errors


def accurate(
    wide_hand: np.ndarray,
    wide_reference: np.ndarray,
    noise_hand: np.ndarray,
    noise_reference: np.ndarray,
    hand: np.ndarray,
    auto: np.ndarray,
    dtype: Any,
    *,
    tolerance: float,
    strict: bool,
    against: str,
) -> Accuracy:
    """The accuracy gate of `funcnet.check.criterion` for one cotangent.

    Args:
      wide_hand: The cotangent from the rule in float64, at all points.
      wide_reference: The reference cotangent in float64, at all points.
      noise_hand: The noise of `wide_hand` at the first two points.
      noise_reference: The noise of `wide_reference` at the first two points.
      hand: The cotangent from the rule in `dtype`, for all seeds.
      auto: The cotangent from autodiff in `dtype`, for all seeds.
      dtype: The working dtype.
      tolerance: An error that is always allowed, relative to the largest element.
      strict: Whether to apply the strict bounds.
      against: The name of the reference, which is the truth regardless of its noise if declared.
    """
    better = (noise_hand[FIRST] < noise_reference[FIRST]) & (against not in DECLARED)
    truth = np.where(better, wide_hand, wide_reference)
    uncertain = np.where(better, noise_hand[FIRST], noise_reference[FIRST])
    seeds, perturbed = truth[REST : REST + SEEDS], truth[REST + SEEDS :]
    info = jnp.finfo(dtype)
    with np.errstate(all="ignore"):
        spread = np.abs(perturbed - seeds[0]).max(0)
        spread = np.where(np.isnan(spread), np.inf, spread)
        # Ignore true values that are out of range for this dtype, or nearly so.
        seeds = np.where(np.abs(seeds) < 0.9 * float(info.max), seeds, np.nan)
    seeds = np.where(np.isfinite(auto), seeds, np.nan)  # ignore where autodiff is not finite
    t, h, a = seeds[0], hand[0], auto[0]
    by_hand, by_auto = criterion.errors(hand, seeds, dtype), criterion.errors(auto, seeds, dtype)
    if (~np.isfinite(h) & np.isfinite(t)).any():
        place = criterion.worst(h, t, np.ones(t.shape)).place
        return Accuracy(
            "nonfinite", f"{place}; {against} is finite there", np.inf, by_hand, by_auto
        )
    largest = np.abs(t[np.isfinite(t)]).max(initial=0.0)
    allowed = criterion.accuracy(t, spread, uncertain, dtype) + tolerance * largest
    w, w_auto = criterion.worst(h, t, allowed), criterion.worst(a, t, allowed)
    small = criterion.worst(h, t, allowed + 2 * float(info.eps) * largest)
    errors = f"the RMS error is {by_hand.rms:.2g} ulp, that of {against} is {by_auto.rms:.2g} ulp"
    inferior = not criterion.not_inferior(by_hand, by_auto, strict=strict)
    if w.ratio > max(1, 2 * w_auto.ratio) and (w_auto.ratio <= 1 or inferior):
        times = f"the error is {w.ratio:.2g} times what an ulp in the arguments explains"
        if small.ratio > 1 or strict:
            what = f"{w.place}; {times} ({errors}). {LOSSES}"
            return Accuracy("accuracy", what, w.ratio, by_hand, by_auto)
        what = f"{w.place}; {times}, but is below the rounding error of the largest element"
        return Accuracy("note", what, w.ratio, by_hand, by_auto)
    if inferior and by_hand.rms * float(info.eps) > tolerance:
        ratio = by_hand.rms / by_auto.rms if by_auto.rms else np.inf
        return Accuracy("accuracy", f"{errors}. {LOSSES}", ratio, by_hand, by_auto)
    return Accuracy("", "", w.ratio, by_hand, by_auto)
