"""Convolutions as layers: channels last, any number of batch axes in front."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet.layers._params import check_params, last_axis
from funcnet.layers.base import Layer, stateless

Padding = str | Sequence[tuple[int, int]]


def Conv(
    channels: int,
    kernel: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    w_init: initializers.Initializer = initializers.he,
    b_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """A convolution: `funcnet.ops.conv` with its parameters.

    Params: {"w": (*kernel, c/groups, channels), "b": (channels,)} in the dtype of x, where c is the
    last axis of x; no "b" without bias.
    State: none.

    Args:
      channels: The number of output channels, at least 1.
      kernel: Its size along each spatial axis: one to three numbers.
      strides: As for the op.
      padding: As for the op.
      dilation: As for the op.
      groups: As for the op; they must divide the channels of x and the output.
      bias: Whether there is b.
      w_init: Initial weights; the default fits a layer that ReLU follows.
      b_init: Initial biases.

    Raises:
      ValueError: If channels or kernel is out of range; from `init`, if x has too few axes, or
        groups does not divide its channels.
      TypeError: From `init`, if x is not of a floating dtype.

    >>> Conv(32, (3, 3))
    Conv(32, (3, 3))
    """
    name = f"Conv({channels}, {tuple(kernel)}{f', strides={strides}' if strides != 1 else ''})"

    def shape(c: int) -> tuple[int, ...]:
        if c % groups:
            raise ValueError(f"{name}: groups must divide the channels of x, {c}, got {groups}")
        return (*kernel, c // groups, channels)

    def f(x, w, b):
        return ops.conv(x, w, b, strides=strides, padding=padding, dilation=dilation, groups=groups)

    return _convolution(name, channels, kernel, shape, f, bias, w_init, b_init)


def ConvTranspose(
    channels: int,
    kernel: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    bias: bool = True,
    w_init: initializers.Initializer = initializers.he,
    b_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """A transposed convolution, which strides make larger: `funcnet.ops.conv_transpose`.

    Params: {"w": (*kernel, c, channels), "b": (channels,)} in the dtype of x; no "b" without bias.
    State: none.

    Args:
      channels: As for `Conv`.
      kernel: As for `Conv`.
      strides: As for the op.
      padding: As for the op.
      bias: As for `Conv`.
      w_init: As for `Conv`.
      b_init: As for `Conv`.

    Raises:
      ValueError: As for `Conv`.
      TypeError: As for `Conv`.
    """
    name = f"ConvTranspose({channels}, {tuple(kernel)})"
    shape = lambda c: (*kernel, c, channels)
    f = lambda x, w, b: ops.conv_transpose(x, w, b, strides=strides, padding=padding)
    return _convolution(name, channels, kernel, shape, f, bias, w_init, b_init)


def DepthwiseConv(
    kernel: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    bias: bool = True,
    w_init: initializers.Initializer = initializers.he,
    b_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """A kernel for each channel: `funcnet.ops.depthwise_conv` with its parameters.

    Params: {"w": (*kernel, c), "b": (c,)} in the dtype of x; no "b" without bias.
    State: none.

    Args:
      kernel: As for `Conv`.
      strides: As for the op.
      padding: As for the op.
      dilation: As for the op.
      bias: As for `Conv`.
      w_init: As for `Conv`.
      b_init: As for `Conv`.

    Raises:
      ValueError: As for `Conv`.
      TypeError: As for `Conv`.
    """
    name = f"DepthwiseConv({tuple(kernel)})"
    shape = lambda c: (*kernel, c)

    def f(x, w, b):
        return ops.depthwise_conv(x, w, b, strides=strides, padding=padding, dilation=dilation)

    return _convolution(name, None, kernel, shape, f, bias, w_init, b_init)


def _convolution(
    name: str,
    channels: int | None,
    kernel: Sequence[int],
    shape: Callable[[int], tuple[int, ...]],
    f: Callable[..., jax.Array],
    bias: bool,
    w_init: initializers.Initializer,
    b_init: initializers.Initializer,
) -> Layer:
    """A layer of f(x, w, b), where w has a shape that follows from the channels of x."""
    kind = name.partition("(")[0]
    if channels is not None and channels < 1:
        raise ValueError(f"{kind}: channels must be at least 1, got {channels}")
    if not 1 <= len(kernel) <= 3 or min(kernel) < 1:
        raise ValueError(f"{kind}: kernel must be 1 to 3 numbers of at least 1, got {kernel}")

    def init(key, x: Any):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(f"{name}: x must be of a floating dtype, got {x.dtype}")
        if len(x.shape) <= len(kernel):
            raise ValueError(
                f"{name}: x must have {len(kernel)} spatial axes and one of channels, got {x.shape}"
            )
        w_key, b_key = jax.random.split(key)
        whole = shape(x.shape[-1])
        params = {"w": w_init(w_key, whole, x.dtype)}
        return params | ({"b": b_init(b_key, whole[-1:], x.dtype)} if bias else {})

    def apply(params, x):
        whole = shape(last_axis(name, x))
        check_params(name, params, {"w": whole} | ({"b": whole[-1:]} if bias else {}), x)
        return f(x, params["w"], params.get("b"))

    return stateless(apply, init, name)
