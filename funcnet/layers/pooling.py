"""Pooling as layers: channels last, any number of batch axes in front."""

from collections.abc import Callable, Sequence

import jax

from funcnet import ops
from funcnet.layers.base import Layer, stateless

Padding = str | Sequence[tuple[int, int]]


def MaxPool(
    window: Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Layer:
    """The largest value of each window: `funcnet.ops.max_pool`. No params, no state.

    Args:
      window: Its size along each spatial axis: one to three numbers.
      strides: As for the op; by default those of windows side by side.
      padding: As for the op.

    >>> MaxPool((2, 2))
    MaxPool((2, 2))
    """
    pool = lambda x: ops.max_pool(x, window=tuple(window), strides=strides, padding=padding)
    return _pooling(pool, f"MaxPool({tuple(window)})")


def AvgPool(
    window: Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Layer:
    """The mean of each window: `funcnet.ops.avg_pool`. No params, no state.

    Args:
      window: As for `MaxPool`.
      strides: As for `MaxPool`.
      padding: As for `MaxPool`.
      count_include_pad: As for the op.
    """

    def pool(x: jax.Array) -> jax.Array:
        return ops.avg_pool(
            x,
            window=tuple(window),
            strides=strides,
            padding=padding,
            count_include_pad=count_include_pad,
        )

    return _pooling(pool, f"AvgPool({tuple(window)})")


def GlobalMaxPool(*, spatial: int = 2) -> Layer:
    """The largest value of each channel: `funcnet.ops.global_max_pool`. No params, no state.

    Args:
      spatial: The number of spatial axes, which vanish.
    """
    return _pooling(lambda x: ops.global_max_pool(x, spatial=spatial), "GlobalMaxPool()")


def GlobalAvgPool(*, spatial: int = 2) -> Layer:
    """The mean of each channel: `funcnet.ops.global_avg_pool`. No params, no state.

    Args:
      spatial: The number of spatial axes, which vanish.
    """
    return _pooling(lambda x: ops.global_avg_pool(x, spatial=spatial), "GlobalAvgPool()")


def _pooling(f: Callable[[jax.Array], jax.Array], name: str) -> Layer:
    return stateless(lambda _, x: f(x), lambda *_: (), name)
