"""The type `Layer`: two pure functions and a name."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import numpy as np

from funcnet._arguments import check_bool, check_function, check_key, describe, is_array, kind

Params = Any  # a pytree of trainable arrays
State = Any  # a pytree of arrays updated without gradients, such as running statistics
Shaped = Any  # a jax.Array or a jax.ShapeDtypeStruct
Input = jax.Array | np.ndarray | tuple[Any, ...] | dict[str, Any] | None  # a side input


shapes_only = jax.make_user_context(default_value=False)
"""Whether a layer is applied for the shape of its output alone; in the cache key of jit."""


class Init(Protocol):
    """The type of `Layer.init`."""

    def __call__(self, key: Any, x: Shaped) -> tuple[Params, State]: ...  # noqa: D102


class Apply(Protocol):
    """The type of `Layer.apply`."""

    def __call__(  # noqa: D102
        self,
        params: Params,
        state: State,
        x: Any,
        *,
        key: Any = None,
        train: bool = False,
        **inputs: Input,
    ) -> tuple[jax.Array, State]: ...


class _Fields(NamedTuple):
    init: Init
    apply: Apply
    name: str
    parts: tuple["Layer", ...] = ()
    inputs: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()


class Layer(_Fields):
    """A layer of a network, as two pure functions.

    init: `(key, x) -> (params, state)`. x is an array or a `jax.ShapeDtypeStruct`; only its shape
      and dtype are used. If a layer has no params or no state, they are `()`.
    apply: `(params, state, x, *, key=None, train=False, **inputs) -> (y, state)`. `train` is a
      Python bool; `key` is a PRNG key, needed only by layers that are random in training.
    name: The printed form of the layer, such as "Dense(50)".
    parts: The layers that this layer applies in sequence, if it consists of layers; params and
      state are then tuples with one entry per layer.
    inputs: The names of the side inputs: arrays besides x, such as a mask, which `apply` takes as
      keyword arguments. By default these are the keyword-only arguments of `apply` other than key
      and train; each must have a default, usually None. A layer that consists of others hands each
      side input to those that name it. `init` needs none: where `init` infers the shape of a
      layer's output, it calls the layer's `apply` without them.
    names: The names of the parts, if they have any; params and state are then dicts by name.

    Both functions raise a one-line TypeError if x is not an array, key is not a PRNG key or train
    is not a bool; apply also if it is given a side input that the layer does not take.

    A Layer is a tuple of functions: close over it instead of passing it to a jitted function.
    """

    __slots__ = ()

    def __new__(  # noqa: D102
        cls,
        init: Callable[[Any, Shaped], tuple[Params, State]],
        apply: Callable[..., tuple[jax.Array, State]],
        name: str,
        parts: tuple["Layer", ...] = (),
        inputs: Iterable[str] | None = None,
        names: tuple[str, ...] = (),
    ) -> "Layer":
        if not isinstance(name, str):
            raise TypeError(f"Layer: name must be a string, got {describe(name)}")
        if not (isinstance(parts, tuple) and all(isinstance(part, Layer) for part in parts)):
            raise TypeError(f"Layer: parts must be a tuple of layers, got {describe(parts)}")
        if names and len(names) != len(parts):
            raise ValueError(f"Layer: names must be one for each part, got {describe(names)}")
        check_function("Layer", "init", init, 2)
        check_function("Layer", "apply", apply, 3, key=None, train=False)
        short = name if len(name) <= 60 else f"{name.partition('(')[0]}(…)"
        takes = inputs_of(apply) if inputs is None else frozenset(inputs)

        @functools.wraps(init)
        def checked_init(key: Any, x: Shaped) -> tuple[Params, State]:
            check_key(short, key)
            _check_x(short, x, _is_shaped)
            return _pair(short, "init", "params, state", init(key, x))

        @functools.wraps(apply)
        def checked_apply(
            params: Params,
            state: State,
            x: Any,
            *,
            key: Any = None,
            train: bool = False,
            **inputs: Input,
        ) -> tuple[jax.Array, State]:
            _check_x(short, x, is_array)
            if key is not None:
                check_key(short, key)
            check_bool(short, "train", train)
            for given in inputs:
                if given not in takes:
                    raise TypeError(
                        f"{short}: apply takes no argument {given!r}; "
                        f"its side inputs are {', '.join(sorted(takes)) or 'none'}"
                    )
            y = apply(params, state, x, key=key, train=train, **inputs)
            return _pair(short, "apply", "y, state", y)

        for f, role in ((checked_init, "init"), (checked_apply, "apply")):
            f.__qualname__ = f"{short}.{role}"  # Python's errors about missing arguments begin so
        return super().__new__(cls, checked_init, checked_apply, name, parts, takes, names)

    def __repr__(self) -> str:
        return self.name


def inputs_of(f: Callable[..., Any]) -> frozenset[str]:
    """The names of the side inputs of f: its keyword-only arguments other than key and train."""
    parameters = inspect.signature(f).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) - {"key", "train"}


def entries_of(names: Sequence[str], tree: Any) -> Sequence[Any]:
    """The entries of params or state for each part of a layer; `names` are those of the parts."""
    return [tree[name] for name in names] if names else tree


def inputs_for(layer: Layer, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the side inputs that the layer takes."""
    return {name: value for name, value in inputs.items() if name in layer.inputs}


def output_of(layer: Layer, params: Params, state: State, x: Shaped) -> Shaped:
    """The shape and dtype of a layer's output, found without side inputs."""
    with shapes_only(True):
        return jax.eval_shape(lambda *args: layer.apply(*args)[0], params, state, x)


def _pair(name: str, function: str, what: str, result: Any) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"{name}: {function} must return ({what}), got {describe(result)}")
    return result


def _is_shaped(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct) or (is_array(x) and hasattr(x, "dtype"))


def _check_x(name: str, x: Any, is_leaf: Callable[[Any], bool]) -> None:
    leaves = jax.tree.leaves(x)
    if not leaves or isinstance(x, list) or not all(map(is_leaf, leaves)):
        raise TypeError(f"{name}: x must be an array, got {kind(x)}")


def stateless(
    f: Callable[..., jax.Array], init: Callable[[Any, Shaped], Params], name: str
) -> Layer:
    """Makes a layer from a pure function that has parameters, but no state and no randomness.

    Args:
      f: `(params, x) -> y`; its keyword-only arguments are side inputs of the layer.
      init: `(key, x) -> params`.
      name: The printed form of the layer.

    Raises:
      TypeError: If f or init is not a function of two arguments, or name is not a string.
    """
    check_function("stateless", "f", f, 2)
    check_function("stateless", "init", init, 2)

    def apply(params, state, x, *, key=None, train=False, **inputs):
        del key, train
        check_none(name, "state", state)
        return f(params, x, **inputs), state

    return Layer(lambda key, x: (init(key, x), ()), apply, name, inputs=inputs_of(f))


def parameterless(f: Callable[[jax.Array], jax.Array], name: str) -> Layer:
    """Makes a layer without params from a function of one array."""

    def apply(params, x):
        check_none(name, "params", params)
        return f(x)

    return stateless(apply, lambda *_: (), name)


def check_none(name: str, what: str, tree: Any) -> None:
    """Raises a ValueError if `tree`, the params or state of a layer without any, has leaves."""
    if jax.tree.leaves(tree):
        got = describe(tree) if is_array(tree) else kind(tree)
        raise ValueError(f"{name}: {what} must be (), as it has none, got {got}")


def as_layer(f: str, layer: Any) -> Layer:
    """Returns the argument of the combinator f as a layer; wraps a function of one array."""
    if isinstance(layer, Layer):
        return layer
    wrong = f"{f}: layers must be layers or functions of one array, got"
    if not callable(layer) or isinstance(layer, type):
        raise TypeError(f"{wrong} {kind(layer) if callable(layer) else describe(layer)}")
    name = getattr(layer, "__name__", repr(layer))
    call = f"{kind(layer)}, which makes a layer: {name}(...)"
    try:
        signature = inspect.signature(layer)
    except ValueError:  # a builtin function has no signature
        signature = None
    if signature is not None:
        if signature.return_annotation in (Layer, "Layer"):
            raise TypeError(f"{wrong} {call}")
        try:
            signature.bind(None)
        except TypeError as e:
            raise TypeError(f"{wrong} {kind(layer)}: {e}") from None

    def apply(x):
        y = layer(x)
        if isinstance(y, Layer):
            raise TypeError(f"{wrong} {call}")
        leaves = jax.tree.leaves(y)
        if not leaves or not all(map(is_array, leaves)):
            raise TypeError(f"{f}: {name} must return an array, got {kind(y)}")
        return cast(jax.Array, y)

    return parameterless(apply, name)
