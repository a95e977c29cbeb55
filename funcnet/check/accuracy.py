"""The accuracy gate: the rule in the dtype that is used, beside autodiff and a truth."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion
from funcnet.check.algebra import DIFFERENCES, Evidence, numbers
from funcnet.check.failures import classify, line
from funcnet.check.points import FIRST, REST, SEEDS, points_of
from funcnet.check.programs import Program, run_all
from funcnet.check.reference import Outputs, narrowed, pullback, stack, wide_arithmetic, widened
from funcnet.check.report import Log

LOSSES = (
    "Usually a residual is kept in a coarser dtype, nearly equal numbers are subtracted (1 − y, "
    "exp(x − logsumexp)), or a sum is accumulated in the narrow dtype"
)


def check_accuracy(log: Log, e: Evidence, dtypes: list[Any], *, strict: bool) -> None:
    """In the dtype of the arguments, and in others that were asked for."""
    s = log.subject
    own = {jnp.finfo(leaf.dtype).dtype for leaf in s.floats}
    narrow = [d for d in own if jnp.finfo(d).bits < 64 and len(own) == 1]
    if e.against == DIFFERENCES or e.floats is s.floats:
        return  # there is no truth of more digits
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
            tuple(
                jnp.asarray(np.asarray(d[REST + k]), type_)
                for d, type_ in zip(points.dout, types, strict=True)
            )
            for k in range(SEEDS)
        ]
        pulls = (_for_seeds(f, floats, s.others, dout) for f in (s.outputs, e.plain))
        by_hand, by_auto = run_all(pulls)
        if isinstance(by_hand, Exception):
            log.findings.append(classify(by_hand, "error", s.names, f"in {dtype} the rule"))
            continue
        if isinstance(by_auto, Exception):
            log.warn(f"no accuracy in {dtype}, because there autodiff {line(by_auto)}")
            continue
        for i, name in enumerate(s.names):
            d = by_hand[i]
            if d.dtype != floats[i].dtype:
                log.find(
                    "dtype", name, f"the cotangent is {d.dtype}, the argument {floats[i].dtype}"
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
                prefer_reference=e.against == "the truth",
            )
            if dtype in narrow:
                log.row(name, ulp_hand=measured.hand.rms, ulp_auto=measured.auto.rms)
            if measured.kind == "note":
                log.warn(f"in {dtype}, {name}: {measured.message}")
            elif measured.kind:
                log.find(measured.kind, name, f"in {dtype} {measured.message}", measured.ratio)


def _for_seeds(outputs: Outputs, floats: Any, others: Any, dout: list[Any]) -> Program:
    """The cotangents at the same arguments for several cotangents of the outputs."""
    pull = lambda floats, others, dout: jax.lax.map(
        lambda d: pullback(outputs)(floats, others, d)[1], dout
    )
    return pull, (floats, others, stack(dout))


class Accuracy(NamedTuple):
    """What is wrong with the accuracy of one cotangent: `kind` is empty if nothing is."""

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
    prefer_reference: bool,
) -> Accuracy:
    """The accuracy gate of `funcnet.check.criterion` for one cotangent.

    Args:
      wide_hand: By hand in float64, at all points; `wide_reference` likewise.
      wide_reference: The reference in float64.
      noise_hand: The noise of it at the first two points; `noise_reference` likewise.
      noise_reference: The noise of the reference.
      hand: By hand in `dtype`, for all seeds; `auto` likewise.
      auto: By autodiff in `dtype`.
      dtype: The dtype.
      tolerance: An error to allow in any case, relative to the largest element.
      strict: Which bound to hold the errors of hand to.
      prefer_reference: Whether the reference is the truth, whatever its noise.
    """
    better = (noise_hand[FIRST] < noise_reference[FIRST]) & (not prefer_reference)
    truth = np.where(better, wide_hand, wide_reference)
    uncertain = np.where(better, noise_hand[FIRST], noise_reference[FIRST])
    seeds, perturbed = truth[REST : REST + SEEDS], truth[REST + SEEDS :]
    info = jnp.finfo(dtype)
    with np.errstate(all="ignore"):
        spread = np.abs(perturbed - seeds[0]).max(0)
        spread = np.where(np.isnan(spread), np.inf, spread)
        # What no number of this dtype is near to is not asked for.
        seeds = np.where(np.abs(seeds) < 0.9 * float(info.max), seeds, np.nan)
    seeds = np.where(np.isfinite(auto), seeds, np.nan)  # nor what autodiff cannot give either
    t, h, a = seeds[0], hand[0], auto[0]
    by_hand, by_auto = criterion.errors(hand, seeds, dtype), criterion.errors(auto, seeds, dtype)
    if (~np.isfinite(h) & np.isfinite(t)).any():
        place = criterion.worst(h, t, np.ones(t.shape)).place
        return Accuracy("nonfinite", f"{place}; autodiff is finite there", np.inf, by_hand, by_auto)
    largest = np.abs(t[np.isfinite(t)]).max(initial=0.0)
    allowed = criterion.accuracy(t, spread, uncertain, dtype) + tolerance * largest
    w, w_auto = criterion.worst(h, t, allowed), criterion.worst(a, t, allowed)
    small = criterion.worst(h, t, allowed + 2 * float(info.eps) * largest)
    errors = f"root mean square error {by_hand.rms:.2g} ulp, of autodiff {by_auto.rms:.2g}"
    inferior = not criterion.not_inferior(by_hand, by_auto, strict=strict)
    if w.ratio > max(1, 2 * w_auto.ratio) and (w_auto.ratio <= 1 or inferior):
        times = f"an error {w.ratio:.2g} times what an ulp in the arguments explains"
        if small.ratio > 1 or strict:
            what = f"{w.place}, {times} ({errors}). {LOSSES}"
            return Accuracy("accuracy", what, w.ratio, by_hand, by_auto)
        what = f"{w.place}, {times}, though below the rounding of the largest element"
        return Accuracy("note", what, w.ratio, by_hand, by_auto)
    if inferior and by_hand.rms * float(info.eps) > tolerance:
        ratio = by_hand.rms / by_auto.rms if by_auto.rms else np.inf
        return Accuracy("accuracy", f"{errors}. {LOSSES}", ratio, by_hand, by_auto)
    return Accuracy("", "", w.ratio, by_hand, by_auto)
