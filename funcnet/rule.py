"""Hand-written backward rules: declare them, look them up, and switch back to autodiff.

This is the only file that builds a `jax.custom_vjp`. A rule is three plain functions, which remain
accessible as `f.__wrapped__`, `RULES["f"].fwd` and `RULES["f"].bwd`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from funcnet._arguments import describe
from funcnet._door import (
    annotations,
    argument_names,
    check_annotation,
    check_leaves,
    describe_tree,
    floating,
    hashable,
)
from funcnet._options import as_bits, constant, may_be_traced, widened, with_options

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Rule(NamedTuple):
    """A function and its hand-written vector-Jacobian product."""

    name: str
    primal: Callable[..., Any]  # (*args, **static) -> out; autodiff differentiates this one
    fwd: Callable[..., Any]  # (*args, **static) -> (out, residuals)
    bwd: Callable[..., Any]  # (residuals, dout, **static) -> (darg, ...)


RULES: dict[str, Rule] = {}
"""All rules by function name; a rule is added when the function's module is imported."""

rules_on = jax.make_user_context(default_value=True)  # part of the cache key of `jax.jit`


@runtime_checkable
class Ruled(Protocol[P, R_co]):
    """The type of a function decorated with `rule`: the same signature, plus `defvjp`."""

    __name__: str
    __wrapped__: Callable[..., Any]

    # No docstring: editors would show it in place of the function's.
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...  # noqa: D102

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """Registers the rule: see `rule`."""
        ...


def autodiff(f: Callable[P, R]) -> Callable[P, R]:
    """Returns `f` with every hand-written rule inside it replaced by JAX autodiff.

    The switch is part of the cache key of `jax.jit`, so it also works on functions that are already
    compiled, and at any depth (scan, cond, vmap, remat, shard_map). Use it to compare the two kinds
    of gradient, and for forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`), which a
    `custom_vjp` does not support.

    >>> import jax
    >>> from funcnet import ops
    >>> y, dy = jax.jvp(autodiff(ops.sigmoid), (0.0,), (1.0,))
    >>> float(dy)
    0.25
    """
    if not callable(f):
        raise TypeError(f"autodiff: f must be a function, got {describe(f)}")

    @functools.wraps(f)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with rules_on(False):
            return f(*args, **kwargs)

    return plain


@overload
def rule(primal: Callable[P, R_co]) -> Ruled[P, R_co]: ...
@overload
def rule(
    *, real: Sequence[str] = (), inexact: Sequence[str] = ()
) -> Callable[[Callable[P, R_co]], Ruled[P, R_co]]: ...
def rule(
    primal: Callable[..., Any] | None = None,
    *,
    real: Sequence[str] = (),
    inexact: Sequence[str] = (),
) -> Any:
    """Declares a function with a hand-written rule, to be given by `primal.defvjp(fwd, bwd)`.

    With the static options bound, and ⟨·,·⟩ the sum of products over all leaves, the rule is

        primal : args ↦ out
        fwd    : args ↦ (out, residuals)
        bwd    : (residuals, dout) ↦ (darg for each arg),   Σ ⟨darg, ε⟩ = ⟨dout, ∂out·ε⟩ for any ε.

    Positional parameters are arrays or pytrees of arrays, and are differentiated; they may also be
    passed by keyword. Keyword-only parameters are static options: they are never traced, and all
    three functions receive them. A leaf without a floating or complex dtype (labels, a PRNG key)
    has no cotangent: `bwd` may return `None` for it, and any other value is discarded.

    An option annotated as `float | jax.Array` may be traced, so that `jax.vmap` runs over it. The
    three functions then get it in the dtype of the first argument, float32 at least. It has no
    derivative by the rule; `autodiff` differentiates it.

    Calls check annotations: an argument annotated as `jax.Array`, or as an array of jaxtyping, must
    be a single array; an option annotated as `bool`, `int` or `float` must have that type.

    The function is compiled: a call outside `jax.jit` runs one program, and calls with the same
    types are traced only once, also inside other functions.

    The three functions may call only jnp, lax and `f.__wrapped__`, never another rule, so that
    `jax.hessian` and the derivative of a gradient remain possible.

    Args:
      primal: The forward function `(*args, **static) -> out`, which JAX itself can differentiate.
      real: Names of arguments that must be real. The three functions get them in a floating dtype:
        integers and booleans are cast as by `jnp.exp`. Complex arguments raise a TypeError.
      inexact: Names of arguments that are cast in the same way but may be complex.

    Returns:
      A function with the signature and docstring of `primal`, and a method `defvjp(fwd, bwd)`.

    Raises:
      RuntimeError: At a call, if `defvjp` was never called.
      TypeError: At a call, if the arguments do not fit the signature or its annotations, or an
        option is traced that is static; in forward mode, which rules do not support (see
        `autodiff`). When differentiating, if `fwd` or `bwd` returns a wrong structure, shape or
        dtype, or `None` for a floating argument, or if it is with respect to an option; the message
        names the argument.
      ValueError: If `real` or `inexact` names no argument; at `defvjp`, if another module has a
        rule of the same name.

    >>> import jax, jax.numpy as jnp
    >>> @rule
    ... def cube(x):
    ...     return x**3
    >>> cube.defvjp(lambda x: (cube.__wrapped__(x), x), lambda x, dy: (3 * x**2 * dy,))
    >>> float(jax.grad(cube)(2.0))
    12.0
    """
    for option, names in (("real", real), ("inexact", inexact)):
        if not isinstance(names, tuple | list):
            raise TypeError(f"rule: {option} must be a tuple of names, got {describe(names)}")
    if primal is None:
        return functools.partial(_rule, real=real, inexact=inexact)
    return _rule(primal, real=real, inexact=inexact)


def _rule(
    primal: Callable[P, R_co], *, real: Sequence[str], inexact: Sequence[str]
) -> Ruled[P, R_co]:
    if not inspect.isfunction(primal):
        raise TypeError(f"rule: primal must be a function, got {describe(primal)}")
    name, signature = primal.__name__, inspect.signature(primal)
    for argument in (*real, *inexact):
        if argument not in signature.parameters:
            raise ValueError(f"rule: {name} must have an argument {argument!r}, as it is cast")
    options = [p.name for p in signature.parameters.values() if p.kind == p.KEYWORD_ONLY]
    numbers = frozenset[str]()  # options that may be traced
    compiled: Callable[[frozenset[str]], Callable[..., Any]] | None = None

    @functools.wraps(primal)
    def ruled(*args: P.args, **kwargs: P.kwargs) -> R_co:
        if compiled is None:
            if not rules_on.value:
                return primal(*args, **kwargs)
            raise RuntimeError(f"{name} has no rule yet: call {name}.defvjp(fwd, bwd) first")
        traced = frozenset(k for k in numbers & kwargs.keys() if isinstance(kwargs[k], Tracer))
        static = [k for k in options if k not in traced]
        kwargs.update({k: hashable(name, k, kwargs[k]) for k in static if k in kwargs})
        try:
            return compiled(traced)(*args, **kwargs)
        except TypeError as e:
            if "forward-mode" in str(e):
                raise TypeError(
                    f"{name}: a hand-written rule has no forward mode; "
                    f"funcnet.autodiff(f) has one, for a function f that calls {name}"
                ) from None
            check_leaves(name, signature, args, kwargs)
            raise

    def defvjp(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        nonlocal compiled, numbers
        where = lambda f: (f.__module__, f.__qualname__)  # a notebook cell may run twice
        if name in RULES and where(RULES[name].primal) != where(primal):
            raise ValueError(f"{name}: {RULES[name].primal.__module__} has a rule of this name")
        own = ruled.__dict__["rule"] = RULES[name] = Rule(name, primal, fwd, bwd)
        hints = annotations(primal)
        numbers = frozenset(k for k in options if may_be_traced(hints.get(k)))

        @functools.wraps(primal)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as e:
                raise TypeError(f"{name}: {e}") from None
            bound.apply_defaults()
            names = argument_names(signature, len(bound.args))
            for argument, value in [*zip(names, bound.args, strict=True), *bound.kwargs.items()]:
                hint = float if argument in numbers else hints.get(argument)
                check_annotation(name, argument, value, hint)
            args = tuple(
                floating(name, argument, x, argument in real)
                if argument in real or argument in inexact
                else x
                for argument, x in zip(names, bound.args, strict=True)
            )
            traced = {k: widened(v, args) for k, v in bound.kwargs.items() if isinstance(v, Tracer)}
            static = {k: v for k, v in bound.kwargs.items() if k not in traced}
            if not rules_on.value:
                return primal(*args, **static, **traced)
            if traced:
                bits = {k: as_bits(constant(name, k, v)) for k, v in traced.items()}
                args = (bits, *args)
                f = _custom_vjp(
                    Rule(name, *with_options(*own[1:])), ["options", *names], args, static
                )
            else:
                f = _custom_vjp(own, names, args, static)
                f.origin = functools.partial(ruled, **static)  # f itself has fixed types
            return f(*_vary_alike(args))

        @functools.cache
        def compiled_with(traced: frozenset[str]) -> Callable[..., Any]:
            static = [k for k in options if k not in traced]
            return jax.jit(call, static_argnames=static, inline=True)

        compiled = compiled_with

    ruled.__dict__.update(rule=None, defvjp=defvjp)
    return cast(Ruled[P, R_co], ruled)


def _custom_vjp(r: Rule, names: list[str], args: tuple[Any, ...], static: dict[str, Any]) -> Any:
    """Wraps `r` in a `jax.custom_vjp` for this call, and checks what fwd and bwd return."""
    primal, fwd, bwd = (functools.partial(f, **static) for f in r[1:])
    arguments = jax.tree.map(jax.typeof, args)

    @functools.wraps(r.fwd)
    def checked_fwd(*args: Any) -> Any:
        pair = fwd(*args)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"{r.name}: fwd must return (out, residuals), got {describe_tree(pair)}"
            )
        out, residuals = pair
        _check_out(r.name, out, jax.eval_shape(primal, *args))
        return _batch_alike(out, args), residuals

    @functools.wraps(r.bwd)
    def checked_bwd(residuals: Any, dout: Any) -> Any:
        dargs = bwd(residuals, dout)
        if not isinstance(dargs, tuple) or len(dargs) != len(arguments):
            raise TypeError(
                f"{r.name}: bwd must return a tuple of {len(arguments)} cotangents, one for each "
                f"argument, got {describe_tree(dargs)}"
            )
        return tuple(
            _checked_cotangent(r.name, argument, darg, type_)
            for argument, darg, type_ in zip(names, dargs, arguments, strict=True)
        )

    @functools.wraps(r.primal)
    def batched_primal(*args: Any) -> Any:
        return _batch_alike(primal(*args), args)

    signature = inspect.signature(r.primal)
    positional = [p for p in signature.parameters.values() if p.kind <= p.VAR_POSITIONAL]
    for traced in (batched_primal, checked_fwd):  # JAX keeps the names of their arguments
        traced.__dict__["__signature__"] = signature.replace(parameters=positional)

    f = jax.custom_vjp(batched_primal)
    f.defvjp(checked_fwd, checked_bwd)
    return f


def _check_out(name: str, out: Any, expected: Any) -> None:
    """Checks that the output of fwd has the structure, shapes and dtypes of the primal's."""
    if describe_tree(out) != describe_tree(expected):
        raise TypeError(
            f"{name}: fwd must return the output of the primal first, which is "
            f"{describe_tree(expected)}, got {describe_tree(out)}"
        )


def _checked_cotangent(name: str, argument: str, darg: Any, type_of: Any) -> Any:
    """Checks `darg` against `type_of` leaf by leaf; returns it with None at non-floating leaves.

    `darg` may have None in place of any subtree without floating leaves.
    """
    is_none = lambda d: d is None
    try:
        dleaves = jax.tree.leaves(
            jax.tree.broadcast(darg, type_of, is_leaf=is_none), is_leaf=is_none
        )
    except ValueError:
        raise TypeError(
            f"{name}: bwd must return a cotangent of {argument} with the structure of the "
            f"argument, {describe_tree(type_of)}, got {describe_tree(darg)}"
        ) from None
    leaves, tree = jax.tree_util.tree_flatten_with_path(type_of, is_leaf=is_none)
    found = []
    for (path, type_), d in zip(leaves, dleaves, strict=True):
        floating = type_ is not None and jnp.issubdtype(type_.dtype, jnp.inexact)
        if floating and (d is None or describe_tree(d) != describe_tree(type_)):
            leaf = f"{argument}{jax.tree_util.keystr(path)}, which is {describe_tree(type_)}"
            raise TypeError(
                f"{name}: bwd must return a cotangent of the type of {leaf}, got {describe_tree(d)}"
            )
        found.append(_placed(d, type_) if floating else None)
    return jax.tree.unflatten(tree, found)


def _placed(d: Any, type_of: Any) -> Any:
    """Reshards `d` like the argument; on an explicit mesh, the sharding is part of the type."""
    sharding = type_of.sharding
    explicit = sharding.mesh.explicit_axes and jax.typeof(d).sharding != sharding
    return jax.sharding.reshard(d, sharding) if explicit else d


def _vary_alike(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Under `shard_map`, casts each leaf to vary over every mesh axis that any leaf varies over.

    The transpose of this cast is the sum over devices, which the rule need not write then.
    """
    varying = lambda x: jax.typeof(x).manual_axis_type.varying
    axes = frozenset().union(*map(varying, jax.tree.leaves(args)))
    if not axes:
        return args
    cast_leaf = lambda x: jax.lax.pcast(x, tuple(sorted(axes - varying(x))), to="varying")
    return jax.tree.map(cast_leaf, args)


def _batch_alike(out: Any, args: tuple[Any, ...]) -> Any:
    """Under `vmap`, makes every output batched if any argument is.

    Otherwise an output that depends on no batched argument is shared by all examples. The cotangent
    of an argument that is also shared is a sum over the examples, and would count that output once
    per example (jax 0.10 does so silently, 0.12 raises an error). Both cases of the select are the
    same, so XLA removes it.
    """
    leaves = jax.tree.leaves(args)
    if len(jax.tree.leaves(out)) < 2 or len(leaves) < 2:
        return out
    which = functools.reduce(jnp.logical_or, map(_a_bit, leaves))
    return jax.tree.map(lambda y: jax.lax.select_n(which, y, y), out)


def _a_bit(x: Any) -> jax.Array:
    """A boolean that depends on x."""
    is_key = jnp.issubdtype(jax.typeof(x).dtype, jax.dtypes.prng_key)
    x = jax.random.key_data(x) if is_key else x
    return jnp.any(x != x)
