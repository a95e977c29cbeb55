"""Inspect the return values of fwd and bwd before JAX converts or rejects them.

JAX silently accepts a cotangent of another dtype, treats None as zero, and says little about a
wrong structure or shape. So if the function is itself a rule, its fwd and bwd are called directly.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check.criterion import as_wide
from funcnet.check.failures import classify, line
from funcnet.check.names import named_leaves
from funcnet.check.reference import cotangent_like, cotangents, pullback
from funcnet.check.report import Finding, Log
from funcnet.check.subject import is_custom_vjp, is_floating, nondiff_argnums, unbound_axis


class Halves(NamedTuple):
    """The fwd and bwd of a rule, bound to certain arguments."""

    primal: Callable[[], Any]
    fwd: Callable[[], Any]
    bwd: Callable[[Any, Any], Any]
    names: tuple[str, ...]  # of the arguments that have a cotangent
    args: tuple[Any, ...]


def halves(f: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Halves | None:
    """The fwd and bwd of f at these arguments; None if they cannot be called directly."""
    own = getattr(f, "rule", None)
    if own is not None and hasattr(own, "bwd"):  # a rule of funcnet
        bound = inspect.signature(own.primal).bind(*args, **kwargs)
        bound.apply_defaults()
        names = list(bound.signature.parameters)[: len(bound.args)]
        return Halves(
            lambda: own.primal(*bound.args, **bound.kwargs),
            lambda: own.fwd(*bound.args, **bound.kwargs),
            lambda residuals, dout: own.bwd(residuals, dout, **bound.kwargs),
            tuple(names),
            bound.args,
        )
    symbolic = getattr(f, "symbolic_zeros", getattr(f, "symz", False))
    if not is_custom_vjp(f) or symbolic or f.fwd is None:
        return None
    try:
        bound = inspect.signature(f).bind(*args, **kwargs)
    except ValueError:  # f has no signature
        return None
    bound.apply_defaults()
    if bound.kwargs or len(bound.signature.parameters) != len(bound.args):  # keyword-only, or *args
        return None
    static = nondiff_argnums(f)
    kept = [i for i in range(len(bound.args)) if i not in static]
    names = list(bound.signature.parameters)
    return Halves(
        lambda: f(*bound.args),
        lambda: f.fwd(*bound.args),
        lambda residuals, dout: f.bwd(*(bound.args[i] for i in static), residuals, dout),
        tuple(names[i] for i in kept),
        tuple(bound.args[i] for i in kept),
    )


class Form(NamedTuple):
    """The findings, and the names of the leaves whose cotangent is None."""

    findings: list[Finding]
    nones: set[str]


def inspect_out(out: Any, pair: Any) -> Finding | None:
    """Inspects what fwd returned, beside `out`, the types that the function returns."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        what = f"fwd must return (out, residuals), got {_describe(pair)}"
    elif jax.tree.structure(pair[0]) != jax.tree.structure(out):
        what = f"fwd returns {_describe(pair[0])}, but the function returns {_describe(out)}"
    else:
        return None
    return Finding("structure", "out", what, 0)


def inspect_cotangents(rule: Halves, dargs: Any) -> Form:
    """Inspects structure, shapes and dtypes of what bwd returned."""
    nones: set[str] = set()
    return Form(list(_inspect(rule, dargs, nones)), nones)


def _inspect(rule: Halves, dargs: Any, nones: set[str]) -> Iterator[Finding]:
    if not isinstance(dargs, tuple | list) or len(dargs) != len(rule.args):
        got = f"{len(dargs)}" if isinstance(dargs, tuple | list) else _describe(dargs)
        count = len(rule.args)
        must = f"{count} cotangent{'s' * (count > 1)}, one for each argument"
        what = f"bwd must return a tuple of {must}, got {got}"
        yield Finding("structure", _missing(rule, dargs), what, 0)
        return
    for name, arg, darg in zip(rule.names, rule.args, dargs, strict=True):
        yield from _inspect_one(name, arg, darg, nones)


def _missing(rule: Halves, dargs: Any) -> str:
    """The first argument without a cotangent at its position, else the last argument."""
    count = len(dargs) if isinstance(dargs, tuple | list) else 0
    return rule.names[min(count, len(rule.names) - 1)]


def _inspect_one(name: str, arg: Any, darg: Any, nones: set[str]) -> Iterator[Finding]:
    is_none = lambda d: d is None
    try:
        spread = jax.tree.leaves(jax.tree.broadcast(darg, arg, is_leaf=is_none), is_leaf=is_none)
    except ValueError:
        what = (
            f"bwd must return a cotangent of the structure {_describe(arg)}, got {_describe(darg)}"
        )
        yield Finding("structure", _differing(name, arg, darg), what, 0)
        return
    # An argument may have None in it, too.
    for (leaf_name, leaf), d in zip(named_leaves(name, arg, is_none), spread, strict=True):
        if d is None:
            nones.add(leaf_name)
        if d is None or leaf is None:
            continue
        if not is_floating(leaf) and jnp.result_type(d) != jax.dtypes.float0:
            continue
        if jnp.shape(d) != jnp.shape(leaf):
            what = (
                f"the cotangent has shape {_shape(d)}, the argument has shape {_shape(leaf)}"
                f"{_shape_cause(jnp.shape(d), jnp.shape(leaf))}"
            )
            yield Finding("shape", leaf_name, what, 0)
        elif is_floating(leaf) and jnp.result_type(d) != jnp.result_type(leaf):
            yield Finding("dtype", leaf_name, _dtypes(d, leaf), 0)


def _dtypes(d: Any, leaf: Any) -> str:
    got, must = jnp.result_type(d), jnp.result_type(leaf)
    return f"the cotangent is {got}, the argument is {must}: cast the cotangent at the end of bwd"


def _differing(name: str, arg: Any, darg: Any) -> str:
    """The first leaf that the cotangent lacks, or the argument if the whole structure differs."""
    have = {leaf for leaf, _ in named_leaves(name, darg)}
    leaves = [leaf for leaf, _ in named_leaves(name, arg)]
    missing = [leaf for leaf in leaves if leaf not in have]
    return missing[0] if 0 < len(missing) < len(leaves) else name


def _shape_cause(got: tuple[int, ...], must: tuple[int, ...]) -> str:
    if len(got) > len(must) and got[len(got) - len(must) :] == must:
        return ": sum over the leading axes, over which the argument is shared"
    if got == must[::-1]:
        return ": it is transposed"
    if len(got) == len(must):
        return ": sum over the axes along which the argument was broadcast, with keepdims"
    return ""


def _shape(x: Any) -> str:
    return str(list(jnp.shape(x)))


def _describe(tree: Any) -> str:
    """Structure, dtypes and shapes: "{'w': float32[3,4]}"."""

    class Name(str):
        __repr__ = str.__str__  # without quotes

    def leaf(x: Any) -> Name:
        try:
            return Name(f"{jnp.result_type(x)}{_shape(x)}")
        except TypeError:
            return Name(type(x).__name__)

    return repr(jax.tree.map(leaf, tree))


def check_form(log: Log, f: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[str]:
    """Calls fwd and bwd of f directly; returns the names of leaves whose cotangent is None."""
    rule = halves(f, args, kwargs)
    if rule is None:
        return set()
    found: list[Form] = []

    def called() -> None:
        pair = rule.fwd()
        of_fwd = inspect_out(jax.eval_shape(rule.primal), pair)
        if of_fwd is not None:
            found.append(Form([of_fwd], set()))
        else:
            dargs = rule.bwd(pair[1], cotangent_like(pair[0]))
            found.append(inspect_cotangents(rule, dargs))

    for call in (lambda: jax.eval_shape(called), called):  # traced, which compiles nothing
        with contextlib.suppress(Exception):  # `check_eagerly` raises and reports it too
            call()
            log.findings += found[-1].findings
            return found[-1].nones
    return set()


def check_eagerly(log: Log) -> list[np.ndarray] | None:
    """Computes the gradient without compilation, in the dtype of the arguments.

    Returns the cotangents, or None if the other checks cannot be run.
    """
    s = log.subject
    try:
        forward = lambda floats: jax.vjp(lambda floats: s.outputs(floats, s.others), floats)[0]
        out = jax.eval_shape(forward, s.floats)
        expected = jax.eval_shape(s.outputs, s.floats, s.others)
        if [y.shape for y in out] != [y.shape for y in expected]:
            got, must = ([list(y.shape) for y in ys] for ys in (out, expected))
            log.find("value", "out", f"fwd returns the shapes {got}, the function returns {must}")
            return None
        dout = cotangents(s.outputs, s.floats, s.others, 0)
        dargs, again = (pullback(s.outputs)(s.floats, s.others, dout)[1] for _ in range(2))
    except Exception as e:
        axis = unbound_axis(e)
        if axis:
            log.undecide(
                f"bwd uses the axis {axis!r}, which JAX does not bind in the gradient of jax.vmap: "
                "check the rule in jax.shard_map"
            )
            return None
        try:
            jax.block_until_ready(s.outputs(s.floats, s.others))
        except Exception as of_function:  # such as a kernel for another platform
            log.undecide(f"the function itself raises {line(of_function)}")
        else:
            log.findings.append(classify(e, "error", s.names))
        return None
    for name, leaf, d, d_again in zip(s.names, s.floats, dargs, again, strict=True):
        if d.dtype != leaf.dtype:
            log.find("dtype", name, _dtypes(d, leaf))
        if not np.array_equal(np.asarray(d), np.asarray(d_again), equal_nan=True):
            what = (
                "two calls with the same arguments differ: the rule depends on something else too, "
                "such as a NumPy random generator or a global variable"
            )
            log.find("determinism", name, what)
    if any(found.kind == "determinism" for found in log.findings):
        return None
    return [as_wide(d) for d in dargs]
