"""Checks of the arguments of rules: arrays for positional ones, static values for options.

Each error message is one line that names the rule, the argument and the value.
"""

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import AbstractArray

from funcnet._arguments import (
    check_array,
    check_bool,
    check_int,
    describe,
    is_number,
    kind,
    type_name,
)


def check_leaves(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> None:
    """Raises a one-line TypeError if a leaf of the arguments is not an array."""
    arguments = {k: v for k, v in kwargs.items() if k in signature.parameters}
    for option in signature.parameters.values():
        if option.kind == option.KEYWORD_ONLY:
            arguments.pop(option.name, None)
    named = zip(argument_names(signature, len(args)), args, strict=False)
    for argument, value in (*named, *arguments.items()):
        for path, leaf in jax.tree.leaves_with_path(value):
            check_array(name, argument + jax.tree_util.keystr(path), leaf)


def hashable(name: str, option: str, value: Any) -> Any:
    """Makes an option hashable for `jax.jit`: lists become tuples, scalar arrays numbers."""
    try:
        hash(value)
    except TypeError:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            raise TypeError(
                f"{name}: keyword argument '{option}' is static, so it cannot be traced"
            ) from None
        if isinstance(value, list | tuple):
            return tuple(hashable(name, option, v) for v in value)
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            return value.item()
        raise TypeError(
            f"{name}: {option} must be hashable, as a static option, got {kind(value)}"
        ) from None
    return value


def annotations(f: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, as far as they can be evaluated."""
    try:
        return typing.get_type_hints(f)
    except Exception:  # names that only the type checker knows
        return {}


NUMBERS = {bool, int, float, complex, np.bool_, np.number}  # those in `jax.typing.ArrayLike`


def is_array_type(hint: Any) -> bool:
    """Whether a hint is `jax.Array`, or one of jaxtyping such as `Float[Array, "n m"]`."""
    return hint is jax.Array or (isinstance(hint, type) and issubclass(hint, AbstractArray))


def members(hint: Any) -> set[Any]:
    """The types of a union, or the one type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return set(typing.get_args(hint)) if union else {hint}


def _holds_numbers(hint: Any) -> bool:
    """Whether a hint such as `Real[Array, "n"]` names dtypes, and a PRNG key has none of them."""
    dtypes = getattr(hint, "dtypes", None)
    return isinstance(dtypes, list | tuple) and "prng_key" not in dtypes


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(jax.typeof(value).dtype, jax.dtypes.prng_key)


def check_annotation(name: str, argument: str, value: Any, hint: Any) -> None:
    """Checks a value annotated as array, bool, int or float; ignores other annotations.

    Shapes and dtypes of jaxtyping are not checked: each rule does that, with its own message.
    """
    hints = members(hint)
    if value is None and type(None) in hints:
        return
    hints -= {type(None)}
    arrays = set(filter(is_array_type, hints))
    if arrays and hints - arrays <= NUMBERS:
        check_array(name, argument, value)
        if _is_key(value) and all(map(_holds_numbers, arrays)):
            raise TypeError(f"{name}: {argument} must hold numbers, got {type_name(value)}")
    elif hints == {bool}:
        check_bool(name, argument, value)
    elif hints == {int}:
        check_int(name, argument, value)
    elif hints == {float} and not is_number(value):
        raise TypeError(f"{name}: {argument} must be a number, got {describe(value)}")


def floating(name: str, argument: str, x: Any, real: bool) -> Any:
    """Casts integers and booleans to floating numbers; refuses complex numbers if `real`."""
    if x is None:
        return x
    dtype = jax.typeof(x).dtype
    if jnp.issubdtype(dtype, jnp.floating) or (jnp.issubdtype(dtype, jnp.inexact) and not real):
        return x
    if dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(x, float)
    raise TypeError(f"{name}: {argument} must be real, got {describe_tree(x)}")


def argument_names(signature: inspect.Signature, count: int) -> list[str]:
    """The names of `count` positional arguments; those of a `*args` are numbered."""
    names = [p.name for p in signature.parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    rest = [p.name for p in signature.parameters.values() if p.kind == p.VAR_POSITIONAL]
    return names[:count] + [f"{star}[{i}]" for star in rest for i in range(count - len(names))]


def describe_tree(tree: Any) -> str:
    """Structure, dtypes and shapes in one line: "float32[3,4]", "(float32[3], None)"."""

    class Name(str):
        __repr__ = str.__str__  # without quotes

    def leaf(x: Any) -> Name:
        t = x if hasattr(x, "dtype") and hasattr(x, "shape") else jax.typeof(x)
        return Name(f"{t.dtype}[{','.join(map(str, t.shape))}]")

    return repr(jax.tree.map(leaf, tree))
