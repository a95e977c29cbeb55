"""Convolution layers: channels are the last axis, and there may be any number of batch axes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet import initializers, ops
from funcnet._arguments import check_bool, check_int
from funcnet.layers._params import check_initializers, check_params, initialize, last_axis
from funcnet.layers.base import Layer, stateless
from funcnet.ops._windows import Ints, Padding, paddings, per_axis, window_sizes


def Conv(
    channels: int,
    kernel: Ints,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    groups: int = 1,
    bias: bool = True,
    w_init: initializers.Initializer = initializers.he,
    b_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """A convolution layer: `funcnet.ops.conv` with its parameters.

    Params: {"w": (*kernel, c/groups, channels), "b": (channels,)} in the dtype of x, where c is the
    length of the last axis of x. There is no "b" if bias is False.
    State: none.

    Args:
      channels: The number of output channels, at least 1.
      kernel: The kernel size along each spatial axis, one to three ints; an int k means (k, k).
      strides: As for `funcnet.ops.conv`.
      padding: As for `funcnet.ops.conv`.
      dilation: As for `funcnet.ops.conv`.
      groups: As for `funcnet.ops.conv`; it must divide the numbers of input and output channels.
      bias: Whether the layer has a bias.
      w_init: Initial weights; the default suits a layer that is followed by ReLU.
      b_init: Initial biases.

    Raises:
      ValueError: If an option is out of range, or groups does not divide the number of output
        channels; in `init`, if x has too few axes, or groups does not divide the number of its
        channels; in `apply`, if params do not have the shapes above.
      TypeError: If an option has the wrong type; in `init`, if x does not have a floating dtype.

    >>> Conv(32, (3, 3))
    Conv(32, (3, 3))
    """
    channels = check_int("Conv", "channels", channels, at_least=1)
    kernel = _kernel("Conv", kernel, strides, padding, dilation)
    name = f"Conv({channels}, {kernel}{f', strides={strides}' if strides != 1 else ''})"
    shape = _grouped(name, kernel, channels, groups)

    def f(x, w, b):
        return ops.conv(x, w, b, strides=strides, padding=padding, dilation=dilation, groups=groups)

    return _convolution(name, kernel, shape, f, bias, w_init, b_init)


def ConvTranspose(
    channels: int,
    kernel: Ints,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    groups: int = 1,
    bias: bool = True,
    w_init: initializers.Initializer = initializers.he,
    b_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """A transposed convolution, which upsamples by the strides: `funcnet.ops.conv_transpose`.

    Params: {"w": (*kernel, c/groups, channels), "b": (channels,)} in the dtype of x. There is no
    "b" if bias is False.
    State: none.

    Args:
      channels: As for `Conv`.
      kernel: As for `Conv`.
      strides: As for `funcnet.ops.conv_transpose`.
      padding: As for `funcnet.ops.conv_transpose`.
      groups: As for `Conv`.
      bias: As for `Conv`.
      w_init: As for `Conv`.
      b_init: As for `Conv`.

    Raises:
      ValueError: As for `Conv`.
      TypeError: As for `Conv`.
    """
    channels = check_int("ConvTranspose", "channels", channels, at_least=1)
    kernel = _kernel("ConvTranspose", kernel, strides, padding)
    name = f"ConvTranspose({channels}, {kernel})"
    shape = _grouped(name, kernel, channels, groups)

    def f(x, w, b):
        return ops.conv_transpose(x, w, b, strides=strides, padding=padding, groups=groups)

    return _convolution(name, kernel, shape, f, bias, w_init, b_init)


def DepthwiseConv(
    kernel: Ints,
    *,
    strides: Ints = 1,
    padding: Padding = "SAME",
    dilation: Ints = 1,
    bias: bool = True,
    w_init: initializers.Initializer = initializers.he,
    b_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """A convolution with one kernel per channel: `funcnet.ops.depthwise_conv`.

    Params: {"w": (*kernel, c), "b": (c,)} in the dtype of x. There is no "b" if bias is False.
    State: none.

    Args:
      kernel: As for `Conv`.
      strides: As for `funcnet.ops.depthwise_conv`.
      padding: As for `funcnet.ops.depthwise_conv`.
      dilation: As for `funcnet.ops.depthwise_conv`.
      bias: As for `Conv`.
      w_init: As for `Conv`.
      b_init: As for `Conv`.

    Raises:
      ValueError: As for `Conv`.
      TypeError: As for `Conv`.
    """
    kernel = _kernel("DepthwiseConv", kernel, strides, padding, dilation)
    name = f"DepthwiseConv({kernel})"
    shape = lambda c: (*kernel, c)

    def f(x, w, b):
        return ops.depthwise_conv(x, w, b, strides=strides, padding=padding, dilation=dilation)

    return _convolution(name, kernel, shape, f, bias, w_init, b_init)


def _kernel(
    f: str, kernel: Ints, strides: Ints, padding: Padding, dilation: Ints = 1
) -> tuple[int, ...]:
    """Returns the kernel size on each axis; raises an error if an option is invalid for every x."""
    sizes = window_sizes(f, "kernel", kernel)
    per_axis(f, "strides", strides, len(sizes))
    per_axis(f, "dilation", dilation, len(sizes))
    paddings(f, padding, len(sizes))
    return sizes


def _grouped(
    name: str, kernel: tuple[int, ...], channels: int, groups: int
) -> Callable[[int], tuple[int, ...]]:
    """Returns the function that maps the channels of x to the shape of w."""
    kind = name.partition("(")[0]
    groups = check_int(kind, "groups", groups, at_least=1)
    if channels % groups:
        raise ValueError(f"{kind}: groups must divide the {channels} channels, got {groups}")

    def shape(c: int) -> tuple[int, ...]:
        if c % groups:
            raise ValueError(f"{name}: groups must divide the channels of x, {c}, got {groups}")
        return (*kernel, c // groups, channels)

    return shape


def _convolution(
    name: str,
    kernel: tuple[int, ...],
    shape: Callable[[int], tuple[int, ...]],
    f: Callable[..., jax.Array],
    bias: bool,
    w_init: initializers.Initializer,
    b_init: initializers.Initializer,
) -> Layer:
    """Makes a layer from f(x, w, b); `shape` maps the channels of x to the shape of w."""
    kind = name.partition("(")[0]
    check_bool(kind, "bias", bias)
    check_initializers(kind, w_init=w_init, b_init=b_init)

    def init(key, x: Any):
        c = last_axis(name, x)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(f"{name}: x must be of a floating dtype, got {x.dtype}")
        if len(x.shape) <= len(kernel):
            raise ValueError(
                f"{name}: x must have {len(kernel)} spatial axes and one of channels, got {x.shape}"
            )
        w_key, b_key = jax.random.split(key)
        whole = shape(c)
        params = {"w": initialize(name, "w_init", w_init, w_key, whole, x.dtype)}
        if bias:
            params["b"] = initialize(name, "b_init", b_init, b_key, whole[-1:], x.dtype)
        return params

    def apply(params, x):
        whole = shape(last_axis(name, x))
        check_params(name, params, {"w": whole} | ({"b": whole[-1:]} if bias else {}), x)
        return f(x, params["w"], params.get("b"))

    return stateless(apply, init, name)
