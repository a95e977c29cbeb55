"""Softmax, its logarithm, and the logarithm of its denominator."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from funcnet._arguments import check_axis
from funcnet._arrays import widen
from funcnet.ops._masks import keep, mask_of, without
from funcnet.ops._types import Real
from funcnet.rule import rule

Axis = int | tuple[int, ...] | None


def maximum(x: Array, axis: Axis) -> Array:
    """The maximum m with the axis kept; m has no derivative, because it cancels from the result."""
    return jax.lax.stop_gradient(x.max(axis, keepdims=True, initial=-jnp.inf))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def centred_maximum(x: Array, axis: Axis) -> Array:
    """The maximum m with the derivative of logsumexp.

    It is for the residuals, which `jax.hessian` differentiates. p = exp(x − m) / Σ exp(x − m) does
    not depend on m, so any derivative of m gives the correct derivative of p:

        dp = p ⊙ (d − ⟨p, d⟩),   d = dx − dm.

    With dm = ⟨p, dx⟩ the mean of d is 0, so the difference does not cancel where one p is nearly 1.
    With dm = 0 it would.
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
def softmax(
    x: Real[ArrayLike, "*shape"],
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    axis: Axis = -1,
) -> Float[Array, "*shape"]:
    """Turns real numbers into a probability distribution along an axis.

        y_j = exp(x_j) / Σ_k exp(x_k)

    The maximum of x is subtracted first, which leaves y unchanged and prevents overflow.

    Args:
      x: Real input of any shape.
      where: Booleans that broadcast to the shape of x, true for what counts. The sum is over what
        counts. Nothing depends on the other elements, even if they are nan.
      axis: The axis over which y sums to 1, a tuple of axes, or None for all. Static.

    Returns:
      y in [0, 1], with the shape and dtype of x, and 0 where x does not count. A slice of which
      nothing counts is 0; any other slice without a finite entry gives nan.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If where does not broadcast to the shape of x.

    Reference: Source A 2.3.3; forward by rows, 2.5.

    >>> softmax(jnp.array([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    if axis is not None:
        check_axis("softmax", "axis", axis, x)
    return _softmax(x, where, axis, maximum)


def _softmax(x, where, axis, maximum):
    mask = mask_of("softmax", where, x)
    wide = without(mask, widen(x), axis)
    e = jnp.exp(wide - maximum(wide, axis))
    return keep(mask, (e / e.sum(axis, keepdims=True)).astype(x.dtype))


def softmax_fwd(x, where=None, *, axis):
    """Saves only y, which has the size of x."""
    y = _softmax(x, where, axis, centred_maximum)
    return y, (y, where)


def softmax_bwd(residuals, dy, *, axis):
    """The cotangent of x.

    By the quotient rule ∂y_j/∂x_q = y_j (δ_jq − y_q), so

        dx = dy · (diag(y) − yᵀy),             as in the source, with a matrix of C² elements, (1)
        dx_q = Σ_j dy_j y_j (δ_jq − y_q) = y_q (dy_q − ⟨dy, y⟩),             the same in O(C).  (2)

    Adding a constant to dy does not change dx, because Σ y = 1, so ⟨dy, y⟩ may be subtracted from
    dy first. This makes (2) exact up to rounding where dy has a large mean or one y_j is nearly 1:
    there, Σ y ≠ 1 because of rounding, and dy_q − ⟨dy, y⟩ cancels.

        g = dy − ⟨dy, y⟩,   dx = y ⊙ (g − ⟨g, y⟩)                                             (3)

    The second ⟨·, y⟩ costs one more pass over a row than autodiff takes. Where x does not count,
    y = 0 is constant, so dy counts as 0 there, and dx = 0.

    Reference: Source A 3.3.6.
    """
    y, where = residuals
    mask, wide = mask_of("softmax", where, y), widen(y)
    dy = keep(mask, widen(dy))
    g = dy - (dy * wide).sum(axis, keepdims=True)
    dx = wide * (g - (g * wide).sum(axis, keepdims=True))  # (3)
    return keep(mask, dx.astype(y.dtype)), None


softmax.defvjp(softmax_fwd, softmax_bwd)


@rule(real=("x",))
def log_softmax(
    x: Real[ArrayLike, "*shape"],
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    axis: Axis = -1,
) -> Float[Array, "*shape"]:
    """The logarithm of `softmax`, computed without underflow.

        y_j = z_j − log Σ_k exp(z_k),   z = x − max x

    For the loss of a classifier use `softmax_cross_entropy`, which is exact even where one y_j is
    so close to 0 that this difference rounds to 0.

    Args:
      x: Real input of any shape.
      where: Booleans that broadcast to the shape of x, true for what counts. The sum is over what
        counts. Nothing depends on the other elements, even if they are nan.
      axis: The axis over which exp(y) sums to 1, a tuple of axes, or None for all. Static.

    Returns:
      y ≤ 0, with the shape and dtype of x, and −∞ where x does not count, also if nothing counts in
      a slice. Any other slice without a finite entry gives nan.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If where does not broadcast to the shape of x.

    Reference: The logarithm of source A 2.3.3.

    >>> log_softmax(jnp.array([0.0, -1000.0])).tolist()
    [0.0, -1000.0]
    """
    if axis is not None:
        check_axis("log_softmax", "axis", axis, x)
    return _log_softmax(x, where, axis, maximum)[0]


def log_softmax_fwd(x, where=None, *, axis):
    """Saves e = exp(x − max x), which has the size of x, and its sum s.

    With them, p = e / s needs no second exp. p could also be computed from y or log s alone, but
    without the digits that a large y has lost to rounding.
    """
    y, saved = _log_softmax(x, where, axis, centred_maximum)
    return y, (*saved, where)


def _log_softmax(x, where, axis, maximum):
    mask = mask_of("log_softmax", where, x)
    wide = without(mask, widen(x), axis)
    z = wide - maximum(wide, axis)  # y does not depend on the maximum
    e = jnp.exp(z)
    s = e.sum(axis, keepdims=True)
    return keep(mask, (z - jnp.log(s)).astype(x.dtype), -jnp.inf), (e, s)


def log_softmax_bwd(residuals, dy, *, axis):
    """The cotangent of x.

    With p = softmax(x) = e / s, ∂y_j/∂x_q = δ_jq − p_q, so

        dx_q = Σ_j dy_j (δ_jq − p_q) = dy_q − p_q Σ_j dy_j.                                   (1)

    Where x does not count, y = −∞ is constant, so dy counts as 0 there, and dx = 0.
    """
    e, s, where = residuals
    mask = mask_of("log_softmax", where, e)
    g = keep(mask, widen(dy))
    if g.size == 0:  # s may be 0
        return dy, None
    dx = g - e * (g.sum(axis, keepdims=True) / s)  # (1)
    return keep(mask, dx.astype(dy.dtype)), None


log_softmax.defvjp(log_softmax_fwd, log_softmax_bwd)


@rule(real=("x",))
def logsumexp(
    x: Real[ArrayLike, "*shape"],
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    axis: Axis = -1,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """The logarithm of the sum of exponentials, a smooth maximum.

        y = log Σ_k exp(x_k) = m + log Σ_k exp(x_k − m),   m = max x

    Args:
      x: Real input of any shape.
      where: Booleans that broadcast to the shape of x, true for what counts. The sum is over what
        counts. Nothing depends on the other elements, even if they are nan.
      axis: The axis of the sum, a tuple of axes, or None for all. Static.
      keepdims: Whether y keeps the axis, with size 1. Static.

    Returns:
      y, with the dtype of x and the shape of x without the axis. A slice of which nothing counts,
      or which is empty or contains only −∞, gives −∞ with the gradient 0 (nan in
      `jax.nn.logsumexp`). A slice that contains +∞ gives +∞, and the gradient at that element is
      nan, as in `jax.nn.logsumexp`.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If where does not broadcast to the shape of x.

    Reference: Blanchard, Higham & Higham, Accurately computing the log-sum-exp and softmax
    functions, 2021, the shifted formula, arXiv:1909.03469.

    >>> round(float(logsumexp(jnp.array([1000.0, 1000.0]))) - 1000, 4)
    0.6931
    """
    if axis is not None:
        check_axis("logsumexp", "axis", axis, x)
    return _logsumexp(x, where, axis, keepdims, maximum)[0]


def logsumexp_fwd(x, where=None, *, axis, keepdims):
    """Saves e = exp(x − m), which has the size of x, and its sum s, one number per slice.

    The gradient could also be computed from x and y alone, as exp(x − y), but without the digits
    that a large y has lost to rounding, and a second exp costs more than the rest of the backward
    pass.
    """
    y, saved = _logsumexp(x, where, axis, keepdims, centred_maximum)
    return y, (*saved, where)


def _logsumexp(x, where, axis, keepdims, maximum):
    wide = keep(mask_of("logsumexp", where, x), widen(x), -jnp.inf)
    m = maximum(wide, axis)
    m = jnp.where(jnp.isfinite(m), m, jnp.zeros_like(m))  # ±∞ is not subtracted
    e = jnp.exp(wide - m)
    s = e.sum(axis, keepdims=True)
    empty = s == 0
    s = jnp.where(empty, jnp.ones_like(s), s)
    y = jnp.where(empty, jnp.full_like(s, -jnp.inf), m + jnp.log(s))
    y = (y if keepdims else y.squeeze(axis)).astype(x.dtype)
    return y, (e, s)


def logsumexp_bwd(residuals, dy, *, axis, keepdims):
    """The cotangent of x, which is dy times each element's share of the sum.

    From ∂y/∂x_q = exp(x_q) / Σ_k exp(x_k), the softmax of x,

        dx_q = dy e_q / s,   0 where x does not count.                                        (1)
    """
    e, s, where = residuals
    lost = tuple(range(e.ndim)) if axis is None else axis
    g = widen(dy) if keepdims else jnp.expand_dims(widen(dy), lost)
    dx = keep(mask_of("logsumexp", where, e), e * (g / s))  # (1)
    return dx.astype(dy.dtype), None


logsumexp.defvjp(logsumexp_fwd, logsumexp_bwd)
