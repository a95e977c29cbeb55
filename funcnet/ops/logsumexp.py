"""The logarithm of a sum of exponentials."""

import functools

import jax
import jax.numpy as jnp

from funcnet._arguments import check_axis
from funcnet.ops.precision import widen
from funcnet.rule import rule

Axis = int | tuple[int, ...] | None


def maximum(x: jax.Array, axis: Axis) -> jax.Array:
    """The maximum m with the axis kept, a constant, as it may be in exp(x − m)."""
    return jax.lax.stop_gradient(x.max(axis, keepdims=True, initial=-jnp.inf))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def centred_maximum(x: jax.Array, axis: Axis) -> jax.Array:
    """The maximum m with the derivative of logsumexp, for residuals, which `jax.hessian` derives.

    p = exp(x − m) / Σ exp(x − m) does not depend on m, so any derivative of m gives that of p:

        dp = p ⊙ (d − ⟨p, d⟩),   d = dx − dm.

    With dm = ⟨p, dx⟩ the mean of d is 0, and the difference does not cancel where one p is nearly
    1, as it does with dm = 0.
    """
    return maximum(x, axis)


@centred_maximum.defjvp
def _centred_maximum_jvp(axis, primals, tangents):
    (x,), (dx,) = primals, tangents
    m = centred_maximum(x, axis)
    e = jnp.exp(x - jnp.where(jnp.isfinite(m), m, jnp.zeros_like(m)))
    s = e.sum(axis, keepdims=True)
    return m, (e * dx).sum(axis, keepdims=True) / jnp.where(s == 0, jnp.ones_like(s), s)


@rule(real=("x",))
def logsumexp(x: jax.Array, *, axis: Axis = -1, keepdims: bool = False) -> jax.Array:
    """The logarithm of the sum of exponentials, a smooth maximum.

        y = log Σ_k exp(x_k) = m + log Σ_k exp(x_k − m),   m = max x

    Args:
      x: Any shape.
      axis: The axis of the sum, a tuple of axes, or None for all. Static.
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
    if axis is not None:
        check_axis("logsumexp", "axis", axis, x)
    return _logsumexp(x, axis, keepdims, maximum)[0]


def logsumexp_fwd(x, *, axis, keepdims):
    """Saves e = exp(x − m), of the size of x, and its sum s, one number per slice.

    From x and y alone exp(x − y) would come too, but with the digits that a large y has lost; and a
    second exp costs more than the rest of the backward pass.
    """
    return _logsumexp(x, axis, keepdims, centred_maximum)


def _logsumexp(x, axis, keepdims, maximum):
    wide = widen(x)
    m = maximum(wide, axis)
    m = jnp.where(jnp.isfinite(m), m, jnp.zeros_like(m))  # else there is no offset to take away
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
    lost = tuple(range(e.ndim)) if axis is None else axis
    g = widen(dy) if keepdims else jnp.expand_dims(widen(dy), lost)
    dx = e * (g / s)  # (1)
    return (dx.astype(dy.dtype),)


logsumexp.defvjp(logsumexp_fwd, logsumexp_bwd)
