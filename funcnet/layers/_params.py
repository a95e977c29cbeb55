"""Checks of the arguments of layers: done while tracing, at no cost in compiled code."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from funcnet._arguments import check_array, check_function, describe, kind


def check_initializers(layer: str, **functions: Any) -> None:
    """Raises a TypeError unless every argument is a function of a key, a shape and a dtype.

    >>> check_initializers("Dense", w_init="he")
    Traceback (most recent call last):
    TypeError: Dense: w_init must be a function, got 'he'
    """
    for name, f in functions.items():
        check_function(layer, name, f, 3)


def initialize(layer: str, name: str, f: Any, key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Returns f(key, shape, dtype); raises a one-line error unless it is an array of this shape.

    >>> wrong = lambda key, shape, dtype: jnp.ones(2, "float32")
    >>> initialize("Dense(3)", "w_init", wrong, None, (4, 3), "float32")
    Traceback (most recent call last):
    ValueError: Dense(3): w_init must return an array of shape (4, 3), got float32[2]
    """
    array = f(key, shape, dtype)
    check_array(layer, f"what {name} returns", array)
    if jnp.shape(array) != shape:
        raise ValueError(
            f"{layer}: {name} must return an array of shape {shape}, got {describe(array)}"
        )
    return array


def shape_of(layer: str, x: Any) -> tuple[int, ...]:
    """Returns the shape of x; raises a TypeError unless x is an array or `jax.ShapeDtypeStruct`.

    >>> shape_of("Dense(3)", [1.0])
    Traceback (most recent call last):
    TypeError: Dense(3): x must be an array, got list
    """
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(f"{layer}: x must be an array, got {kind(x)}")
    return x.shape


def last_axis(layer: str, x: Any) -> int:
    """Returns the length of the last axis of x, an array or a `jax.ShapeDtypeStruct`.

    Raises:
      TypeError: If x is not an array.
      ValueError: If x is a scalar.

    >>> last_axis("Dense(3)", 1.0)
    Traceback (most recent call last):
    TypeError: Dense(3): x must be an array, got float
    """
    shape = shape_of(layer, x)
    if not shape:
        raise ValueError(f"{layer}: x must have shape (..., c), got ()")
    return shape[-1]


def check_params(layer: str, params: Any, shapes: Mapping[str, Any], x: Any = None) -> None:
    """Raises an error unless `params` has the keys and the array shapes of `shapes`.

    Args:
      layer: The name of the layer in the message, such as "Dense(3)".
      params: The params given to `apply`.
      shapes: Maps each key to a shape or to a nested mapping of the same kind.
      x: The input, if `shapes` depend on its shape; the message then includes it.

    Raises:
      TypeError: If params is not a dict.
      ValueError: If its keys or shapes are others.

    >>> import jax.numpy as jnp
    >>> check_params("Dense(3)", {"w": jnp.ones((8, 4))}, {"w": (8, 3), "b": (3,)})
    Traceback (most recent call last):
    ValueError: Dense(3): params must have w (8, 3) and b (3,), got w (8, 4)
    """
    expected, found = dict(_shapes(shapes)), dict(_shapes(params))
    if expected == found:
        return
    ordered = {name: found[name] for name in (*expected, *found) if name in found}
    is_dict = isinstance(params, Mapping)
    got = _listed(ordered) if is_dict and found else describe(params)
    raise (ValueError if is_dict else TypeError)(
        f"{layer}: params must have {_listed(expected)}, got {got}"
        + ("" if x is None else f" with x {x.shape}")
    )


def _shapes(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields name and shape of each leaf, as in ("q.w", (4, 4)); a leaf may also be a shape."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _shapes(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree if isinstance(tree, tuple) else getattr(tree, "shape", kind(tree))


def _listed(shapes: Mapping[str, Any]) -> str:
    """Formats shapes as text: w (8, 3) and b (3,)."""
    *most, last = (f"{name} {shape}" for name, shape in shapes.items())
    return f"{', '.join(most)} and {last}" if most else last
