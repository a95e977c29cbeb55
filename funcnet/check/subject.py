"""The function to check, as a function of the floating leaves of its arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path

from funcnet._arguments import describe
from funcnet.check.names import named_leaves, path_name
from funcnet.check.tracing import calls_tangents, reaches, sites


class Subject(NamedTuple):
    """The function `call(floats, others)`, differentiated in `floats` but not in `others`."""

    name: str
    function: Callable[..., Any]
    rebuilt: Callable[[Any, Any], tuple[list[Any], dict[str, Any]]]  # (floats, others) -> arguments
    parameters: tuple[str, ...]  # the names of the arguments
    names: tuple[str, ...]  # of the floats: "x", "params['w']"
    other_names: tuple[str, ...]
    floats: tuple[jax.Array, ...]
    others: tuple[jax.Array, ...]  # integers, booleans and keys
    arguments: tuple[int, ...]  # the argument's index for each float, then each other
    by_tangents: bool = False  # whether its rules are of tangents (jax.custom_jvp)

    def call(self, floats: Any, others: Any) -> Any:
        """The output of the function."""
        args, kwargs = self.rebuilt(floats, others)
        return self.function(*args, **kwargs)

    def outputs(self, floats: Any, others: Any) -> tuple[Any, ...]:
        """The floating leaves of the output."""
        return tuple(y for y in jax.tree.leaves(self.call(floats, others)) if is_floating(y))

    def output_names(self) -> tuple[str, ...]:
        """The names of the floating leaves of the output: "out", "out[1]"."""
        out = jax.eval_shape(self.call, self.floats, self.others)
        return tuple(name for name, leaf in named_leaves("out", out) if is_floating(leaf))


def subject(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    python_floats: bool = True,
    draw: bool = True,
) -> Subject:
    """The `Subject` of f at these arguments.

    The floating arrays among the arguments (also inside pytrees) are differentiated, and with
    `python_floats` so are Python floats passed by position. Integer arrays, boolean arrays and keys
    become `others`. All else is static: Python integers, booleans, strings and functions, arguments
    in `nondiff_argnums`, and keyword arguments without arrays.

    Args:
      f: The function.
      args: Its positional arguments.
      kwargs: Its keyword arguments.
      python_floats: Whether to differentiate Python floats.
      draw: Whether random numbers replace each `jax.ShapeDtypeStruct`.
    """
    parameters, nondiff = _parameters(f), _nondiff(f)
    names = [*_names(parameters, len(args)), *kwargs]
    number = lambda name: parameters.index(name) if name in parameters else -1
    is_static = [i in nondiff for i in range(len(args))] + [number(k) in nondiff for k in kwargs]
    values = [
        (lambda v=value: v) if static else value
        for value, static in zip((*args, *kwargs.values()), is_static, strict=True)
    ]
    with_path, tree = tree_flatten_with_path(values)
    leaves = [leaf for _, leaf in with_path]
    floats, others = [], []  # (index of the leaf, name, index of the argument, array)
    for place, (path, leaf) in enumerate(with_path):
        i = path[0].idx
        by_position = python_floats and i < len(args)
        if is_static[i] or not (_is_array(leaf) or (by_position and isinstance(leaf, float))):
            continue
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            is_numpy = isinstance(leaf, np.ndarray)  # putting it on the device compiles nothing
            leaf = jax.device_put(leaf) if is_numpy else jnp.asarray(leaf)
        elif draw:
            leaf = drawn(leaf)
        kind = floats if is_floating(leaf) else others
        kind.append((place, names[i] + path_name(values[i], path[1:]), i, leaf))

    def rebuilt(float_leaves: Any, other_leaves: Any) -> tuple[list[Any], dict[str, Any]]:
        merged = list(leaves)
        for (place, *_), leaf in zip(
            (*floats, *others), (*float_leaves, *other_leaves), strict=True
        ):
            merged[place] = leaf
        new = jax.tree.unflatten(tree, merged)
        new = [v() if static else v for v, static in zip(new, is_static, strict=True)]
        return new[: len(args)], dict(zip(kwargs, new[len(args) :], strict=True))

    return Subject(
        name_of(f),
        f,
        rebuilt,
        tuple(names),
        tuple(name for _, name, _, _ in floats),
        tuple(name for _, name, _, _ in others),
        tuple(leaf for *_, leaf in floats),
        tuple(leaf for *_, leaf in others),
        tuple(i for _, _, i, _ in (*floats, *others)),
    )


def check_function(caller: str, name: str, f: Any) -> None:
    """Raises a TypeError unless f can be called."""
    if not callable(f):
        raise TypeError(f"{caller}: {name} must be a function, got {describe(f)}")


def name_of(f: Callable[..., Any]) -> str:
    """The name of a function, of a function that it wraps, or of its type."""
    for inner in _layers(f):
        if getattr(inner, "__name__", None):
            return inner.__name__
    return type(f).__name__


def _layers(f: Any) -> list[Any]:
    """f, the function that f wraps, and so on inwards."""
    found: list[Any] = []
    while f is not None and f not in found:
        found.append(f)
        f = getattr(f, "func", None) or getattr(f, "__wrapped__", None)
    return found


def is_custom_vjp(f: Any) -> bool:
    """Whether f is itself a `jax.custom_vjp`."""
    return hasattr(f, "defvjp") and type(f).__module__.startswith("jax.")


def is_rule(f: Any) -> bool:
    """Whether f is a rule itself: of JAX, of `funcnet.rule`, or of Flax (`nnx.custom_vjp`)."""
    return hasattr(f, "defvjp") or hasattr(f, "rule")


def nondiff_argnums(f: Any) -> tuple[int, ...]:
    """The static positions of a `jax.custom_vjp` or `custom_jvp`; empty for any other function."""
    found = getattr(f, "nondiff_argnums", None) or getattr(f, "static_argnums", None) or ()
    is_rule = hasattr(f, "defvjp") or hasattr(f, "defjvp")
    return tuple(i for i in found if isinstance(i, int)) if is_rule else ()  # Flax has others too


def _nondiff(f: Any) -> tuple[int, ...]:
    if isinstance(f, functools.partial):
        return tuple(i - len(f.args) for i in _nondiff(f.func))
    return nondiff_argnums(f)


def _parameters(f: Callable[..., Any]) -> list[str]:
    try:
        found = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return []
    return [f"*{p.name}" if p.kind == p.VAR_POSITIONAL else p.name for p in found]


def _names(parameters: list[str], count: int) -> list[str]:
    """The names of `count` positional arguments; those of `*args` are numbered."""
    names: list[str] = []
    for i in range(count):
        at = min(i, len(parameters) - 1)
        stars = [j for j, p in enumerate(parameters) if p.startswith("*") and j <= at]
        if stars:
            names.append(f"{parameters[stars[0]][1:]}[{i - stars[0]}]")
        else:
            names.append(parameters[i] if i < len(parameters) else f"args[{i}]")
    return names


def is_floating(x: Any) -> bool:
    """Whether x is of a real or complex floating dtype."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def type_name(leaf: Any) -> str:
    """Dtype and shape: "float32[3,4]"."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def drawn(spec: jax.ShapeDtypeStruct, low: int = 0, high: int = 2, seed: int = 0) -> jax.Array:
    """Random numbers of a shape and dtype: normal, booleans, a key, or integers in [low, high)."""
    random = np.random.default_rng([seed, *spec.shape])
    if jnp.issubdtype(spec.dtype, jax.dtypes.prng_key):
        return (
            jax.random.split(jax.random.key(seed), spec.shape)
            if spec.shape
            else jax.random.key(seed)
        )
    if jnp.issubdtype(spec.dtype, jnp.complexfloating):
        z = random.standard_normal(spec.shape) + 1j * random.standard_normal(spec.shape)
        return jax.device_put(np.asarray(z, spec.dtype))
    if jnp.issubdtype(spec.dtype, jnp.inexact):
        return jax.device_put(random.standard_normal(spec.shape).astype(spec.dtype))
    return jax.device_put(random.integers(low, high, spec.shape).astype(spec.dtype))


def ruled_subject(
    caller: str,
    f: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    draw: bool = True,
    tangents: bool = False,
) -> Subject:
    """The subject of f, which must call a rule and have a floating argument.

    With `tangents`, a rule may also be one of tangents (`jax.custom_jvp`).

    Raises:
      TypeError: If f is not a function, or the arguments do not fit.
      ValueError: If f calls no rule, or has no floating argument.
    """
    check_function(caller, "f", f)
    _check_signature(caller, f, args, kwargs)
    s = subject(f, args, kwargs, draw=draw)
    try:
        try:
            found = sites(s.call, s.floats, s.others)
        except jax.errors.JAXTypeError:  # a Python float must not be traced
            s = subject(f, args, kwargs, python_floats=False, draw=draw)
            found = sites(s.call, s.floats, s.others)
    except NameError as e:
        axis = unbound_axis(e)
        if not axis:
            raise
        raise ValueError(
            f"{caller}: {s.name} uses the axis {axis!r}, which is not bound here: check a function "
            "that contains the jax.shard_map with this axis"
        ) from None
    if not found and tangents and calls_tangents(s.call, s.floats, s.others):
        s = s._replace(by_tangents=True)
    elif not found:
        raise ValueError(f"{caller}: {s.name} calls no function with a rule (jax.custom_vjp)")
    if not s.floats:
        raise ValueError(f"{caller}: {s.name} has no floating argument to differentiate")
    return s


def _check_signature(caller: str, f: Any, args: Any, kwargs: Any) -> None:
    """Raises a TypeError of one line unless f can be called with these arguments."""
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # f has no signature
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as e:
        raise TypeError(f"{caller}: {name_of(f)}: {e}") from None


def unbound_axis(error: Exception) -> str:
    """The axis that a collective uses and that is not bound, or ""."""
    return str(error).partition("unbound axis name: ")[2].partition(".")[0]


def undecided_at_once(s: Subject) -> str:
    """Why nothing can be compared, whatever the rule computes; "" if something can."""
    if not s.output_names():
        return f"{s.name} has no floating output"
    if not reaches(s.outputs, s.floats, s.others, tangents=s.by_tangents):
        return "no floating output depends on a rule"
    return ""
