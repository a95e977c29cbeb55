"""Smooth variants of the rectifier, which tend to max(x, 0) as x → ±∞, and the log-sigmoid."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from funcnet._arguments import check_number
from funcnet._arrays import widen
from funcnet.ops._elementwise import has_derivative, recomputed
from funcnet.ops._types import Real
from funcnet.ops.activations import bell

FAR = 1000.0
"""For |x| ≥ FAR, s(x), Φ(x) and similar functions are constant, exactly 0 or 1, in every dtype."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def near(x: Array, above: float = FAR) -> Array:
    """Clips x to [−FAR, above].

    Outside this interval the cotangent is replaced by 0, even if it is ∞ · 0. Where x is nan, the
    cotangent passes and becomes nan; that of `clamp` would be 0.
    """
    bound = lambda value: jnp.asarray(value, x.dtype)
    return jax.lax.clamp(bound(-FAR), x, bound(above))


@near.defjvp
def _near_jvp(above, primals, tangents):
    (x,), (dx,) = primals, tangents
    return near(x, above), jnp.where((x < -FAR) | (x > above), jnp.zeros_like(dx), dx)


def _up_to(last: float, f: Callable[[Array], Array], x: ArrayLike) -> Array:
    """f(x) for x ≤ `last`, and x itself above, where f(x) rounds to x in every dtype.

    For x up to `last`, the square of f's denominator and the inverse of this square must be normal
    numbers in float32, because autodiff of a quotient computes both.
    """
    x = jnp.asarray(x)
    wide = widen(x)
    return jnp.where(wide > last, wide, f(near(wide, last))).astype(x.dtype)


_K = 512.0
"""A factor k of numerator and denominator, which keeps eˣ from underflowing before x eˣ does.

With h = e^(x/2), XLA would replace k (h · h) by k eˣ, but it leaves (k h) · h unchanged.
"""


def _times_sigmoid(x: Array, u: Array) -> Array:
    """The product x s(2u) = x h² / (1 + h²), where h = eᵘ."""
    h = jnp.exp(u)
    n = (_K * h) * h
    return x * n / (n + _K)


def _times_sigmoid_curvature(x: Array, u: Array, du: Any, ddu: Any) -> Array:
    """The second derivative of x s(2u), where u has the sign of x, du = u′ and ddu = u″.

    From s′(v) = s(v) s(−v) and s″(v) = −s′(v) tanh(v/2),

        (x s(2u))″ = s′(2u) (4u′ + 2x (u″ − 2u′² tanh u)),
        s′(2u) = w²,   w = h / (1 + h²),   h = e^(−|u|).
    """
    h = jnp.exp(-jnp.abs(u))
    w = h / (1 + h * h)
    return w * (w * (4 * du + 2 * x * (ddu - 2 * (du * du) * jnp.tanh(u))))


def _silu_curvature(x: Array) -> Array:
    t = near(x)
    return _times_sigmoid_curvature(t, 0.5 * t, 0.5, 0.0)


def _times_sigmoid_slope(x: Array, u: Array, rise: Array) -> Array:
    """The derivative of x s(2u), which is s(2u) + x 2u′ s(2u) s(−2u); `rise` is x 2u′."""
    h = jnp.exp(u)
    kh = _K * h
    n = kh * h
    d = n + _K
    return (n + kh * (rise * (kh / d))) / d


@has_derivative(_silu_curvature)
def silu_slope(x: Array) -> Array:
    """The derivative of `silu`, for x in float32 or a wider dtype."""
    t = near(x, 44.0)  # the derivative is 1 from there on, in every dtype
    return _times_sigmoid_slope(t, 0.5 * t, t)  # (1)


@recomputed(silu_slope)
def silu(x: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The sigmoid linear unit, also called swish.

        y = x s(x),   s(x) = 1 / (1 + e⁻ˣ)

    From s′(x) = s(x) s(−x),

        dx = dy ⊙ (s(x) + x s(x) s(−x)).                                                      (1)

    Terms cancel only where the derivative is 0. With h = e^(x/2), the two factors are computed as
    s(x) = k h² / (k + k h²) and s(x) s(−x) = (k h / (k + k h²))²; with k = 2⁹ they underflow only
    after y does. At ±∞ the value and the derivative equal their limits (`jax.nn.silu` gives nan).
    Saves x.

    Args:
      x: Real input of any shape.

    Returns:
      y ≥ −0.2785, with the shape and dtype of x.

    Reference: Elfwing, Uchibe & Doya, Sigmoid-weighted linear units for neural network function
    approximation in reinforcement learning, 2017, section 2, arXiv:1702.03118.

    >>> silu(jnp.array([-jnp.inf, 0.0, 100.0])).tolist()
    [-0.0, 0.0, 100.0]
    """
    return _up_to(37.0, lambda t: _times_sigmoid(t, 0.5 * t), x)


_ROOT_HALF = math.sqrt(0.5)
_LINEAR = math.sqrt(2 / math.pi)  # the coefficient of x in u
_CUBIC = 0.044715 * _LINEAR  # the coefficient of x³ in u


def _gelu(x: Array, *, approximate: bool) -> Array:
    if approximate:
        return _times_sigmoid(x, x * (_LINEAR + _CUBIC * (x * x)))
    return x * (0.5 * jax.lax.erfc(-_ROOT_HALF * x))


def _gelu_curvature(x: Array, *, approximate: bool) -> Array:
    t = near(x)
    square = t * t
    if approximate:
        u, du = t * (_LINEAR + _CUBIC * square), _LINEAR + 3 * _CUBIC * square
        return _times_sigmoid_curvature(t, u, du, 6 * _CUBIC * t)
    root = jnp.exp(-0.25 * square)  # the square root of e^(−x²/2)
    return math.sqrt(0.5 / math.pi) * (root * (root * (2 - square)))


@has_derivative(_gelu_curvature)
def gelu_slope(x: Array, *, approximate: bool) -> Array:
    """The derivative of `gelu`, for x in float32 or a wider dtype."""
    t = near(x, 9.0)  # the derivative is 1 from there on, in every dtype
    if approximate:
        square = t * t
        rise = t * (2 * _LINEAR + 6 * _CUBIC * square)
        return _times_sigmoid_slope(t, t * (_LINEAR + _CUBIC * square), rise)  # (2)
    z = -_ROOT_HALF * t
    density = math.sqrt(0.5 / math.pi) * jnp.exp(-(z * z))  # erfc has the same exponential
    return 0.5 * jax.lax.erfc(z) + t * density  # (1)


@recomputed(gelu_slope)
def gelu(x: Real[ArrayLike, "*shape"], *, approximate: bool = True) -> Float[Array, "*shape"]:
    """The Gaussian error linear unit.

        y = x Φ(x),   Φ(x) = ½ erfc(−x/√2)

    Φ is the cumulative distribution function of the standard normal distribution. With its density
    φ(x) = e^(−x²/2) / √(2π),

        dx = dy ⊙ (Φ(x) + x φ(x)).                                                            (1)

    The usual approximation replaces Φ(x) by ½ (1 + tanh u), computed here without cancellation as
    s(2u), where s is the sigmoid:

        y = x s(2u),   u = √(2/π) (x + 0.044715 x³),
        dx = dy ⊙ (s(2u) + 2x u′ s(2u) s(−2u)).                                               (2)

    At ±∞ the value and the derivative equal their limits (`jax.nn.gelu` gives nan at −∞). The
    exponential in s costs more than the tanh of `jax.nn.gelu`, so the approximate form is slower
    than autodiff of `jax.nn.gelu`. In exchange nothing cancels, whereas 1 + tanh has no digit left
    from x = −5 downwards. Saves x.

    Args:
      x: Real input of any shape.
      approximate: Whether to approximate Φ, as in `jax.nn.gelu`. Static.

    Returns:
      y ≥ −0.1701, with the shape and dtype of x.

    Reference: Hendrycks & Gimpel, Gaussian error linear units, 2016, section 2, arXiv:1606.08415.

    >>> gelu(jnp.array([-jnp.inf, 0.0, 100.0])).tolist()
    [-0.0, 0.0, 100.0]
    """
    last = 7.1 if approximate else 9.0
    return _up_to(last, lambda t: _gelu(t, approximate=approximate), x)


def _mish(x: Array) -> Array:
    h = jnp.exp(0.5 * x)
    kw = (_K * h) * h
    n = kw * ((1 / _K) * kw + 2)
    return x * n / (n + 2 * _K)


def _mish_curvature(x: Array) -> Array:
    """The second derivative of `mish`, 2τ′ + x τ″, computed from e = e^(−|x|).

    For x > 0 the code divides the numerator and the denominator below by their highest power of w,
    which reverses the order of the coefficients of each polynomial.

        2τ′ + x τ″ = 4w (2w³ + 6w² + 8w + 4 − x (2w³ + 3w² − 2w − 2)) / (w² + 2w + 2)³,   w = eˣ
    """
    t = near(x)
    h = jnp.exp(-0.5 * jnp.abs(t))
    e, below = h * h, t < 0

    def polynomial(*c: float) -> Array:  # from the highest power to the lowest
        of_e = lambda c: functools.reduce(lambda p, k: p * e + k, c[1:], jnp.full_like(e, c[0]))
        return jnp.where(below, of_e(c), of_e(c[::-1]))

    d = polynomial(1, 2, 2)
    n = polynomial(2, 6, 8, 4) - t * polynomial(2, 3, -2, -2)
    return 4 * h * (h * jnp.where(below, jnp.ones_like(e), e) * n / (d * d * d))


@has_derivative(_mish_curvature)
def _mish_slope(x: Array) -> Array:
    t = near(x, 25.0)  # the derivative is 1 from there on, in every dtype
    h = jnp.exp(0.5 * t)
    kw = (_K * h) * h
    w = (1 / _K) * kw
    n = kw * (w + 2)
    d = n + 2 * _K
    return (n + 4 * _K * t * (kw * (w + 1)) / d) / d  # (1)


@recomputed(_mish_slope)
def mish(x: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The Mish activation, the self-regularised rectifier of Misra.

        y = x τ(x),   τ(x) = tanh(log(1 + eˣ)) = (w² + 2w) / (w² + 2w + 2),   w = eˣ

    By the product rule,

        dx = dy ⊙ (τ + x τ′),   τ′ = 4w (w + 1) / (w² + 2w + 2)².                             (1)

    As in `silu`, terms cancel only where the derivative is 0, and w does not underflow before y
    does. Above x = 18.6, y is x, because w² would eventually overflow. At ±∞ the value and the
    derivative equal their limits. Saves x.

    Args:
      x: Real input of any shape.

    Returns:
      y ≥ −0.3089, with the shape and dtype of x.

    Reference: Misra, Mish: a self regularized non-monotonic activation function, 2019,
    arXiv:1908.08681.

    >>> mish(jnp.array([-jnp.inf, 0.0, 100.0])).tolist()
    [-0.0, 0.0, 100.0]
    """
    return _up_to(18.6, _mish, x)


@has_derivative(bell)
def _sigmoid(x: Array) -> Array:
    return jax.lax.logistic(x)


@recomputed(lambda x, *, beta: _sigmoid(beta * x))  # (1)
def softplus(x: Real[ArrayLike, "*shape"], *, beta: float = 1.0) -> Float[Array, "*shape"]:
    """The softplus, a smooth approximation of max(x, 0).

        y = log(1 + e^(βx)) / β = max(x, 0) + log(1 + e^(−β|x|)) / β

    The derivative is the sigmoid s of βx:

        dx = dy ⊙ s(βx).                                                                      (1)

    Saves x.

    Args:
      x: Real input of any shape.
      beta: β > 0, a finite number: the larger it is, the closer y is to max(x, 0). Static.

    Returns:
      y ≥ 0, with the shape and dtype of x.

    Reference: Dugas et al., Incorporating second-order functional knowledge for better option
    pricing, 2000, section 2.

    >>> print(f"{softplus(jnp.array(-50.0)):.4e}")
    1.9287e-22
    """
    check_number("softplus", "beta", beta, above=0)
    x = jnp.asarray(x)
    wide = beta * widen(x)
    return (jnp.logaddexp(wide, jnp.zeros_like(wide)) / beta).astype(x.dtype)


@recomputed(lambda x: _sigmoid(-x))  # (1)
def log_sigmoid(x: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The logarithm of the sigmoid, −softplus(−x).

        y = log s(x) = min(x, 0) − log(1 + e^(−|x|))

    From (log s)′ = s′/s and s′(x) = s(x) s(−x),

        dx = dy ⊙ s(−x).                                                                      (1)

    Saves x.

    Args:
      x: Real input of any shape.

    Returns:
      y ≤ 0, with the shape and dtype of x.

    Reference: The logarithm of source A 2.3.1.

    >>> print(f"{log_sigmoid(jnp.array(50.0)):.4e}")
    -1.9287e-22
    """
    x = jnp.asarray(x)
    wide = widen(x)
    return (-jnp.logaddexp(-wide, jnp.zeros_like(wide))).astype(x.dtype)
