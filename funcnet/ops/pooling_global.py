"""Max and average pooling over all positions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact

from funcnet._arrays import widen
from funcnet.ops._types import AnyArray, Num, Real
from funcnet.ops._windows import lowest_of
from funcnet.rule import rule


def _spatial(f: str, x: AnyArray, spatial: int) -> tuple[int, ...]:
    """The spatial axes, which come before the channel axis."""
    if spatial < 1 or x.ndim < spatial + 1:
        raise ValueError(
            f"{f}: x must have shape (..., *spatial, c) with {spatial} spatial axes, at least one, "
            f"got {x.shape}"
        )
    if 0 in x.shape[-1 - spatial : -1]:
        raise ValueError(f"{f}: x must have spatial axes of at least 1, got {x.shape}")
    return tuple(range(x.ndim - 1 - spatial, x.ndim - 1))


@rule(inexact=("x",))
def global_avg_pool(x: Num[AnyArray, "... c"], *, spatial: int = 2) -> Inexact[Array, "... c"]:
    """Global average pooling: the mean of each channel over all positions.

        y_c = (1/n) Σ_p x_pc,   n the number of positions

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      spatial: The number of spatial axes, at least 1. Static.

    Returns:
      y, shape (..., c), with the dtype of x, or the default float for integers.

    Raises:
      ValueError: If x has too few axes, or an empty spatial axis.

    Reference: Lin et al., 2014, Network in network, section 3.2, arXiv:1312.4400.

    >>> global_avg_pool(jnp.array([[[1.0], [3.0]], [[2.0], [6.0]]])).tolist()
    [3.0]
    """
    x = jnp.asarray(x)
    return widen(x).mean(_spatial("global_avg_pool", x, spatial)).astype(x.dtype)


def global_avg_pool_fwd(x, *, spatial):
    """Saves nothing."""
    return global_avg_pool.__wrapped__(x, spatial=spatial), x[..., :0]


def global_avg_pool_bwd(empty, dy, *, spatial):
    """The cotangent of x.

    ∂y_c/∂x_pc = 1/n at every position, so

        dx_pc = dy_c / n.                                                                     (1)
    """
    axes = _spatial("global_avg_pool", empty, spatial)
    dx = widen(dy) / math.prod(empty.shape[i] for i in axes)
    return (_everywhere(dx.astype(dy.dtype), empty, axes),)  # (1)


def _everywhere(y: Array, empty: Array, axes: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(jnp.expand_dims(y, axes), (*empty.shape[:-1], y.shape[-1]))


global_avg_pool.defvjp(global_avg_pool_fwd, global_avg_pool_bwd)


@rule
def global_max_pool(x: Real[AnyArray, "... c"], *, spatial: int = 2) -> Real[Array, "... c"]:
    """Global max pooling: the maximum of each channel over all positions.

        y_c = max_p x_pc

    As in `max_pool`, the gradient goes to the first maximum in row-major order, or to the first
    nan. Autodiff of `jnp.max` divides it among equal maxima instead.

    Args:
      x: Shape (..., *spatial, c), with any number of leading batch axes.
      spatial: The number of spatial axes, at least 1. Static.

    Returns:
      y, shape (..., c), with the dtype of x.

    Raises:
      ValueError: If x has too few axes, or an empty spatial axis.

    Reference: Oquab et al., 2015, CVPR, Is object localization for free?, section 3.

    >>> global_max_pool(jnp.array([[[1.0], [3.0]], [[2.0], [6.0]]])).tolist()
    [6.0]
    """
    axes, lowest = _spatial("global_max_pool", x, spatial), lowest_of("global_max_pool", x)
    window = tuple(n if i in axes else 1 for i, n in enumerate(x.shape))
    pooled = jax.lax.reduce_window(x, lowest, jax.lax.max, window, window, "VALID")
    return jnp.squeeze(pooled, axes)


def global_max_pool_fwd(x, *, spatial):
    """Saves the position of each maximum (four bytes per output), not x.

    The maxima over the last spatial axis, the last two, … tell in which row the first maximum is,
    where in that row, and so on: after the maximum, no array of the size of x is searched.
    """
    first, *_ = axes = _spatial("global_max_pool", x, spatial)
    inner = [x]
    for axis in reversed(axes):
        inner.append(inner[-1].max(axis))
    y, place, chosen = inner.pop(), 0, []
    for m in reversed(inner):
        for i in chosen:
            m = _at(m, i, first)
        is_it, size = (m == jnp.expand_dims(y, first)) | (m != m), m.shape[first]
        number = _number((size,), m.ndim)
        chosen.append(jnp.where(is_it, number, size).min(first))
        place = place * size + chosen[-1]
    return y, (place, x[..., :0])


def _at(m: Array, i: Array, axis: int) -> Array:
    """Selects index i of m along an axis, per channel; i has no spatial axes."""
    index = jnp.expand_dims(i, tuple(range(axis, m.ndim - 1)))
    return jnp.take_along_axis(m, index, axis).squeeze(axis)


def _number(sizes: tuple[int, ...], ndim: int) -> np.ndarray:
    """The row-major index of each position, shape (1, …, 1, *sizes, 1)."""
    lead = (1,) * (ndim - len(sizes) - 1)
    return np.arange(math.prod(sizes), dtype=np.int32).reshape(*lead, *sizes, 1)


def global_max_pool_bwd(residuals, dy, *, spatial):
    """The cotangent of x.

    ∂y_c/∂x_pc is 1 at the first position of the maximum, else 0, so

        dx_pc = dy_c [p = first_c].                                                           (1)
    """
    first, empty = residuals
    axes = _spatial("global_max_pool", empty, spatial)
    number = _number(tuple(empty.shape[i] for i in axes), empty.ndim)
    chosen = number == jnp.expand_dims(first, axes)
    return (jnp.where(chosen, jnp.expand_dims(dy, axes), jnp.zeros((), dy.dtype)),)  # (1)


global_max_pool.defvjp(global_max_pool_fwd, global_max_pool_bwd)
