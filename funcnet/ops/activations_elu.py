"""Exponential linear units."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from funcnet._arguments import check_number
from funcnet._arrays import widen
from funcnet.ops._elementwise import recomputed
from funcnet.ops._types import Real

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


def _elu(x: ArrayLike, scale: float, alpha: float, width: float = 1.0) -> Array:
    """The function λ x if x > 0, else λ α (e^(x/w) − 1), where λ is `scale` and w is `width`."""
    x = jnp.asarray(x)
    wide = widen(x)
    is_above = wide > 0
    below = jnp.where(is_above, jnp.zeros_like(wide), wide / width)  # autodiff does not overflow
    return (scale * jnp.where(is_above, wide, alpha * jnp.expm1(below))).astype(x.dtype)


def _elu_slope(x: Array, scale: float, alpha: float, width: float = 1.0) -> Array:
    """The derivative in (1): λ if x > 0, else (λ α / w) e^(x/w)."""
    is_above = x > 0
    below = jnp.where(is_above, jnp.zeros_like(x), x / width)
    return scale * jnp.where(is_above, jnp.ones_like(x), alpha / width * jnp.exp(below))


@recomputed(lambda x, *, alpha: _elu_slope(x, 1.0, alpha))  # (1)
def elu(x: Real[ArrayLike, "*shape"], *, alpha: float = 1.0) -> Float[Array, "*shape"]:
    """The exponential linear unit.

        y = x if x > 0, else α (eˣ − 1),
        dx = dy if x > 0, else dy α eˣ.                                                       (1)

    The rule computes α eˣ itself, not y + α, which is equal but rounds to 0 as soon as y rounds to
    −α. It is therefore accurate in the tail, where autodiff of the forward function returns 0 from
    x = −17 downwards in float32. At 0 the derivative is α, as in `jax.nn.elu`. Saves x.

    Args:
      x: Real input of any shape.
      alpha: α, a finite number; y tends to −α as x → −∞. Static.

    Returns:
      y with the shape and dtype of x; y ≥ −α if α ≥ 0.

    Reference: Clevert, Unterthiner & Hochreiter, Exponential linear units, 2015, equation 15,
    arXiv:1511.07289.

    >>> elu(jnp.array([-jnp.inf, 0.0, 2.0])).tolist()
    [-1.0, 0.0, 2.0]
    """
    check_number("elu", "alpha", alpha)
    return _elu(x, 1.0, alpha)


@recomputed(lambda x, *, alpha: _elu_slope(x, 1.0, alpha, alpha))  # (1)
def celu(x: Real[ArrayLike, "*shape"], *, alpha: float = 1.0) -> Float[Array, "*shape"]:
    """The continuously differentiable exponential linear unit.

        y = x if x > 0, else α (e^(x/α) − 1),
        dx = dy if x > 0, else dy e^(x/α).                                                    (1)

    The derivative at 0 is 1 from both sides for every α. The rule is accurate in the tail, like
    that of `elu`. Saves x.

    Args:
      x: Real input of any shape.
      alpha: α > 0, a finite number; y tends to −α as x → −∞. Static.

    Returns:
      y ≥ −α, with the shape and dtype of x.

    Reference: Barron, Continuously differentiable exponential linear units, 2017, equation 3,
    arXiv:1704.07483.

    >>> celu(jnp.array([-jnp.inf, 0.0, 2.0]), alpha=0.5).tolist()
    [-0.5, 0.0, 2.0]
    """
    check_number("celu", "alpha", alpha, above=0)
    return _elu(x, 1.0, alpha, alpha)


@recomputed(lambda x: _elu_slope(x, SELU_SCALE, SELU_ALPHA))  # (1)
def selu(x: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The scaled exponential linear unit, for which mean 0 and variance 1 are a fixed point.

        y = λ x if x > 0, else λ α (eˣ − 1),
        dx = λ dy if x > 0, else λ α eˣ dy,                                                   (1)

    where α = 1.67326… and λ = 1.05070… are chosen so that a layer keeps mean 0 and variance 1. At 0
    the derivative is λ α, as in `jax.nn.selu`. The rule is accurate in the tail, like that of
    `elu`. Saves x.

    Args:
      x: Real input of any shape.

    Returns:
      y ≥ −λ α, with the shape and dtype of x.

    Reference: Klambauer et al., Self-normalizing neural networks, 2017, equations 2 and 14,
    arXiv:1706.02515.

    >>> print(f"{selu(jnp.array(1.0)):.4f} {selu(jnp.array(-jnp.inf)):.4f}")
    1.0507 -1.7581
    """
    return _elu(x, SELU_SCALE, SELU_ALPHA)
