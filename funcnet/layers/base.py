"""What a layer is, and how layers make a network."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax

Params = Any  # a pytree of arrays to be trained
State = Any  # a pytree of arrays that training updates by other means: running statistics
Shaped = Any  # a jax.Array or a jax.ShapeDtypeStruct


class Layer(NamedTuple):
    """A layer of a network, as two pure functions.

    init: `(key, x) -> (params, state)`. Of x only shape and dtype matter: an array or a
      `jax.ShapeDtypeStruct`. What a layer does not have is `()`.
    apply: `(params, state, x, *, key=None, train=False) -> (y, state)`. `train` is a Python bool;
      `key` is a PRNG key, needed only by layers that are random in training.
    name: How the layer is written: "Dense(50)".
    parts: The layers that it runs in a row, if it is made of some; params and state are then tuples
      with one entry for each.

    A Layer is a tuple of functions: close over it, do not pass it through `jax.jit`.
    """

    init: Callable[[Any, Shaped], tuple[Params, State]]
    apply: Callable[..., tuple[jax.Array, State]]
    name: str
    parts: tuple["Layer", ...] = ()

    def __repr__(self) -> str:
        return self.name


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
        return f(params, x), state

    return Layer(lambda key, x: (init(key, x), ()), apply, name)


def chain(*layers: Layer | Callable[[jax.Array], jax.Array]) -> Layer:
    """The composition of layers, the first one first.

    Params and state are tuples with one entry for each layer. Layer i gets the key
    `fold_in(key, i)`, so that a layer added at the end changes nothing in those before it.

    Args:
      *layers: Layers, or plain functions of one array (`funcnet.ops.relu`), which have neither
        params nor state.

    Raises:
      TypeError: If one of them is neither.
      ValueError: From `apply`, if params or state are those of another number of layers.

    >>> from funcnet import ops
    >>> from funcnet.layers import Dense
    >>> net = chain(Dense(50), ops.relu, Dense(10))
    >>> net
    chain(Dense(50), relu, Dense(10))
    >>> params, state = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 784), "float32"))
    >>> jax.tree.map(lambda p: p.shape, params)
    ({'b': (50,), 'w': (784, 50)}, (), {'b': (10,), 'w': (50, 10)})
    """
    parts = tuple(as_layer("chain", layer) for layer in layers)

    def init(key, x):
        params, states = [], []
        for i, layer in enumerate(parts):
            p, s = layer.init(jax.random.fold_in(key, i), x)
            x, _ = jax.eval_shape(layer.apply, p, s, x)  # so no layer has to know its output shape
            params.append(p)
            states.append(s)
        return tuple(params), tuple(states)

    def apply(params, state, x, *, key=None, train=False):
        for what, tree in (("params", params), ("state", state)):
            if len(tree) != len(parts):
                raise ValueError(
                    f"chain: {what} must have {len(parts)} entries, one for each layer, "
                    f"got {len(tree)}"
                )
        states = []
        for i, (layer, p, s) in enumerate(zip(parts, params, state, strict=True)):
            k = None if key is None else jax.random.fold_in(key, i)
            x, s = layer.apply(p, s, x, key=k, train=train)
            states.append(s)
        return x, tuple(states)

    return Layer(init, apply, f"chain({', '.join(layer.name for layer in parts)})", parts)


def as_layer(f: str, layer: Any) -> Layer:
    """What was given to the combinator f: a layer, or a function of one array as one."""
    if isinstance(layer, Layer):
        return layer
    if not callable(layer):
        raise TypeError(f"{f}: layers must be layers or functions of one array, got {layer!r}")
    name = getattr(layer, "__name__", repr(layer))
    return stateless(lambda _, x: cast(jax.Array, layer(x)), lambda *_: (), name)
