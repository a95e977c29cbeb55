"""Smooth relatives of the rectifier: each tends to max(x, 0) on both sides."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from funcnet.ops.elementwise import recomputed
from funcnet.ops.precision import widen

FAR = 1000.0
"""From |x| = FAR on, s(x), Φ(x) and their like are exactly 0 or 1 in every dtype, and flat."""


def near(x: jax.Array, above: float = FAR) -> jax.Array:
    """Holds x between −FAR and `above`. Autodiff selects the cotangent: it drops even an ∞ · 0."""
    bound = lambda value: jnp.asarray(value, x.dtype)
    return jax.lax.clamp(bound(-FAR), x, bound(above))


def _times_gate(gate: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns x g(x), for a gate g that goes from 0 to 1, without the nan of −∞ · 0."""
    x = jnp.asarray(x)
    wide = widen(x)
    return (jnp.maximum(wide, -FAR) * gate(near(wide))).astype(x.dtype)


def _sigmoid_and_bell(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """s(v) and s′(v) = s(v) s(−v) with full relative accuracy, from one exponential."""
    negative = v < 0
    e = jnp.exp(jnp.where(negative, v, -v))  # of −|v| autodiff would take the slope 0 at 0
    r = 1 / (1 + e)
    return r * jnp.where(negative, e, jnp.ones_like(e)), e * (r * r)


def silu_slope(x: jax.Array) -> jax.Array:
    """The derivative of `silu`, for x in float32 at least."""
    t = near(x)
    s, bell = _sigmoid_and_bell(t)
    return s + t * bell


@recomputed(silu_slope)
def silu(x: jax.Array) -> jax.Array:
    """The sigmoid linear unit, also called swish.

        y = x s(x),   s(x) = 1 / (1 + e⁻ˣ)

    From s′(x) = s(x) s(−x),

        dx = dy ⊙ (s(x) + x s(x) s(−x)).

    Nothing cancels but where the derivative is 0. At ±∞ value and derivative have their limits
    (`jax.nn.silu` gives nan). Saves x.

    Args:
      x: Any shape.

    Returns:
      y ≥ −0.2785, with the shape and dtype of x.

    Reference: Elfwing, Uchibe & Doya, Sigmoid-weighted linear units for neural network function
    approximation in reinforcement learning, 2017, section 2, arXiv:1702.03118.

    >>> silu(jnp.array([-jnp.inf, 0.0, 100.0])).tolist()
    [-0.0, 0.0, 100.0]
    """
    return _times_gate(jax.lax.logistic, x)


_ROOT_HALF = math.sqrt(0.5)
_LINEAR = 2 * math.sqrt(2 / math.pi)  # of v
_CUBIC = 0.044715 * _LINEAR


def _normal_cdf(x: jax.Array, *, approximate: bool) -> jax.Array:
    if approximate:
        return jax.lax.logistic(x * (_LINEAR + _CUBIC * (x * x)))
    return 0.5 * jax.lax.erfc(-_ROOT_HALF * x)


def gelu_slope(x: jax.Array, *, approximate: bool) -> jax.Array:
    """The derivative of `gelu`, for x in float32 at least."""
    t = near(x)
    if approximate:
        square = t * t
        cdf, bell = _sigmoid_and_bell(t * (_LINEAR + _CUBIC * square))
        rise = t * (_LINEAR + 3 * _CUBIC * square) * bell
    else:
        z = -_ROOT_HALF * t
        cdf = 0.5 * jax.lax.erfc(z)
        rise = t * (math.sqrt(0.5 / math.pi) * jnp.exp(-(z * z)))  # erfc has the same exponential
    return cdf + rise


@recomputed(gelu_slope)
def gelu(x: jax.Array, *, approximate: bool = True) -> jax.Array:
    """The Gaussian error linear unit.

        y = x Φ(x),   Φ(x) = ½ erfc(−x/√2)

    Φ is the distribution function of a standard normal, and φ(x) = e^(−x²/2) / √(2π) its density:

        dx = dy ⊙ (Φ(x) + x φ(x)).

    The usual approximation replaces Φ(x) by s(v), which is ½ (1 + tanh(v/2)) without cancellation:

        y = x s(v),   v = 2√(2/π) (x + 0.044715 x³),   dx = dy ⊙ (s(v) + x v′ s(v) s(−v)).

    At ±∞ value and derivative have their limits (`jax.nn.gelu` gives nan at −∞). The exponential in
    s costs more than the tanh of `jax.nn.gelu`, so that this form is slower than its autodiff; in
    exchange nothing cancels, where 1 + tanh has no digit left from x = −5 on. Saves x.

    Args:
      x: Any shape.
      approximate: Whether Φ is approximated, as in `jax.nn.gelu`. Static.

    Returns:
      y ≥ −0.1701, with the shape and dtype of x.

    Reference: Hendrycks & Gimpel, Gaussian error linear units, 2016, section 2, arXiv:1606.08415.

    >>> gelu(jnp.array([-jnp.inf, 0.0, 100.0])).tolist()
    [-0.0, 0.0, 100.0]
    """
    return _times_gate(lambda x: _normal_cdf(x, approximate=approximate), x)


_MISH_ONE = 40.0  # where τ is 1 in every dtype, and e²ˣ still finite


def _tanh_softplus(x: jax.Array) -> jax.Array:
    w = jnp.exp(near(x, _MISH_ONE))
    n = w * (w + 2)
    return n / (n + 2)


def _mish_slope(x: jax.Array) -> jax.Array:
    x = near(x, _MISH_ONE)
    w = jnp.exp(x)
    r = 1 / (w * (w + 2) + 2)
    return (w * r) * ((w + 2) + 4 * x * ((w + 1) * r))


@recomputed(_mish_slope)
def mish(x: jax.Array) -> jax.Array:
    """The self-regularised rectifier of Misra.

        y = x τ(x),   τ(x) = tanh(log(1 + eˣ)) = (w² + 2w) / (w² + 2w + 2),   w = eˣ

    Hence

        dx = dy ⊙ (τ + x τ′),   τ′ = 4w (w + 1) / (w² + 2w + 2)².

    For x > 0 both fractions are expanded by e⁻ˣ, so that nothing overflows, and there is no
    difference that cancels. At ±∞ value and derivative have their limits. Saves x.

    Args:
      x: Any shape.

    Returns:
      y ≥ −0.3089, with the shape and dtype of x.

    Reference: Misra, Mish: a self regularized non-monotonic activation function, 2019,
    arXiv:1908.08681.

    >>> mish(jnp.array([-jnp.inf, 0.0, 100.0])).tolist()
    [-0.0, 0.0, 100.0]
    """
    return _times_gate(_tanh_softplus, x)


@recomputed(jax.lax.logistic)
def softplus(x: jax.Array) -> jax.Array:
    """The softplus, a smooth max(x, 0).

        y = log(1 + eˣ) = max(x, 0) + log(1 + e^(−|x|))

    The derivative is the sigmoid s:

        dx = dy ⊙ s(x).

    Saves x.

    Args:
      x: Any shape.

    Returns:
      y ≥ 0, with the shape and dtype of x.

    Reference: Dugas et al., Incorporating second-order functional knowledge for better option
    pricing, 2000, section 2.

    >>> print(f"{softplus(jnp.array(-50.0)):.4e}")
    1.9287e-22
    """
    x = jnp.asarray(x)
    wide = widen(x)
    return jnp.logaddexp(wide, jnp.zeros_like(wide)).astype(x.dtype)


@recomputed(lambda x: jax.lax.logistic(-x))
def log_sigmoid(x: jax.Array) -> jax.Array:
    """The logarithm of the sigmoid, −softplus(−x).

        y = log s(x) = min(x, 0) − log(1 + e^(−|x|))

    From (log s)′ = s′/s and s′ = s(x) s(−x),

        dx = dy ⊙ s(−x).

    Saves x.

    Args:
      x: Any shape.

    Returns:
      y ≤ 0, with the shape and dtype of x.

    Reference: The logarithm of source A 2.3.1.

    >>> print(f"{log_sigmoid(jnp.array(50.0)):.4e}")
    -1.9287e-22
    """
    x = jnp.asarray(x)
    wide = widen(x)
    return -jnp.logaddexp(-wide, jnp.zeros_like(wide)).astype(x.dtype)
