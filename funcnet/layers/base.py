"""What a layer is: two pure functions and a name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax

from funcnet._arguments import check_bool, check_key, describe, is_array, kind

Params = Any  # a pytree of arrays to be trained
State = Any  # a pytree of arrays that training updates by other means: running statistics
Shaped = Any  # a jax.Array or a jax.ShapeDtypeStruct


class _Fields(NamedTuple):
    init: Callable[[Any, Shaped], tuple[Params, State]]
    apply: Callable[..., tuple[jax.Array, State]]
    name: str
    parts: tuple["Layer", ...] = ()


class Layer(_Fields):
    """A layer of a network, as two pure functions.

    init: `(key, x) -> (params, state)`. Of x only shape and dtype matter: an array or a
      `jax.ShapeDtypeStruct`. What a layer does not have is `()`.
    apply: `(params, state, x, *, key=None, train=False) -> (y, state)`. `train` is a Python bool;
      `key` is a PRNG key, needed only by layers that are random in training.
    name: How the layer is written: "Dense(50)".
    parts: The layers that it runs in a row, if it is made of some; params and state are then tuples
      with one entry for each.

    Both functions raise a TypeError of one line if x is no array, key no key or train no bool.

    A Layer is a tuple of functions: close over it, do not pass it through `jax.jit`.
    """

    __slots__ = ()

    def __new__(  # noqa: D102
        cls,
        init: Callable[[Any, Shaped], tuple[Params, State]],
        apply: Callable[..., tuple[jax.Array, State]],
        name: str,
        parts: tuple["Layer", ...] = (),
    ) -> "Layer":
        short = name if len(name) <= 60 else f"{name.partition('(')[0]}(…)"

        @functools.wraps(init)
        def checked_init(key: Any, x: Shaped) -> tuple[Params, State]:
            check_key(short, key)
            _check_x(short, x, lambda leaf: hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
            return init(key, x)

        @functools.wraps(apply)
        def checked_apply(params: Params, state: State, x: Any, **options: Any) -> Any:
            _check_x(short, x, is_array)
            if options.get("key") is not None:
                check_key(short, options["key"])
            check_bool(short, "train", options.get("train", False))
            return apply(params, state, x, **options)

        return super().__new__(cls, checked_init, checked_apply, name, parts)

    def __repr__(self) -> str:
        return self.name


def _check_x(name: str, x: Any, is_leaf: Callable[[Any], bool]) -> None:
    leaves = jax.tree.leaves(x)
    if not leaves or isinstance(x, list) or not all(map(is_leaf, leaves)):
        raise TypeError(f"{name}: x must be an array, got {kind(x)}")


def stateless(
    f: Callable[[Params, jax.Array], jax.Array], init: Callable[[Any, Shaped], Params], name: str
) -> Layer:
    """Makes a layer of a pure function that has parameters, but no state and no randomness.

    Args:
      f: `(params, x) -> y`.
      init: `(key, x) -> params`.
      name: How the layer is written.
    """

    def apply(params, state, x, *, key=None, train=False):
        del key, train
        check_none(name, "state", state)
        return f(params, x), state

    return Layer(lambda key, x: (init(key, x), ()), apply, name)


def check_none(name: str, what: str, tree: Any) -> None:
    """Raises a ValueError if there are params or state where a layer has none."""
    if jax.tree.leaves(tree):
        got = describe(tree) if is_array(tree) else kind(tree)
        raise ValueError(f"{name}: {what} must be (), as it has none, got {got}")


def as_layer(f: str, layer: Any) -> Layer:
    """What was given to the combinator f: a layer, or a function of one array as one."""
    if isinstance(layer, Layer):
        return layer
    wrong = f"{f}: layers must be layers or functions of one array, got"
    if not callable(layer):
        raise TypeError(f"{wrong} {describe(layer)}")
    name = getattr(layer, "__name__", repr(layer))
    call = f"{kind(layer)}, which makes a layer: {name}(...)"
    try:
        signature = inspect.signature(layer)
    except ValueError:  # a builtin function
        signature = None
    if signature is not None:
        if signature.return_annotation in (Layer, "Layer"):
            raise TypeError(f"{wrong} {call}")
        try:
            signature.bind(None)
        except TypeError as e:
            raise TypeError(f"{wrong} {kind(layer)}: {e}") from None

    def apply(params, x):
        check_none(name, "params", params)
        y = layer(x)
        if isinstance(y, Layer):
            raise TypeError(f"{wrong} {call}")
        leaves = jax.tree.leaves(y)
        if not leaves or not all(map(is_array, leaves)):
            raise TypeError(f"{f}: {name} must return an array, got {kind(y)}")
        return cast(jax.Array, y)

    return stateless(apply, lambda *_: (), name)
