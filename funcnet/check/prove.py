"""`check_rule`: is one hand-written rule right, and if not, what is wrong with which argument?"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from funcnet._arguments import check_bool, check_number, describe
from funcnet.check.accuracy import check_accuracy
from funcnet.check.algebra import Evidence, check_algebra, gather
from funcnet.check.failures import classify, line
from funcnet.check.inspection import check_eagerly, check_form
from funcnet.check.reference import wide_arithmetic, widened
from funcnet.check.report import Finding, Log, Report
from funcnet.check.subject import Subject, check_function, ruled_subject, subject
from funcnet.check.trials import check_again, check_transformations


def check_rule(
    f: Callable[..., Any],
    *args: Any,
    truth: Callable[..., Any] | None = None,
    dtypes: Sequence[Any] = (),
    tolerance: float = 0.0,
    under_transformations: bool = True,
    strict: bool = False,
    **static: Any,
) -> Report:
    """Proves or refutes the hand-written rule of a function, at these arguments.

    The cotangents are compared, leaf by leaf, with autodiff of the function's own plain forward: in
    float64, where only a wrong formula differs by more than rounding explains, and in the dtype of
    the arguments, for their accuracy (`funcnet.check.criterion` states both). Finite differences
    are the third opinion, and the reference where JAX cannot differentiate the forward (a
    `jax.pure_callback`). Then come: the form of what fwd and bwd return; linearity in the
    cotangent; determinism; jit, vmap over subsets of the arguments, scan, remat, sharding; another
    batch size; the second derivative.

    Args:
      f: A function that calls rules: a `jax.custom_vjp`, one of `funcnet.ops`, or any function
        around them.
      *args: Its arguments. Floating arrays, in pytrees too, and Python floats are differentiated;
        integer and boolean arrays and keys are not; all else is static. A `jax.ShapeDtypeStruct`
        stands for random numbers. The arguments should reach every branch of the rule: ties, zeros
        and extreme values, where they matter.
      truth: A function of the same arguments whose gradient, in float64, is taken for right in
        place of autodiff of f. Say what a straight-through estimator is meant to be the gradient of
        (`truth=lambda x: x`), or a stable formula where autodiff in float64 has no correct digit.
      dtypes: Dtypes to measure the accuracy in, besides that of the arguments: `["bfloat16"]`.
      tolerance: An error to allow in any case, relative to the largest element of a cotangent.
      under_transformations: Whether to try the transformations, which take most of the time; leave
        them out to check many inputs.
      strict: Whether to ask for the accuracy of autodiff within 5 %, and for no notes.
      **static: Keyword arguments of f; arrays among them are differentiated, the rest is static.

    Returns:
      A `Report`: `.ok`, `.findings`, a table when printed, `.raise_if_failed()`.

    Raises:
      TypeError: If the arguments do not fit f, or an option is of another type.
      ValueError: If f calls no function with a hand-written rule, or has no floating argument; or
        an option is out of its range.

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
    if truth is not None:
        check_function("check_rule", "truth", truth)
    s = ruled_subject("check_rule", f, args, static)
    log = Log(s)
    try:
        with np.errstate(all="ignore"):  # infinities and nan are among what is looked for
            _check(log, f, args, static, truth, dtypes, tolerance, under_transformations, strict)
    finally:
        log.progress.end()
    if strict:
        log.findings += [Finding("note", "", warning, float("nan")) for warning in log.warnings]
        log.warnings.clear()
    return log.report()


def _floating(dtypes: Any) -> list[Any]:
    """The dtypes that are asked for, if they are floating ones."""
    must = "check_rule: dtypes must be a list of floating dtypes such as ['bfloat16']"
    if isinstance(dtypes, str) or not isinstance(dtypes, Iterable):
        raise TypeError(f"{must}, got {describe(dtypes)}")
    found = []
    for name in dtypes:
        try:
            found.append(jnp.dtype("none" if name is None else name))  # None would be float64
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
    truth: Callable[..., Any] | None,
    dtypes: list[Any],
    tolerance: float,
    under_transformations: bool,
    strict: bool,
) -> None:
    """In an order in which an error explains those that would follow from it."""
    log.progress("form")
    nones = check_form(log, f, args, static)
    if any(found.kind in ("structure", "shape") for found in log.findings):
        return
    log.progress("eager")
    eager = check_eagerly(log)
    if eager is None:
        return
    log.progress("algebra")
    of_truth = subject(truth, args, static) if truth else None
    context, evidence = _gathered(log, of_truth, tolerance)
    if evidence is None:
        return
    with context():
        check_algebra(log, evidence, eager, nones)
        if any(found.kind != "dtype" for found in log.findings):
            return
        raised: set[str] = set()
        if under_transformations:
            log.progress("vmap, scan, remat, second derivative, batch size, sharding")
            raised = check_transformations(log, evidence)
    if raised:
        check_again(log, evidence, raised)
    check_accuracy(log, evidence, dtypes, strict=strict)


def _gathered(log: Log, truth: Subject | None, tolerance: float) -> tuple[Any, Evidence | None]:
    """The evidence in float64; or, of a rule that refuses it, in the dtypes of the arguments."""
    s = log.subject
    refused = False
    for context in (wide_arithmetic, contextlib.nullcontext):
        try:
            with context():
                is_wide = context is wide_arithmetic
                floats = tuple(map(widened, s.floats)) if is_wide else s.floats
                return context, gather(log, truth, tolerance, floats)
        except Exception as e:
            if not refused:
                refused = True
                log.warn(f"compared in {s.floats[0].dtype} only: in float64 {s.name} {line(e)}")
            else:
                log.warnings.clear()
                log.findings.append(classify(e, "jit", s.names, "under jax.jit the rule"))
    return contextlib.nullcontext, None
