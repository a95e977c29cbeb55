"""Pooling layers: channels are the last axis, and there may be any number of batch axes."""

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import ops
from funcnet._arguments import check_bool, check_int
from funcnet._arrays import widen
from funcnet.layers._params import shape_of
from funcnet.layers.base import Layer, parameterless
from funcnet.ops._windows import Ints, Padding, paddings, per_axis, window_sizes


def MaxPool(
    window: Ints,
    *,
    strides: Ints | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """Max pooling: `funcnet.ops.max_pool`. The layer has no params and no state.

    Args:
      window: The window size along each spatial axis, one to three ints; an int k means (k, k).
      strides: As for `funcnet.ops.max_pool`; by default the window size.
      padding: As for `funcnet.ops.max_pool`, "CEIL" included.

    Raises:
      ValueError: If an option is out of range.
      TypeError: If an option has the wrong type.

    >>> MaxPool(2)
    MaxPool((2, 2))
    """
    window = _window("MaxPool", window, strides, padding)
    pool = lambda x: ops.max_pool(x, window=window, strides=strides, padding=padding)
    return parameterless(pool, f"MaxPool({window})")


def AvgPool(
    window: Ints,
    *,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Layer:
    """Average pooling: `funcnet.ops.avg_pool`. The layer has no params and no state.

    Args:
      window: As for `MaxPool`.
      strides: As for `MaxPool`.
      padding: As for `MaxPool`.
      count_include_pad: As for `funcnet.ops.avg_pool`.

    Raises:
      ValueError: If an option is out of range.
      TypeError: If an option has the wrong type.
    """
    window = _window("AvgPool", window, strides, padding)
    check_bool("AvgPool", "count_include_pad", count_include_pad)

    def pool(x: jax.Array) -> jax.Array:
        return ops.avg_pool(
            x,
            window=window,
            strides=strides,
            padding=padding,
            count_include_pad=count_include_pad,
        )

    return parameterless(pool, f"AvgPool({window})")


def AdaptiveAvgPool(sizes: Ints) -> Layer:
    """Average pooling to a given number of windows. The layer has no params and no state.

    Window i of m, on an axis of length n, covers the positions from ⌊i n / m⌋ up to, not including,
    ⌈(i + 1) n / m⌉. If m divides n on each axis, this is `funcnet.ops.avg_pool`. Else some windows
    overlap, and the means along each axis are a matrix product, `funcnet.ops.affine`.

    Args:
      sizes: m for each spatial axis, one to three ints; an int m means (m, m).

    Raises:
      ValueError: If a size is less than 1; in `apply`, if x has too few axes.
      TypeError: If sizes are not integers.

    Reference: `torch.nn.AdaptiveAvgPool2d`.

    >>> y, _ = AdaptiveAvgPool((2,)).apply((), (), jnp.array([[1.0], [2.0], [6.0]]))
    >>> y.ravel().tolist()  # the means of the first two and of the last two
    [1.5, 4.0]
    """
    sizes = window_sizes("AdaptiveAvgPool", "sizes", sizes)
    name = f"AdaptiveAvgPool({sizes})"

    def pool(x):
        shape, axes = shape_of(name, x), range(-1 - len(sizes), -1)
        if len(shape) <= len(sizes):
            raise ValueError(
                f"{name}: x must have {len(sizes)} spatial axes and one of channels, got {shape}"
            )
        lengths = [shape[axis] for axis in axes]
        if not any(n % m for n, m in zip(lengths, sizes, strict=True)):
            window = [n // m for n, m in zip(lengths, sizes, strict=True)]
            return ops.avg_pool(x, window=window)
        y = widen(x)
        for axis, n, m in zip(axes, lengths, sizes, strict=True):
            means = jnp.asarray(_means(n, m), y.dtype)
            y = jnp.moveaxis(ops.affine(jnp.moveaxis(y, axis, -1), means), -1, axis)
        return y.astype(x.dtype)

    return parameterless(pool, name)


def _means(n: int, m: int) -> np.ndarray:
    """The matrix (n, m) that averages n positions in m windows."""
    i, place = np.arange(m), np.arange(n)[:, None]
    inside = (place >= i * n // m) & (place < -(-(i + 1) * n // m))
    return inside / inside.sum(0)


def _window(f: str, window: Ints, strides: Ints | None, padding: Padding) -> tuple[int, ...]:
    """Returns the window size on each axis; raises an error if an option is invalid for every x."""
    sizes = window_sizes(f, "window", window)
    per_axis(f, "strides", 1 if strides is None else strides, len(sizes))
    paddings(f, padding, len(sizes), ceil=True)
    return sizes


def GlobalMaxPool(*, spatial: int = 2) -> Layer:
    """The maximum of each channel: `funcnet.ops.global_max_pool`. It has no params and no state.

    Args:
      spatial: The number of spatial axes, which are removed.
    """
    spatial = check_int("GlobalMaxPool", "spatial", spatial, at_least=1)
    return parameterless(lambda x: ops.global_max_pool(x, spatial=spatial), "GlobalMaxPool()")


def GlobalAvgPool(*, spatial: int = 2) -> Layer:
    """The mean of each channel: `funcnet.ops.global_avg_pool`. It has no params and no state.

    Args:
      spatial: The number of spatial axes, which are removed.
    """
    spatial = check_int("GlobalAvgPool", "spatial", spatial, at_least=1)
    return parameterless(lambda x: ops.global_avg_pool(x, spatial=spatial), "GlobalAvgPool()")
