"""Activation functions that are applied element by element."""

import jax
import jax.numpy as jnp

from funcnet._arrays import widen
from funcnet.ops._elementwise import elementwise, has_derivative, ordered


def _bell_slope(x: jax.Array) -> jax.Array:
    return -bell(x) * jnp.tanh(0.5 * x)  # s(x) s(−x) (s(−x) − s(x))


@has_derivative(_bell_slope)
def bell(x: jax.Array) -> jax.Array:
    """s(x) s(−x) = e / (1 + e)² with e = exp(−|x|), s the sigmoid; full relative accuracy.

    The usual form y(1 − y) of the same quantity rounds to 0 as soon as y rounds to 1, in float32
    from x = 16.6 on. This one has no subtraction, and |e| ≤ 1 cannot overflow. The product is even
    in x, so that for complex x the half plane takes the place of the sign.
    """
    right = jnp.where(x.real < 0, -x, x) if jnp.iscomplexobj(x) else jnp.abs(x)
    e = jnp.exp(-right)
    return e / (1 + e) ** 2


@elementwise(saves=lambda _: (), dx=lambda _, dy: dy)
def identity(x: jax.Array) -> jax.Array:
    """The identity: the activation of an output layer in regression.

        y = x,   dx = dy.

    Saves nothing.

    Args:
      x: Any shape.

    Returns:
      x.

    Reference: Source B 5.5.7, ∂y_k/∂u_k = 1.

    >>> float(identity(3.0))
    3.0
    """
    return x


@elementwise(saves=lambda _: (), dx=lambda _, dy: jnp.zeros_like(dy))
def step(x: jax.Array) -> jax.Array:
    """The step function: does the neuron fire?

        y = 1 if x ≥ 0, else 0.

    The derivative is 0 wherever it exists; at the jump, where it does not, dx = 0 as well. Saves
    nothing.

    Args:
      x: Any shape, real.

    Returns:
      0 or 1, with the shape and dtype of x; nan where x is nan.

    Reference: Source A 2.1.

    >>> step(jnp.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 1.0, 1.0]
    """
    x = ordered("step", x)
    zero = jnp.zeros_like(x)
    fired = jnp.where(x >= zero, jnp.ones_like(x), jax.lax.stop_gradient(x))  # what is left is nan
    return jnp.where(x < zero, zero, fired)


@elementwise(
    saves=lambda x: x,
    dx=lambda x, dy: (widen(dy) * bell(widen(x))).astype(dy.dtype),
    inexact=("x",),
)
def sigmoid(x: jax.Array) -> jax.Array:
    """The logistic sigmoid s.

        y = s(x) = 1 / (1 + e⁻ˣ)

    From ds/dx = e⁻ˣ / (1 + e⁻ˣ)², the product of 1 / (1 + e⁻ˣ) = s(x) and e⁻ˣ / (1 + e⁻ˣ) = s(−x),

        dx = dy ⊙ s(x) s(−x).

    It equals y(1 − y), but has no cancellation: the rule is accurate in both tails, where autodiff
    of the forward returns 0 from x = 16.6 on in float32. The price is to save x, where autodiff
    saves y, which the next layer keeps anyway, and one exp in the backward pass. Saves x.

    Args:
      x: Any shape, real or complex.

    Returns:
      y, in [0, 1] for real x, with the shape and dtype of x.

    Reference: Source A 2.3.1; (1 − y) y in source B 5.5.7.

    >>> float(sigmoid(0.0))
    0.5
    """
    return jax.lax.logistic(x)


@elementwise(
    saves=lambda x: x,
    dx=lambda x, dy: (4 * widen(dy) * bell(2 * widen(x))).astype(dy.dtype),
    inexact=("x",),
)
def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent.

        y = tanh x = 2 s(2x) − 1,   s the sigmoid

    By the chain rule, from s′(u) = s(u) s(−u),

        dx = dy ⊙ 4 s(2x) s(−2x).

    It equals 1 − y², but has no cancellation: the rule is accurate in both tails. The price is that
    of `sigmoid`. Saves x.

    Args:
      x: Any shape, real or complex.

    Returns:
      y, in [−1, 1] for real x, with the shape and dtype of x.

    Reference: Source C 6.2 compares it with the sigmoid and ReLU.

    >>> float(tanh(0.0))
    0.0
    """
    return jnp.tanh(x)


@elementwise(
    saves=lambda x: ~(x < jnp.zeros_like(x)),
    dx=lambda on, dy: jnp.where(on, dy, jnp.zeros_like(dy)),
)
def relu(x: jax.Array) -> jax.Array:
    """The rectified linear unit.

        y = 0 if x < 0, else x;   dx = 0 if x < 0, else dy.

    At exactly 0 the derivative is 1, as the source defines it (`jax.nn.relu` takes 0, and
    `jnp.maximum(x, 0)` takes ½). Saves the mask of x ≥ 0, one byte per element.

    Args:
      x: Any shape, real.

    Returns:
      y ≥ 0, with the shape and dtype of x; nan where x is nan.

    Reference: Source A 2.3.2 and 3.3.5.

    >>> relu(jnp.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 2.0]
    """
    x = ordered("relu", x)
    zero = jnp.zeros_like(x)
    return jnp.where(x < zero, zero, x)
