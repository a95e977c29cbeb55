"""Pooling layers: channels are the last axis, and there may be any number of batch axes."""

import jax

from funcnet import ops
from funcnet._arguments import check_bool, check_int
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
      padding: As for `funcnet.ops.max_pool`.

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


def _window(f: str, window: Ints, strides: Ints | None, padding: Padding) -> tuple[int, ...]:
    """Returns the window size on each axis; raises an error if an option is invalid for every x."""
    sizes = window_sizes(f, "window", window)
    per_axis(f, "strides", 1 if strides is None else strides, len(sizes))
    paddings(f, padding, len(sizes))
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
