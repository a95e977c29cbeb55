"""Record which rules a program calls, and with which arguments.

A `Recorder` replaces the `__call__` of `jax.custom_vjp` and `jax.custom_jvp` while it is open. A
rule that is created at each call (by a closure, by `functools.partial`, by `funcnet.rule`) is
recognized by its code and by the plain values that it closes over, so each rule is kept once for
each signature.
"""

import contextlib
import functools
import inspect
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend.source_info_util as source
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnet.check.subject import name_of, nondiff_argnums, type_name

LARGEST = 1_000_000  # elements of an array whose values are kept
MEMORY = 20_000_000  # elements of all arrays whose values are kept
PLAIN = bool | int | float | complex | str | bytes | type(None)
CHECKER = tuple(str(Path(__file__).parents[1] / part) + os.sep for part in ("check", "profile"))
JAX = str(Path(jax.__file__).parent) + os.sep

source.register_exclusion(__file__)  # an equation belongs to the line that calls the rule


class Place(NamedTuple):
    """Where a rule is defined."""

    file: str
    line: int


class Call(NamedTuple):
    """A call of a rule, with arguments that can be built again."""

    f: Callable[..., Any]
    name: str
    place: Place
    signature: str  # "float32[8,5], axis=0"
    static: dict[int, Any]  # the arguments in nondiff_argnums, by position
    tree: Any  # of the other arguments
    leaves: tuple[Any, ...]  # values, and a jax.ShapeDtypeStruct for each that is not known
    wide: bool  # whether 64 bits were enabled
    test: str  # the test that called it first

    @property
    def size(self) -> int:
        """The number of elements of the arguments."""
        return sum(np.size(x) if isinstance(x, np.ndarray) else _elements(x) for x in self.leaves)

    @property
    def unknown(self) -> int:
        """The number of leaves whose values are not known."""
        return sum(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in self.leaves)

    def arguments(self, draw: Callable[[jax.ShapeDtypeStruct, int], Any]) -> list[Any]:
        """The arguments, with `draw(spec, place)` for each leaf whose value is not known."""
        leaves = [
            draw(leaf, i) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
            for i, leaf in enumerate(self.leaves)
        ]
        found = list(jax.tree.unflatten(self.tree, leaves))
        for i, value in sorted(self.static.items()):
            found.insert(i, value)
        return found


class Recorder:
    """A context manager that records the calls of rules.

    Calls that `check_rule`, `check_model` and `profile_rule` make are left out, and so are calls
    that raise. A value is kept, as a copy on the host, if it is concrete (also inside `jax.grad`)
    and has at most 1,000,000 elements; inside `jax.jit`, `jax.vmap` and `jax.lax.scan`, only shape
    and dtype are known. If a later call of the same signature knows more values, it is kept
    instead.
    """

    def __init__(self):
        self.calls: dict[Any, Call] = {}
        self.lost: dict[tuple[str, Place], str] = {}  # rules that cannot be called again, and why
        self._held = 0
        self._identities: Any = weakref.WeakKeyDictionary()
        self._replaced: list[tuple[type, Any]] = []

    def __enter__(self) -> "Recorder":
        # With JAX_CUSTOM_VJP3=1, jax.custom_vjp returns an instance of another class.
        self._replace(type(jax.custom_vjp(lambda x: x)), self._see)
        self._replace(type(jax.custom_jvp(lambda x: x)), self._see_jvp)
        return self

    def __exit__(self, *error: object) -> None:
        while self._replaced:
            kind, original = self._replaced.pop()
            kind.__call__ = original

    def _replace(self, kind: type, see: Callable[..., None]) -> None:
        original: Any = kind.__call__

        @functools.wraps(original)
        def call(f: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            out = original(f, *args, **kwargs)
            try:
                see(f, args, kwargs)
            except Exception as e:  # a rule that is not recorded must not fail a test
                self.lost[_named(f)] = f"it cannot be recorded: {type(e).__name__}: {e}"
            return out

        self._replaced.append((kind, original))
        kind.__call__ = call

    def _see(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs:  # JAX passes all arguments of a rule by position
            bound = inspect.signature(f).bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        f = getattr(f, "origin", f)  # a rule of funcnet builds its custom_vjp at each call
        static = {i: args[i] for i in nondiff_argnums(f) if i < len(args)}
        leaves, tree = jax.tree.flatten([x for i, x in enumerate(args) if i not in static])
        if not any(isinstance(x, float) or _is_array_of_floats(x) for x in leaves):
            return  # there is nothing to differentiate
        concrete = [_concrete(leaf) for leaf in leaves]
        try:
            identity = self._identity(f), tuple((i, _identity(x)) for i, x in static.items())
        except _Traced:
            if not _is_checking():
                self.lost[_named(f)] = "it closes over a traced value"
            return
        key = identity, _without_addresses(str(tree)), tuple(map(_type, leaves))
        seen = self.calls.get(key)
        if seen and seen.unknown <= sum(isinstance(x, Tracer) for x in concrete):
            return
        if _is_checking():
            return
        texts = [_type(leaf) for leaf in leaves]
        texts += [f"{_parameter(f, i)}={_brief(x)}" for i, x in static.items()]
        if isinstance(f, functools.partial):
            texts += [f"{name}={_brief(x)}" for name, x in f.keywords.items()]
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        self.calls[key] = Call(
            f, *_named(f), ", ".join(texts), static, tree, tuple(map(self._kept, concrete)),
            bool(jax.config.read("jax_enable_x64")), seen.test if seen else test,
        )  # fmt: skip

    def _see_jvp(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _named(f)[1].file.startswith(JAX):  # JAX has a lot of them
            self._see(f, args, kwargs)

    def _identity(self, f: Any) -> Any:
        """The identity of a rule: of its function, fwd and bwd, or jvp."""
        if isinstance(f, functools.partial):
            return _identity(f)
        if f not in self._identities:
            self._identities[f] = tuple(
                _identity(getattr(f, name, None)) for name in ("__wrapped__", "fwd", "bwd", "jvp")
            )
        return self._identities[f]

    def _kept(self, leaf: Any) -> Any:
        """The value of a leaf, or its shape and dtype if the value is traced or too large."""
        if not hasattr(leaf, "dtype"):
            return leaf
        spec = jax.ShapeDtypeStruct(jax.typeof(leaf).shape, jax.typeof(leaf).dtype)
        size = _elements(spec)
        if isinstance(leaf, Tracer) or size > LARGEST or self._held + size > MEMORY:
            return spec
        if jnp.issubdtype(spec.dtype, jax.dtypes.extended):  # a key
            return leaf
        self._held += size
        return np.array(leaf)


class _Traced(Exception):
    """A rule closes over a traced value, which is gone when its trace has ended."""


def _concrete(leaf: Any) -> Any:
    """The value of a tracer that has one, as in an eager `jax.grad`; else the leaf itself."""
    value = leaf.to_concrete_value() if hasattr(leaf, "to_concrete_value") else None
    return leaf if value is None else value


def _is_array_of_floats(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_checking() -> bool:
    """Whether the checker makes the call."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(CHECKER):
            return True
        frame = frame.f_back
    return False


def _named(f: Any) -> tuple[str, Place]:
    """The name of a rule and the place of its definition."""
    for own in (f, getattr(f, "fwd", None), getattr(f, "bwd", None)):
        *_, inner = _layers(own)
        code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
        if code is not None:
            return name_of(f), Place(code.co_filename, code.co_firstlineno)
    return name_of(f), Place("", 0)


def _layers(f: Any) -> Iterator[Any]:
    """The function f, the function that it wraps, and so on inwards."""
    seen: set[int] = set()
    while f is not None and id(f) not in seen:
        seen.add(id(f))
        yield f
        f = f.func if isinstance(f, functools.partial) else getattr(f, "__wrapped__", None)


def _identity(x: Any, seen: frozenset[int] = frozenset()) -> Any:
    """What tells values apart: numbers and text themselves; code, defaults, closure of functions.

    Of any other object only the type counts, and of an array shape and dtype.

    Raises:
      _Traced: If a traced value is found.
    """
    if isinstance(x, PLAIN):
        return type(x), x
    if isinstance(x, Tracer):
        raise _Traced
    if id(x) in seen:
        return None
    inside = functools.partial(_identity, seen=seen | {id(x)})
    if isinstance(x, functools.partial):
        return inside(x.func), inside(x.args), inside(x.keywords)
    if isinstance(x, tuple | list) and len(x) <= 100:
        return type(x), *map(inside, x)
    if isinstance(x, dict) and len(x) <= 100:
        return dict, *((str(name), inside(value)) for name, value in x.items())
    wrapped = getattr(x, "__wrapped__", None) if callable(x) else None
    if inspect.isfunction(x) or inspect.ismethod(x):
        # Equal lines of two files have equal code, but not the same globals.
        code = x.__code__.co_filename, x.__code__
        return *code, *map(inside, _held(x)), wrapped and inside(wrapped)
    if wrapped is not None:
        return type(x), inside(wrapped)
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return _type(x)
    return type(x)


def _held(f: Any) -> Iterator[Any]:
    """The values of a function's defaults (`n=n`), and those that it closes over."""
    yield from (f.__defaults__, f.__kwdefaults__)
    for cell in f.__closure__ or ():
        with contextlib.suppress(ValueError):  # a cell that is still empty
            yield cell.cell_contents


def _type(leaf: Any) -> str:
    """The shape and dtype of a leaf, or the type of a Python value."""
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return type_name(leaf if isinstance(leaf, np.ndarray) else jax.typeof(leaf))


def _elements(leaf: Any) -> int:
    return int(np.prod(getattr(leaf, "shape", ()), dtype=np.int64))


def _parameter(f: Any, i: int) -> str:
    return [*inspect.signature(f).parameters, *["*"] * (i + 1)][i]


def _brief(x: Any) -> str:
    if callable(x):
        return name_of(x)
    text = _without_addresses(repr(x))
    return text if len(text) <= 40 else type(x).__name__


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)
