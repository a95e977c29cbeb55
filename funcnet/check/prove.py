"""`check_rule`: find out whether a hand-written rule is right, and what is wrong with it."""

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._arguments import check_bool, check_number, describe
from funcnet.check.accuracy import check_accuracy
from funcnet.check.algebra import check_algebra
from funcnet.check.eagerly import compare_eagerly
from funcnet.check.evidence import INTENT, Evidence, Reference, gather
from funcnet.check.failures import TRACED, classify, line
from funcnet.check.inspection import check_eagerly, check_form
from funcnet.check.intent import check_options, declared
from funcnet.check.reference import wide_arithmetic, widened
from funcnet.check.report import Finding, Log, Report
from funcnet.check.subject import (
    is_rule,
    name_of,
    ruled_subject,
    subject,
    undecided_at_once,
)
from funcnet.check.tangents import check_tangents, plain_of
from funcnet.check.trials import check_again, check_transformations


@jax.disable_jit(False)
def check_rule(
    f: Callable[..., Any],
    *args: Any,
    truth: Callable[..., Any] | None = None,
    intent: Callable[..., Any] | None = None,
    dtypes: Sequence[Any] = (),
    tolerance: float = 0.0,
    under_transformations: bool = True,
    strict: bool = False,
    **static: Any,
) -> Report:
    """Proves or refutes the hand-written rule of a function at the given arguments.

    The cotangents are compared, leaf by leaf, with autodiff of the function's own plain forward: in
    float64, where only a wrong formula differs by more than rounding explains, and in the dtype of
    the arguments, to measure their accuracy (`funcnet.check.criterion` defines both comparisons).
    Finite differences are a third opinion. They are the reference where JAX cannot differentiate
    the forward (a `jax.pure_callback`), where autodiff is not finite although the value is, and
    where they agree with the rule and not with autodiff. The check also covers the structure,
    shapes and dtypes that fwd and bwd return, linearity in the cotangent, determinism, jit, vmap
    over subsets of the arguments, scan, remat, sharding, other batch sizes, and the second
    derivative.

    Args:
      f: A function that calls rules: a `jax.custom_vjp`, a function of `funcnet.ops`, or any
        function that calls these. If it calls none, its rules for tangents are checked instead
        (`jax.custom_jvp`, `jax.lax.custom_root`, `jax.lax.custom_linear_solve`).
      *args: The positional arguments of f. Floating arrays (also inside pytrees) and Python floats
        are differentiated; integer arrays, boolean arrays and keys are not; all else is static. A
        `jax.ShapeDtypeStruct` is replaced by random numbers. The arguments should reach every
        branch of the rule, including ties, zeros and extreme values where they matter.
      truth: A function of the same arguments whose float64 gradient is the reference, instead of
        autodiff of f. Use it for the function that a straight-through estimator is meant to
        differentiate (`truth=lambda x: x`), or for a stable formula if autodiff in float64 has no
        correct digit.
      intent: A function of the same arguments, followed by the cotangent of the output, that
        returns the intended cotangents: a tuple with one for each argument (None where there is
        none), or the cotangent itself if only one argument has one. Use it for a rule that is not
        linear in the output's cotangent, such as a clipped gradient
        (`intent=lambda x, dy: jnp.clip(dy, -1, 1)`). Linearity is then not checked.
      dtypes: Further dtypes in which to measure the accuracy, for example `["bfloat16"]`.
      tolerance: An error that is always allowed, relative to the largest element of a cotangent.
      under_transformations: Whether to check the transformations, which takes most of the time; use
        False to check many inputs.
      strict: Whether to require the accuracy of autodiff within 5 %, and no notes.
      **static: Keyword arguments of f. Arrays among them are treated as in `args`; all else is
        static, Python floats included.

    Returns:
      A `Report` with `.verdict` ("proved", "refuted" or "undecided"), `.ok`, `.findings` and
      `.raise_if_failed()`. Printing it shows a table. `.ok` is true for a proved rule alone; an
      undecided one has something that could not be compared, which `.undecided` tells.

    Raises:
      TypeError: If the arguments do not fit f, or an option has a wrong type.
      ValueError: If f calls no function with a hand-written rule, if it has no floating argument,
        or if an option is out of range.

    >>> import jax
    >>> @jax.custom_vjp
    ... def cube(x):
    ...     return x**3
    >>> cube.defvjp(lambda x: (x**3, x), lambda x, dy: (3 * x * dy,))
    >>> report = check_rule(cube, 2.0)
    >>> report.ok, report.findings[0].kind, report.findings[0].argument
    (False, 'gradient', 'x')
    """
    check_number("check_rule", "tolerance", tolerance, at_least=0)
    check_bool("check_rule", "under_transformations", under_transformations)
    check_bool("check_rule", "strict", strict)
    dtypes = _floating(dtypes)
    check_options(truth, intent)
    try:
        s = ruled_subject("check_rule", f, args, static, tangents=True)
    except TRACED as e:
        if not is_rule(f) and not re.search("for custom_vjp|custom_vjp functions", str(e)):
            raise ValueError(f"check_rule: {name_of(f)} cannot be traced: {line(e)}") from e
        log = Log(subject(f, args, static))
        _only_eagerly(log, e, is_declared=not (truth is None and intent is None))
        return log.report()
    log = Log(s)
    nothing = undecided_at_once(s)
    if nothing:
        log.undecide(nothing)
        return log.report()
    try:
        with np.errstate(all="ignore"):  # infinities and nan are expected
            reference = declared(s, truth, intent)
            log.against = reference.name if reference else log.against
            _check(
                log, f, args, static, reference, dtypes, tolerance, under_transformations, strict
            )
    finally:
        log.progress.end()
    if strict:
        log.findings += [Finding("note", "", warning, float("nan")) for warning in log.warnings]
        log.warnings.clear()
    return log.report()


def _only_eagerly(log: Log, error: Exception, *, is_declared: bool) -> None:
    """Finds that a rule cannot be traced, and compares it without tracing."""
    found = classify(error, "jit", log.subject.names, "under jax.jit")
    log.findings.append(found)
    if found.kind == "jit" and not is_declared:  # no other gradient is meant
        compare_eagerly(log)


def _floating(dtypes: Any) -> list[Any]:
    """The requested dtypes; raises unless each is a floating dtype."""
    must = "check_rule: dtypes must be a list of floating dtypes such as ['bfloat16']"
    if isinstance(dtypes, str) or not isinstance(dtypes, Iterable):
        raise TypeError(f"{must}, got {describe(dtypes)}")
    found = []
    for name in dtypes:
        try:
            found.append(jnp.dtype("none" if name is None else name))  # jnp.dtype(None) is float64
        except TypeError:
            raise TypeError(f"{must}, got {describe(name)} in it") from None
        if not jnp.issubdtype(found[-1], jnp.floating):
            raise ValueError(f"{must}, got {describe(name)} in it")
    return found


def _check(
    log: Log,
    f: Callable[..., Any],
    args: tuple[Any, ...],
    static: dict[str, Any],
    reference: Reference | None,
    dtypes: list[Any],
    tolerance: float,
    under_transformations: bool,
    strict: bool,
) -> None:
    """Runs the checks; an error that would cause others is found first and ends the check."""
    log.progress("form")
    nones = check_form(log, f, args, static)
    if any(found.kind in ("structure", "shape") for found in log.findings):
        return
    wrong_tangents: list[Finding] = []
    if log.subject.by_tangents and (reference is None or reference.name != INTENT):
        log.progress("tangents")
        check_tangents(log, reference.outputs if reference else plain_of(log.subject))
        if any(found.kind != "gradient" for found in log.findings):
            return
        wrong_tangents, log.findings = log.findings, []  # their cotangents tell more
    _check_cotangents(log, reference, dtypes, tolerance, nones, under_transformations, strict)
    known = {found.argument for found in log.findings}
    log.findings += [found for found in wrong_tangents if found.argument not in known]


def _check_cotangents(
    log: Log,
    reference: Reference | None,
    dtypes: list[Any],
    tolerance: float,
    nones: set[str],
    under_transformations: bool,
    strict: bool,
) -> None:
    """Runs the checks of the cotangents."""
    log.progress("eager")
    eager = check_eagerly(log)
    if eager is None:
        return
    log.progress(_compared(reference))
    context, evidence = _gathered(log, reference, tolerance)
    if evidence is None:
        return
    with context():
        check_algebra(log, evidence, eager, nones)
        if log.undecided or any(found.kind != "dtype" for found in log.findings):
            return
        raised: set[str] = set()
        if under_transformations:
            raised = check_transformations(log, evidence)
    if raised:
        check_again(log, evidence, raised)
    check_accuracy(log, evidence, dtypes, strict=strict)


def _compared(reference: Reference | None) -> str:
    """What `check_algebra` compares, in words."""
    if reference is None:
        return "value, cotangents, linearity"
    if reference.name == INTENT:
        return f"value, cotangents against {INTENT} (not linearity)"
    return f"cotangents against {reference.name}, linearity"


def _gathered(
    log: Log, reference: Reference | None, tolerance: float
) -> tuple[Any, Evidence | None]:
    """The evidence in float64, or in the dtypes of the arguments if the rule fails in float64."""
    s = log.subject
    refused = False
    for context in (wide_arithmetic, contextlib.nullcontext):
        try:
            with context():
                is_wide = context is wide_arithmetic
                floats = tuple(map(widened, s.floats)) if is_wide else s.floats
                return context, gather(log, reference, tolerance, floats)
        except Exception as e:
            if not refused:
                refused = True
                log.warn(
                    f"compared in {s.floats[0].dtype} only: in float64 {s.name} raises {line(e)}"
                )
            else:
                log.warnings.clear()
                _only_eagerly(log, e, is_declared=reference is not None)
    return contextlib.nullcontext, None
