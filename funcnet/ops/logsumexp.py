"""The logarithm of a sum of exponentials."""

import jax
import jax.numpy as jnp

from funcnet.ops.precision import widen
from funcnet.rule import rule


@rule
def logsumexp(
    x: jax.Array, *, axis: int | tuple[int, ...] = -1, keepdims: bool = False
) -> jax.Array:
    """The logarithm of the sum of exponentials, a smooth maximum.

        y = log Σ_k exp(x_k) = m + log Σ_k exp(x_k − m),   m = max x

    Args:
      x: Any shape.
      axis: The axis of the sum, or a tuple of axes. Static.
      keepdims: Whether y has the axis still, with one element. Static.

    Returns:
      y with the dtype of x and its shape without the axis. A slice of −∞ alone, or of no element,
      gives −∞ and has the gradient 0, where `jax.nn.logsumexp` has nan; +∞ gives +∞, and nan as its
      gradient, as there.

    Reference: Blanchard, Higham & Higham, Accurately computing the log-sum-exp and softmax
    functions, 2021, the shifted formula, arXiv:1909.03469.

    >>> round(float(logsumexp(jnp.array([1000.0, 1000.0]))) - 1000, 4)
    0.6931
    """
    return logsumexp_fwd(x, axis=axis, keepdims=keepdims)[0]


def logsumexp_fwd(x, *, axis, keepdims):
    """Saves e = exp(x − m), of the size of x, and its sum s, one number per slice.

    From x and y alone exp(x − y) would come too, but with the digits that a large y has lost; and a
    second exp costs more than the rest of the backward pass.
    """
    wide = widen(x)
    m = wide.max(axis, keepdims=True, initial=-jnp.inf)
    # y does not depend on m; and without a finite one there is no offset to take away
    m = jax.lax.stop_gradient(jnp.where(jnp.isfinite(m), m, jnp.zeros_like(m)))
    e = jnp.exp(wide - m)
    s = e.sum(axis, keepdims=True)
    empty = s == 0
    s = jnp.where(empty, jnp.ones_like(s), s)
    y = jnp.where(empty, jnp.full_like(s, -jnp.inf), m + jnp.log(s))
    y = (y if keepdims else y.squeeze(axis)).astype(x.dtype)
    return y, (e, s)


def logsumexp_bwd(residuals, dy, *, axis, keepdims):
    """The cotangent of x: each element has its share of the sum.

    From ∂y/∂x_q = exp(x_q) / Σ_k exp(x_k), the softmax of x,

        dx_q = dy e_q / s.                                                                    (1)
    """
    e, s = residuals
    g = widen(dy) if keepdims else jnp.expand_dims(widen(dy), axis)
    dx = e * (g / s)  # (1)
    return (dx.astype(dy.dtype),)


logsumexp.defvjp(logsumexp_fwd, logsumexp_bwd)
