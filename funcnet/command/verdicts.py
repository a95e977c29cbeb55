"""Prove or refute the recorded calls of rules, in the time that is given."""

import contextlib
import signal
import threading
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check.failures import line
from funcnet.check.prove import check_rule
from funcnet.check.subject import drawn, is_floating
from funcnet.command.recording import JAX, Call, Place, Recorder

VERDICTS = ("refuted", "undecided", "not checked", "proved")


class Outcome(NamedTuple):
    """What was found about one rule at one signature."""

    verdict: str  # one of VERDICTS
    name: str
    file: str
    line: int
    signature: str
    reason: str  # what is wrong, or why there is no verdict, in one line
    report: str  # the whole report
    test: str  # the test that called the rule first
    random: bool  # whether arguments were drawn at random
    seconds: float


def verdicts(recorder: Recorder, seconds: float, excepted: Sequence[str] = ()) -> Iterator[Outcome]:
    """The outcome of each recorded call; those not reached in `seconds` are not checked.

    The smallest arguments of each rule come first, then the second smallest, and so on; the rules
    of JAX itself come last.

    Args:
      recorder: It has recorded the calls.
      seconds: The time for all checks. The check that runs at its end is stopped.
      excepted: Names of rules that are not checked.
    """
    for (name, place), reason in recorder.lost.items():
        yield Outcome("undecided", name, *place, "", reason, "", "", False, 0.0)
    start = time.perf_counter()
    names: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    for call in _in_order(recorder.calls.values()):
        names[call.name, call.place, call.signature] += 1
        count = names[call.name, call.place, call.signature]
        again = f" #{count}" if count > 1 else ""  # they differ in what they close over
        began = time.perf_counter()
        if call.name in excepted:
            verdict, reason, report = "not checked", "excepted", ""
        else:
            verdict, reason, report = _verdict_within(start + seconds - began, call)
        yield Outcome(
            verdict, call.name, *call.place, call.signature + again, reason, report, call.test,
            call.unknown > 0, time.perf_counter() - began,
        )  # fmt: skip


def _in_order(calls: Iterable[Call]) -> list[Call]:
    by_rule: defaultdict[tuple[str, Place], list[Call]] = defaultdict(list)
    for call in sorted(calls, key=lambda call: call.size):
        by_rule[call.name, call.place].append(call)
    turns = [(i, call) for of_one in by_rule.values() for i, call in enumerate(of_one)]
    turns.sort(key=lambda turn: (turn[1].place.file.startswith(JAX), turn[0], turn[1].size))
    return [call for _, call in turns]


def _verdict_within(seconds: float, call: Call) -> tuple[str, str, str]:
    """The verdict, its reason and the report, if they are found in this time."""
    if seconds > 0:
        with contextlib.suppress(_OutOfTime), _alarm(seconds) as is_over:
            found = _verdict(call)
            if not is_over():
                return found
    return "not checked", "out of time", ""


class _OutOfTime(BaseException):
    """Ends a check; a BaseException, so that no handler of other errors takes it for one."""


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[Callable[[], bool]]:
    """Raises `_OutOfTime` after this time, where the system has timers.

    Yields a function that tells whether the time is over, because code may swallow the exception.
    """
    rung: list[bool] = []
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, "setitimer"):
        yield lambda: False
        return

    def ring(_: int, frame: Any) -> None:
        rung.append(True)
        running = {f.f_code.co_name for f, _ in traceback.walk_stack(frame)}
        if not running & {"__del__", "_xla_gc_callback"}:
            raise _OutOfTime
        signal.setitimer(signal.ITIMER_REAL, 0.01, 1.0)  # Python would only print it there

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second
    try:
        yield lambda: bool(rung)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _verdict(call: Call) -> tuple[str, str, str]:
    """The verdict, its reason and the report; whatever the rule raises leaves it undecided."""
    try:
        with (
            jax.enable_x64(call.wide),
            jax.debug_nans(False),
            jax.debug_infs(False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            report = check_rule(call.f, *arguments_of(call))
    except (Exception, SystemExit) as e:
        reason = str(e).partition("\n")[0]
        ours = reason.startswith("check_rule: ")
        return "undecided", reason.removeprefix("check_rule: ") if ours else line(e), ""
    if report.findings and all(f.kind in ("error", "tracer") for f in report.findings):
        # It may need what is gone now, such as a trace or the state of a test.
        return "undecided", report.findings[0].message, str(report)
    found = [f"{f.kind} of {f.argument}" if f.argument else f.kind for f in report.findings]
    return report.verdict, "; ".join([*found, *report.undecided]), str(report)


def arguments_of(call: Call) -> list[Any]:
    """The arguments of a call; unknown values are normal numbers, and integers 0 and 1.

    If the function is not finite there, as a logarithm is not, they are uniform numbers in (0, 1),
    and integers 1.
    """
    normal = call.arguments(_normal)
    if not call.unknown or _is_finite(call.f, normal):
        return normal
    uniform = call.arguments(_uniform)
    return uniform if _is_finite(call.f, uniform) else normal


def _normal(spec: jax.ShapeDtypeStruct, place: int) -> Any:
    return drawn(spec, seed=place)


def _uniform(spec: jax.ShapeDtypeStruct, place: int) -> Any:
    if jnp.issubdtype(spec.dtype, jnp.integer):
        return jnp.ones(spec.shape, spec.dtype)
    if not jnp.issubdtype(spec.dtype, jnp.floating):
        return drawn(spec, seed=place)
    return jnp.asarray(np.random.default_rng(place).uniform(0, 1, spec.shape), spec.dtype)


def _is_finite(f: Callable[..., Any], args: list[Any]) -> bool:
    leaves = [y for y in jax.tree.leaves(f(*args)) if is_floating(y)]
    return all(bool(jnp.isfinite(y).all()) for y in leaves)
