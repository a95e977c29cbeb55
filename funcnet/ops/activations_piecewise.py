"""Piecewise linear activation functions, and the product of one of them with x.

At a kink the derivative is the one from the right, as it is for `relu`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from funcnet._arguments import check_broadcasts, check_number
from funcnet._arrays import sum_to, widen
from funcnet.ops._elementwise import elementwise, ordered, recomputed
from funcnet.ops._types import Real
from funcnet.rule import rule


def _bounds(x: Array, low: int | float, high: int | float) -> tuple[Array, Array]:
    """Both bounds in the dtype of x; a negative bound becomes 0 if it would wrap around."""
    if x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        low = max(low, 0)
    return jnp.full_like(x, low), jnp.full_like(x, high)


def _clipped(x: Array, low: int | float, high: int | float) -> Array:
    """Clips x to [low, high]; at a bound, autodiff gives the derivative from the right."""
    least, most = _bounds(x, low, high)
    return jnp.where(x < least, least, jnp.where(x >= most, most, x))


def _is_between(x: Array, low: int | float, high: int | float) -> Array:
    least, most = _bounds(x, low, high)
    return ~((x < least) | (x >= most))  # True for nan


def _where(inside: Array, dy: Array) -> Array:
    return jnp.where(inside, dy, jnp.zeros_like(dy))


def _scaled(factor: float, x: Array) -> Array:
    """The product `factor` · x, where the factor is not rounded to a narrow dtype."""
    return (factor * widen(x)).astype(x.dtype)


@elementwise(
    saves=lambda x, **_: x < 0,
    dx=lambda negative, dy, *, negative_slope: jnp.where(  # (1)
        negative, _scaled(negative_slope, dy), dy
    ),
    real=("x",),
)
def leaky_relu(
    x: Real[ArrayLike, "*shape"],
    *,
    negative_slope: float = 0.01,
) -> Float[Array, "*shape"]:
    """The rectified linear unit with a slope for negative x as well.

        y = x if x ≥ 0, else a x,
        dx = dy if x ≥ 0, else a dy.                                                          (1)

    At 0 the derivative is 1, as in `jax.nn.leaky_relu`. Saves the mask x < 0, one byte per element.

    Args:
      x: Real input of any shape.
      negative_slope: a, the slope for x < 0, a finite number. Static.

    Returns:
      y, with the shape and dtype of x.

    Reference: Maas, Hannun & Ng, Rectifier nonlinearities improve neural network acoustic models,
    2013, section 2.

    >>> leaky_relu(jnp.array([-1.0, 0.0, 2.0]), negative_slope=0.5).tolist()
    [-0.5, 0.0, 2.0]
    """
    check_number("leaky_relu", "negative_slope", negative_slope)
    x = jnp.asarray(x)
    return jnp.where(x < 0, _scaled(negative_slope, x), x)


@elementwise(saves=lambda x: _is_between(x, 0, 6), dx=_where, real=("x",))  # (1)
def relu6(x: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The rectified linear unit, clipped at 6.

        y = min(max(x, 0), 6),
        dx = dy if 0 ≤ x < 6, else 0.                                                         (1)

    The derivative is 1 at 0, as for `relu` (0 in `jax.nn.relu6`), and 0 at 6. Saves the mask of the
    interval, one byte per element.

    Args:
      x: Real input of any shape.

    Returns:
      y in [0, 6], with the shape and dtype of x.

    Reference: Krizhevsky, Convolutional deep belief networks on CIFAR-10, 2010.

    >>> relu6(jnp.array([-1.0, 2.0, 7.0])).tolist()
    [0.0, 2.0, 6.0]
    """
    return _clipped(jnp.asarray(x), 0, 6)


@elementwise(
    saves=lambda x, *, low, high: _is_between(x, low, high),
    dx=lambda inside, dy, **_: _where(inside, dy),  # (1)
)
def hard_tanh(
    x: Real[ArrayLike, "*shape"], *, low: float = -1.0, high: float = 1.0
) -> Real[Array, "*shape"]:
    """The hard tanh: the identity, clipped to [l, h], by default [−1, 1].

        y = min(max(x, l), h),
        dx = dy if l ≤ x < h, else 0.                                                         (1)

    The derivative is 1 at l and 0 at h (1 at both in `jax.nn.hard_tanh`). Saves the mask of the
    interval, one byte per element.

    Args:
      x: Real input of any shape.
      low: l, a finite number. Static. It is rounded to the dtype of x.
      high: h ≥ l, likewise.

    Returns:
      y in [l, h], with the shape and dtype of x.

    Reference: Collobert, Large scale machine learning, 2004.

    >>> hard_tanh(jnp.array([-2.0, 0.5, 2.0])).tolist()
    [-1.0, 0.5, 1.0]
    """
    check_number("hard_tanh", "low", low)
    check_number("hard_tanh", "high", high, at_least=low)
    return _clipped(ordered("hard_tanh", x), low, high)


@elementwise(
    saves=lambda x: _is_between(widen(x), -3, 3),
    dx=lambda inside, dy: _where(inside, _scaled(1 / 6, dy)),  # (1)
    real=("x",),
)
def hard_sigmoid(x: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The hard sigmoid, which consists of three straight lines.

        y = min(max(x + 3, 0), 6) / 6,
        dx = dy / 6 if −3 ≤ x < 3, else 0.                                                    (1)

    The derivative is 1/6 at −3 (0 in `jax.nn.hard_sigmoid`) and 0 at 3. Saves the mask of the
    interval, one byte per element.

    Args:
      x: Real input of any shape.

    Returns:
      y in [0, 1], with the shape and dtype of x.

    Reference: Howard et al., Searching for MobileNetV3, 2019, section 5.2, arXiv:1905.02244.

    >>> hard_sigmoid(jnp.array([-4.0, 0.0, 4.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    x = jnp.asarray(x)
    return ((_clipped(widen(x), -3, 3) + 3) / 6).astype(x.dtype)


def _hard_silu_slope(x: Array) -> Array:
    inner = (2 * x + 3) / 6
    right = jnp.where(x >= 3, jnp.ones_like(x), inner)
    return jnp.where(x < -3, jnp.zeros_like(x), right)  # (1)


@recomputed(_hard_silu_slope)
def hard_silu(x: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The hard SiLU, or hard swish: x times `hard_sigmoid`, a parabola between two straight lines.

        y = x h(x),   h(x) = min(max(x + 3, 0), 6) / 6

    Between −3 and 3, y is (x² + 3x)/6, so

        dx = dy (2x + 3)/6 if −3 ≤ x < 3,   0 if x < −3,   dy if x ≥ 3.                       (1)

    The derivative is −1/2 at −3 and 1 at 3 (0 and 1 in `jax.nn.hard_silu`). At −∞ the value and the
    derivative are 0 (`jax.nn.hard_silu` gives nan). Saves x.

    Args:
      x: Real input of any shape.

    Returns:
      y ≥ −3/8, with the shape and dtype of x.

    Reference: Howard et al., Searching for MobileNetV3, 2019, section 5.2, arXiv:1905.02244.

    >>> hard_silu(jnp.array([-jnp.inf, -1.5, 4.0])).tolist()
    [0.0, -0.375, 4.0]
    """
    x = jnp.asarray(x)
    wide = widen(x)
    inside = _is_between(wide, -3, 3)
    t = jnp.where(inside, wide, jnp.zeros_like(wide))  # autodiff would give 0 · ∞ outside
    outside = jnp.where(wide < -3, jnp.zeros_like(wide), wide)
    return jnp.where(inside, t * (t + 3) / 6, outside).astype(x.dtype)


@rule(real=("x", "slope"))
def prelu(x: Real[ArrayLike, "*shape"], slope: Real[ArrayLike, "*own"]) -> Float[Array, "*shape"]:
    """The parametric rectified linear unit: `leaky_relu` with slopes that are learned.

        y = x if x ≥ 0, else a x

    At 0 the derivative with respect to x is 1.

    Args:
      x: Real input of any shape.
      slope: a, of a shape that broadcasts to that of x: (c,) for one slope per feature of x
        (..., c), or () for one slope.

    Returns:
      y, with the shape of x and the dtype that x and slope promote to.

    Raises:
      ValueError: If the shape of slope does not broadcast to that of x.

    Reference: He et al., Delving deep into rectifiers, 2015, equation 1, arXiv:1502.01852.

    >>> prelu(jnp.array([[-1.0, -2.0], [3.0, 4.0]]), jnp.array([0.5, 0.25])).tolist()
    [[-0.5, -0.5], [3.0, 4.0]]
    """
    x, a = jnp.asarray(x), jnp.asarray(slope)
    check_broadcasts("prelu", "slope", a, "x", x)
    wide = widen(x)
    y = jnp.where(x >= 0, wide, _aligned(a, x) * _below(wide))
    return y.astype(jnp.result_type(x, a))


def _below(x: Array) -> Array:
    """The elements that are negative or nan; 0 for others, so that a product with ∞ adds 0."""
    return jnp.where(x >= 0, jnp.zeros_like(x), x)


def _aligned(a: Array, x: Array) -> Array:
    """The slopes with as many axes as x."""
    return jnp.expand_dims(widen(a), range(x.ndim - a.ndim))


def prelu_fwd(x, slope):
    """Saves the arguments."""
    return prelu.__wrapped__(x, slope), (x, slope)


def prelu_bwd(residuals, dy):
    """The cotangents of x and slope.

        dx = dy if x ≥ 0, else a dy,                                                          (1)
        da = Σ dy x over the elements x < 0 that share a.                                     (2)

    An element x = ∞ adds 0 to da; autodiff of where(x < 0, a x, x) adds 0 · ∞, which is nan. On a
    CPU the sum takes one array of temporary memory for that.
    """
    x, a = residuals
    g = widen(dy)
    dx = jnp.where(x >= 0, g, _aligned(a, x) * g)  # (1)
    da = sum_to(g * _below(widen(x)), a)  # (2)
    return dx.astype(x.dtype), da.astype(a.dtype)


prelu.defvjp(prelu_fwd, prelu_bwd)
