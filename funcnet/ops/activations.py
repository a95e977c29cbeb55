"""Element-wise activation functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Inexact

from funcnet._arrays import widen
from funcnet.ops._elementwise import elementwise, has_derivative, ordered, recomputed
from funcnet.ops._types import Num, Real


@elementwise(saves=lambda _: (), dx=lambda _, dy: dy)  # (1)
def identity(x: Num[ArrayLike, "*shape"]) -> Num[Array, "*shape"]:
    """The identity function, the activation of an output layer in regression.

        y = x,
        dx = dy.                                                                              (1)

    Saves nothing.

    Args:
      x: Input of any shape.

    Returns:
      x.

    Reference: Source B 5.5.7, ∂y_k/∂u_k = 1.

    >>> float(identity(3.0))
    3.0
    """
    return jnp.asarray(x)


@elementwise(saves=lambda _: (), dx=lambda _, dy: jnp.zeros_like(dy))  # (1)
def step(x: Real[ArrayLike, "*shape"]) -> Real[Array, "*shape"]:
    """The step function, 1 where the neuron fires and 0 elsewhere.

        y = 1 if x ≥ 0, else 0.

    The derivative is 0 wherever it exists. At the jump it does not exist, and the rule gives 0
    there as well:

        dx = 0.                                                                               (1)

    Saves nothing.

    Args:
      x: Real input of any shape.

    Returns:
      0 or 1, with the shape and dtype of x; nan where x is nan.

    Reference: Source A 2.1.

    >>> step(jnp.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 1.0, 1.0]
    """
    x = ordered("step", x)
    zero = jnp.zeros_like(x)
    fired = jnp.where(x >= zero, jnp.ones_like(x), jax.lax.stop_gradient(x))  # only nan remains
    return jnp.where(x < zero, zero, fired)


def _bell_slope(x: Array) -> Array:
    return -bell(x) * jnp.tanh(0.5 * x)  # s(x) s(−x) (s(−x) − s(x))


@has_derivative(_bell_slope)
def bell(x: Array) -> Array:
    """The product s(x) s(−x) of the sigmoid s, to full relative accuracy.

        s(x) s(−x) = e / (1 + e)²,   e = exp(−|x|)

    The usual form of the same quantity, y(1 − y) with y = s(x), rounds to 0 as soon as y rounds to
    1, which in float32 happens from x = 16.6 on. The form above has no subtraction, and |e| ≤ 1
    cannot overflow. The product is even in x, so for complex x the sign of the real part decides
    between x and −x.
    """
    right = jnp.where(x.real < 0, -x, x) if jnp.iscomplexobj(x) else jnp.abs(x)
    e = jnp.exp(-right)
    return e / (1 + e) ** 2


@elementwise(
    saves=lambda x: x,
    dx=lambda x, dy: (widen(dy) * bell(widen(x))).astype(dy.dtype),  # (1)
    inexact=("x",),
)
def sigmoid(x: Num[ArrayLike, "*shape"]) -> Inexact[Array, "*shape"]:
    """The logistic sigmoid.

        y = s(x) = 1 / (1 + e⁻ˣ)

    The derivative ds/dx = e⁻ˣ / (1 + e⁻ˣ)² is the product of 1 / (1 + e⁻ˣ) = s(x) and
    e⁻ˣ / (1 + e⁻ˣ) = s(−x), so

        dx = dy ⊙ s(x) s(−x).                                                                 (1)

    s(x) s(−x) equals y(1 − y) but has no cancellation: the rule is accurate in both tails, whereas
    autodiff of the forward function returns 0 from x = 16.6 on in float32. In exchange, the
    backward pass computes one exp, and the rule saves x, whereas autodiff saves y, which the next
    layer keeps anyway. Saves x.

    Args:
      x: Real or complex input of any shape.

    Returns:
      y, in [0, 1] for real x, with the shape and dtype of x.

    Reference: Source A 2.3.1; (1 − y) y in source B 5.5.7.

    >>> float(sigmoid(0.0))
    0.5
    """
    x = jnp.asarray(x)
    return jax.lax.logistic(widen(x)).astype(x.dtype)


def _softsign_slope(x: Array) -> Array:
    return 1 / (1 + jnp.abs(x)) ** 2  # (1)


@recomputed(_softsign_slope)
def softsign(x: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The softsign, a sigmoid with tails that decay like 1/|x|.

        y = x / (1 + |x|)

    For x ≥ 0, dy/dx = ((1 + x) − x) / (1 + x)², and the derivative is even in x, so

        dx = dy / (1 + |x|)².                                                                 (1)

    At ±∞ the value is ±1 and the derivative 0 (`jax.nn.soft_sign` gives nan). Saves x.

    Args:
      x: Real input of any shape.

    Returns:
      y in [−1, 1], with the shape and dtype of x.

    Reference: Glorot & Bengio, Understanding the difficulty of training deep feedforward neural
    networks, 2010, section 2.

    >>> softsign(jnp.array([-jnp.inf, 0.0, 3.0])).tolist()
    [-1.0, 0.0, 0.75]
    """
    x = jnp.asarray(x)
    wide = widen(x)
    is_infinite = jnp.isinf(wide)
    t = jnp.where(is_infinite, jnp.zeros_like(wide), wide)
    return jnp.where(is_infinite, jnp.sign(wide), t / (1 + jnp.abs(t))).astype(x.dtype)


@elementwise(
    saves=lambda x: x,
    # x + x, because 2 x is nan for an infinite complex x
    dx=lambda x, dy: (4 * widen(dy) * bell(widen(x) + widen(x))).astype(dy.dtype),  # (1)
    inexact=("x",),
)
def tanh(x: Num[ArrayLike, "*shape"]) -> Inexact[Array, "*shape"]:
    """The hyperbolic tangent.

        y = tanh x = 2 s(2x) − 1,   where s is the sigmoid

    By the chain rule and s′(u) = s(u) s(−u),

        dx = dy ⊙ 4 s(2x) s(−2x).                                                             (1)

    4 s(2x) s(−2x) equals 1 − y² but has no cancellation: the rule is accurate in both tails. Its
    costs are those of `sigmoid`. Saves x.

    Args:
      x: Real or complex input of any shape.

    Returns:
      y, in [−1, 1] for real x, with the shape and dtype of x.

    Reference: Source C 6.2 compares it with the sigmoid and ReLU.

    >>> float(tanh(0.0))
    0.0
    """
    x = jnp.asarray(x)
    return jnp.tanh(widen(x)).astype(x.dtype)


@elementwise(
    saves=lambda x: ~(x < jnp.zeros_like(x)),
    dx=lambda on, dy: jnp.where(on, dy, jnp.zeros_like(dy)),  # (1)
)
def relu(x: Real[ArrayLike, "*shape"]) -> Real[Array, "*shape"]:
    """The rectified linear unit.

        y = 0 if x < 0, else x,
        dx = 0 if x < 0, else dy.                                                             (1)

    At exactly 0 the derivative is 1, as the source defines it (it is 0 in `jax.nn.relu` and ½ in
    `jnp.maximum(x, 0)`). Saves the mask of x ≥ 0, one byte per element.

    Args:
      x: Real input of any shape.

    Returns:
      y ≥ 0, with the shape and dtype of x; nan where x is nan.

    Reference: Source A 2.3.2 and 3.3.5.

    >>> relu(jnp.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 2.0]
    """
    x = ordered("relu", x)
    zero = jnp.zeros_like(x)
    return jnp.where(x < zero, zero, x)
