"""Whether what a layer is given fits: checked while tracing, at no cost when compiled."""

from collections.abc import Iterator, Mapping
from typing import Any

from funcnet._arguments import describe, kind


def check_functions(layer: str, **functions: Any) -> None:
    """Raises a TypeError unless each is a function.

    >>> check_functions("Dense", w_init="he")
    Traceback (most recent call last):
    TypeError: Dense: w_init must be a function, got 'he'
    """
    for name, f in functions.items():
        if not callable(f):
            raise TypeError(f"{layer}: {name} must be a function, got {describe(f)}")


def last_axis(layer: str, x: Any) -> int:
    """The length of the last axis of x, an array or a `jax.ShapeDtypeStruct`.

    Raises:
      TypeError: If x is no array.
      ValueError: If it has no axis.

    >>> last_axis("Dense(3)", [1.0])
    Traceback (most recent call last):
    TypeError: Dense(3): x must be an array, got list
    """
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"{layer}: x must be an array, got {kind(x)}")
    if not shape:
        raise ValueError(f"{layer}: x must have shape (..., c), got ()")
    return shape[-1]


def check_params(layer: str, params: Any, shapes: Mapping[str, Any], x: Any = None) -> None:
    """Raises unless `params` has the keys of `shapes`, and arrays of these shapes under them.

    Args:
      layer: How the layer is written: "Dense(3)".
      params: What `apply` was given.
      shapes: For each key a shape, or another such mapping.
      x: The array whose shape asks for these, if it does: the message names it.

    Raises:
      TypeError: If params is no dict.
      ValueError: If it does not fit.

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
    """The names and shapes of the leaves: ("q.w", (4, 4)), of the shapes themselves too."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _shapes(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree if isinstance(tree, tuple) else getattr(tree, "shape", kind(tree))


def _listed(shapes: Mapping[str, Any]) -> str:
    """The shapes in words: w (8, 3) and b (3,)."""
    *most, last = (f"{name} {shape}" for name, shape in shapes.items())
    return f"{', '.join(most)} and {last}" if most else last
