"""Compositions of layers: in sequence, in parallel, with a residual connection, repeated.

Each hands a side input of its `apply`, such as a mask, to those of its layers that name it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from funcnet._arguments import (
    check_arrays,
    check_bool,
    check_function,
    check_int,
    kind,
)
from funcnet.layers.base import (
    Layer,
    Params,
    Shaped,
    State,
    as_layer,
    entries_of,
    inputs_for,
    output_of,
)
from funcnet.sharding import pin


def chain(
    *layers: Layer | Callable[[jax.Array], jax.Array],
    **named: Layer | Callable[[jax.Array], jax.Array],
) -> Layer:
    """Applies layers in sequence.

    Params and state are tuples with one entry per layer, or dicts if the layers have names. Layer i
    gets the key `fold_in(key, i)`, so adding a layer at the end does not change the keys of the
    earlier layers. Side inputs go to the layers that name them (see `Layer`).

    Args:
      *layers: Layers, or plain functions of one array, such as `funcnet.ops.relu`, which have
        neither params nor state. A chain without layers is the identity.
      **named: Instead, the same with names, in this order.

    Raises:
      TypeError: If an argument is neither a layer nor a function of one array, or some layers have
        a name and others have none.
      ValueError: In `apply`, if params or state do not have one entry per layer.

    >>> from funcnet import ops
    >>> from funcnet.layers import Dense
    >>> net = chain(Dense(50), ops.relu, Dense(10))
    >>> net
    chain(Dense(50), relu, Dense(10))
    >>> params, state = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 784), "float32"))
    >>> jax.tree.map(lambda p: p.shape, params)
    ({'b': (50,), 'w': (784, 50)}, (), {'b': (10,), 'w': (50, 10)})
    >>> net = chain(hidden=Dense(50), act=ops.relu, out=Dense(10))
    >>> params, state = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 784), "float32"))
    >>> jax.tree.map(lambda p: p.shape, params)
    {'act': (), 'hidden': {'b': (50,), 'w': (784, 50)}, 'out': {'b': (10,), 'w': (50, 10)}}
    """
    parts, names, inner = _parts("chain", layers, named)

    def init(key, x):
        params, state, _ = _init_in_a_row(parts, key, x)
        return _by_name(names, params), _by_name(names, state)

    def apply(params, state, x, *, key=None, train=False, **inputs):
        y, state = _apply_in_a_row("chain", parts, params, state, x, key, train, inputs, names)
        return y, _by_name(names, state)

    return Layer(init, apply, f"chain({inner})", parts, _inputs(parts), names)


def residual(
    *layers: Layer | Callable[[jax.Array], jax.Array],
    shortcut: Layer | Callable[[jax.Array], jax.Array] | None = None,
) -> Layer:
    """Adds a residual connection to a chain of layers, y = x + f(x), or y = s(x) + f(x).

    f is `chain(*layers)`; params, state and keys are those of f. With a shortcut s, they are those
    of `parallel(branch=f, shortcut=s)`: params and state are dicts with these entries.

    Args:
      *layers: As for `chain`, at least one. f must keep the shape and dtype of x.
      shortcut: s, a layer or a function of one array, such as a convolution of one pixel with
        strides; f(x) must then have the shape and dtype of s(x).

    Raises:
      ValueError: If there are no layers; in `init` and `apply`, if f(x) does not have the shape and
        dtype of x, or of s(x).

    Reference: He et al., Deep residual learning for image recognition, 2016, equations 1 and 2,
    arXiv:1512.03385.

    >>> from funcnet import ops
    >>> from funcnet.layers import Dense
    >>> residual(Dense(8), ops.relu)
    residual(Dense(8), relu)
    >>> net = residual(Dense(8), ops.relu, shortcut=Dense(8, bias=False))
    >>> params, state = net.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> jax.tree.map(jnp.shape, params)
    {'branch': ({'b': (8,), 'w': (4, 8)}, ()), 'shortcut': {'w': (4, 8)}}
    """
    parts, _, inner = _parts("residual", layers, at_least=1)
    if shortcut is not None:
        return _with_shortcut(chain(*parts), as_layer("residual", shortcut), inner)
    name = f"residual({inner})"

    def init(key, x):
        params, state, y = _init_in_a_row(parts, key, x)
        _check_same(name, x, y)
        return params, state

    def apply(params, state, x, *, key=None, train=False, **inputs):
        y, state = _apply_in_a_row("residual", parts, params, state, x, key, train, inputs)
        _check_same(name, x, y)
        return x + y, state

    return Layer(init, apply, name, parts, _inputs(parts))


def _with_shortcut(branch: Layer, shortcut: Layer, inner: str) -> Layer:
    """s(x) + f(x), where f is the branch and s the shortcut."""
    name = f"residual({inner}, shortcut={shortcut.name})"

    def add(ys):
        y, s = ys
        _check_same(name, s, y, "its shortcut")
        return s + y

    both = parallel(branch=branch, shortcut=shortcut, merge=add)

    def init(key, x):
        params, state = both.init(key, x)
        output_of(both, params, state, x)  # raises an error if the two do not fit
        return params, state

    return Layer(init, both.apply, name, inputs=both.inputs)


def parallel(
    *layers: Layer | Callable[[jax.Array], jax.Array],
    merge: Callable[[Sequence[jax.Array]], jax.Array] | None = None,
    **named: Layer | Callable[[jax.Array], jax.Array],
) -> Layer:
    """Applies each layer to x and merges the outputs.

    Params and state are tuples with one entry per layer, or dicts if the layers have names; layer i
    gets the key `fold_in(key, i)`.

    Args:
      *layers: Layers, or plain functions of one array; at least one.
      merge: A function of the list of outputs. By default the outputs are concatenated along the
        last axis.
      **named: As for `chain`.

    Raises:
      TypeError: As for `chain`.
      ValueError: If there are no layers; in `apply`, if params or state do not have one entry per
        layer, or if merge is not given and the outputs differ in an axis other than the last.

    >>> from funcnet.layers import Dense
    >>> net = parallel(Dense(2), Dense(3))
    >>> params, state = net.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> net.apply(params, state, jnp.ones((1, 4)))[0].shape
    (1, 5)
    """
    branches, names, inner = _parts("parallel", layers, named, at_least=1)
    if merge is not None:
        check_function("parallel", "merge", merge, 1)

    def merged(outputs: list[jax.Array]) -> jax.Array:
        if merge is not None:
            return merge(outputs)
        for branch, y in zip(branches, outputs, strict=True):
            if not hasattr(y, "shape"):
                raise TypeError(f"parallel: {branch} must return an array, got {kind(y)}")
        if len({y.shape[:-1] for y in outputs}) > 1:
            shapes = " and ".join(str(y.shape) for y in outputs)
            raise ValueError(f"parallel: outputs may differ in the last axis alone, got {shapes}")
        return jnp.concatenate(outputs, -1)

    def each(key: Any) -> list[Any]:
        return [None if key is None else jax.random.fold_in(key, i) for i in range(len(branches))]

    def init(key, x):
        made = [branch.init(k, x) for branch, k in zip(branches, each(key), strict=True)]
        params, state = zip(*made, strict=True)
        return _by_name(names, params), _by_name(names, state)

    def apply(params, state, x, *, key=None, train=False, **inputs):
        entries = _entries("parallel", branches, params, state, names)
        outputs, states = [], []
        for branch, p, s, k in zip(branches, *entries, each(key), strict=True):
            y, s = branch.apply(p, s, x, key=k, train=train, **inputs_for(branch, inputs))
            outputs.append(y)
            states.append(s)
        return merged(outputs), _by_name(names, tuple(states))

    return Layer(init, apply, f"parallel({inner})", inputs=_inputs(branches))


def repeat(
    layer: Layer | Callable[[jax.Array], jax.Array], times: int, *, checkpoint: bool = False
) -> Layer:
    """Applies copies of a layer with separate parameters in sequence, as one `lax.scan`.

    The compiled program contains the layer once, so a deep network compiles as fast as a shallow
    one. Params and state are those of the layer with a leading axis of length `times`; copy i gets
    the key `fold_in(key, i)`. All copies get the same side inputs.

    Args:
      layer: A layer, or a function of one array, that keeps the shape and dtype of x.
      times: The number of copies, at least 1.
      checkpoint: Whether the backward pass recomputes each copy from its input (`jax.checkpoint`).

    Raises:
      ValueError: If times is less than 1; in `init` and `apply`, if the layer changes the shape or
        dtype of x; in `apply`, if params or state do not have a leading axis of length `times`.

    >>> from funcnet.layers import Dense
    >>> net = repeat(Dense(4), 3)
    >>> params, state = net.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> jax.tree.map(jnp.shape, params)
    {'b': (3, 4), 'w': (3, 4, 4)}
    """
    times = check_int("repeat", "times", times, at_least=1)
    check_bool("repeat", "checkpoint", checkpoint)
    one = as_layer("repeat", layer)
    name = f"repeat({one.name}, {times})"

    def keys_of(key):
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(times))

    def init(key, x):
        params, state = jax.eval_shape(one.init, key, x)
        _check_same(name, x, output_of(one, params, state, x))
        return jax.vmap(lambda k: one.init(k, x))(keys_of(key))

    def apply(params, state, x, *, key=None, train=False, **inputs):
        for what, tree in (("params", params), ("state", state)):
            check_arrays("repeat", what, tree)
            for path, leaf in jax.tree.leaves_with_path(tree):
                if jnp.shape(leaf)[:1] != (times,):
                    raise ValueError(
                        f"repeat: {what}{jax.tree_util.keystr(path)} must have shape "
                        f"({times}, ...), one entry for each layer, got {jnp.shape(leaf)}"
                    )

        def step(x, part):
            p, s, k = part
            y, s = one.apply(p, s, pin(x), key=k, train=train, **inputs)
            _check_same(name, x, y)
            return y, s

        keys = None if key is None else keys_of(key)
        step = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
        return jax.lax.scan(step, x, (params, state, keys), length=times)

    return Layer(init, apply, name, inputs=one.inputs)


def _init_in_a_row(
    parts: Sequence[Layer], key: Any, x: Shaped
) -> tuple[tuple[Params, ...], tuple[State, ...], Shaped]:
    """Returns params and state of each layer, and the shape and dtype of the last output."""
    params, states = [], []
    for i, layer in enumerate(parts):
        p, s = layer.init(jax.random.fold_in(key, i), x)
        x = output_of(layer, p, s, x)  # no layer has to know its output shape
        params.append(p)
        states.append(s)
    return tuple(params), tuple(states), x


def _apply_in_a_row(
    f: str,
    parts: Sequence[Layer],
    params: Any,
    state: Any,
    x: Any,
    key: Any,
    train: bool,
    inputs: Mapping[str, Any],
    names: Sequence[str] = (),
) -> tuple[Any, tuple[State, ...]]:
    """Returns the output of the last layer and the new state of each layer."""
    params, state = _entries(f, parts, params, state, names)
    states = []
    for i, (layer, p, s) in enumerate(zip(parts, params, state, strict=True)):
        k = None if key is None else jax.random.fold_in(key, i)
        x, s = layer.apply(p, s, pin(x), key=k, train=train, **inputs_for(layer, inputs))
        states.append(s)
    return x, tuple(states)


def _inputs(layers: Sequence[Layer]) -> frozenset[str]:
    """The side inputs that at least one of the layers takes."""
    return frozenset().union(*(layer.inputs for layer in layers))


def _entries(
    f: str, parts: Sequence[Layer], params: Any, state: Any, names: Sequence[str] = ()
) -> list[Sequence[Any]]:
    """The entries of params and of state; raises an error unless each has one per layer."""
    found = []
    for what, tree in (("params", params), ("state", state)):
        fits = isinstance(tree, Mapping) if names else isinstance(tree, tuple | list)
        error = ValueError if fits else TypeError
        if names and not (fits and set(tree) == set(names)):
            got = ", ".join(map(str, tree)) or "none" if fits else kind(tree)
            raise error(f"{f}: {what} must have the entries {', '.join(names)}, got {got}")
        if not names and not (fits and len(tree) == len(parts)):
            raise error(
                f"{f}: {what} must have {len(parts)} entries, one for each layer, "
                f"got {len(tree) if fits else kind(tree)}"
            )
        found.append(entries_of(names, tree))
    return found


def _by_name(names: Sequence[str], entries: tuple[Any, ...]) -> Any:
    """The entries as a dict, if they have names."""
    return dict(zip(names, entries, strict=True)) if names else entries


def _parts(
    f: str, layers: Sequence[Any], named: Mapping[str, Any] | None = None, *, at_least: int = 0
) -> tuple[tuple[Layer, ...], tuple[str, ...], str]:
    """Returns the layers, their names if they have any, and what is printed of them."""
    named = named or {}
    if layers and named:
        raise TypeError(
            f"{f}: layers must all have a name or none, got {len(layers)} without and "
            f"{', '.join(named)}"
        )
    parts = tuple(as_layer(f, layer) for layer in layers or named.values())
    if len(parts) < at_least:
        raise ValueError(f"{f}: layers must be at least one, got none")
    titles = [f"{name}=" for name in named] or [""] * len(parts)
    inner = ", ".join(title + part.name for title, part in zip(titles, parts, strict=True))
    return parts, tuple(named), inner


def _check_same(name: str, x: Any, y: Any, of: str = "x") -> None:
    for what, array in ((f"{of} must be", x), ("its layers must return", y)):
        if not hasattr(array, "shape"):
            raise TypeError(f"{name}: {what} an array, got {kind(array)}")
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        raise ValueError(
            f"{name}: its layers must keep shape and dtype of {of}, {x.shape} {x.dtype}, "
            f"got {y.shape} {y.dtype}"
        )
