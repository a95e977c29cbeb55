"""Losses of regression per example, over the last axis. The caller takes the mean of examples."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from funcnet._arguments import check_number
from funcnet._arrays import wide_dtype, widen
from funcnet._barrier import barrier
from funcnet.ops._labels import check_same, label_cotangent
from funcnet.ops._types import AnyArray, Number, Real
from funcnet.rule import rule


def _loss_dtype(y: Array, t: Array) -> Any:
    """The dtype that y and t promote to; integer targets do not affect it."""
    is_floating = jnp.issubdtype(t.dtype, jnp.floating)
    return jnp.promote_types(y.dtype, t.dtype) if is_floating else y.dtype


def _difference(y: Array, t: Array, dtype: Any) -> Array:
    """The error y − t in `dtype`, or in float32 if `dtype` is narrower."""
    wide = wide_dtype(dtype)
    return y.astype(wide) - t.astype(wide)


def _again(residuals: tuple[Array, ...]) -> tuple[Array, ...]:
    """The arguments, behind a barrier if any is narrow, so that XLA does not keep y − t for bwd."""
    narrow = any(x.dtype.itemsize < 4 for x in residuals)
    return barrier(residuals) if narrow else residuals


@rule(real=("y",))
def mean_squared_error(
    y: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"],
) -> Float[Array, "*batch"]:
    """The mean squared error of each example.

        L = (1/C) ‖y − t‖²

    Args:
      y: The output, shape (..., C).
      t: The target, the same shape.

    Returns:
      L ≥ 0, shape (...), with the dtype that y and t promote to, or that of y for integer t.

    Raises:
      ValueError: If the shapes differ.

    Reference: Source A 3.1.1.

    >>> float(mean_squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
    """
    y, t = jnp.asarray(y), jnp.asarray(t)
    check_same("mean_squared_error", y, t)
    dtype = _loss_dtype(y, t)
    return (_difference(y, t, dtype) ** 2).mean(-1).astype(dtype)


def mean_squared_error_fwd(y, t):
    """Saves the arguments."""
    return mean_squared_error.__wrapped__(y, t), (y, t)


def mean_squared_error_bwd(residuals, dloss):
    """The cotangents of y and t.

    From ∂L/∂y_j = (2/C)(y_j − t_j) = −∂L/∂t_j,

        dy = dL (2/C) (y − t),   dt = −dy.                                                    (1)
    """
    y, t = _again(residuals)
    dl = widen(dloss)[..., None]
    dy = dl * (2 / y.shape[-1]) * _difference(y, t, dloss.dtype)  # (1)
    return dy.astype(y.dtype), label_cotangent(t, -dy)


mean_squared_error.defvjp(mean_squared_error_fwd, mean_squared_error_bwd)


@rule(real=("y",))
def sum_squared_error(
    y: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"],
) -> Float[Array, "*batch"]:
    """Half the sum of the squared errors of each example.

        L = ½ Σ_k (y_k − t_k)²

    Args:
      y: The output, shape (..., C).
      t: The target, the same shape.

    Returns:
      L ≥ 0, shape (...), with the dtype that y and t promote to, or that of y for integer t.

    Raises:
      ValueError: If the shapes differ.

    Reference: Source B 5.5.7.

    >>> float(sum_squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
    """
    y, t = jnp.asarray(y), jnp.asarray(t)
    check_same("sum_squared_error", y, t)
    dtype = _loss_dtype(y, t)
    return ((_difference(y, t, dtype) ** 2).sum(-1) / 2).astype(dtype)


def sum_squared_error_fwd(y, t):
    """Saves the arguments."""
    return sum_squared_error.__wrapped__(y, t), (y, t)


def sum_squared_error_bwd(residuals, dloss):
    """The cotangents of y and t.

    The ½ cancels the 2 of the derivative: ∂L/∂y_k = y_k − t_k = −∂L/∂t_k, and

        dy = dL (y − t),   dt = −dy.                                                          (1)

    Reference: Source B (5-24).
    """
    y, t = _again(residuals)
    dy = widen(dloss)[..., None] * _difference(y, t, dloss.dtype)  # (1)
    return dy.astype(y.dtype), label_cotangent(t, -dy)


sum_squared_error.defvjp(sum_squared_error_fwd, sum_squared_error_bwd)


@rule(real=("y",))
def mean_absolute_error(
    y: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"],
) -> Float[Array, "*batch"]:
    """The mean absolute error of each example, also called the L1 loss.

        L = (1/C) Σ_j |y_j − t_j|

    Args:
      y: The output, shape (..., C).
      t: The target, the same shape.

    Returns:
      L ≥ 0, shape (...), with the dtype that y and t promote to, or that of y for integer t. Where
      y_j = t_j, the derivative is 0, as in `l1_penalty`.

    Raises:
      ValueError: If the shapes differ.

    Reference: Bishop, Pattern recognition and machine learning, 2006, section 1.5.5, equation 1.91
    with q = 1; the mean over C as in `mean_squared_error`.

    >>> float(mean_absolute_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    1.0
    """
    y, t = jnp.asarray(y), jnp.asarray(t)
    check_same("mean_absolute_error", y, t)
    dtype = _loss_dtype(y, t)
    u = _difference(y, t, dtype)
    return jnp.maximum(u, -u).mean(-1).astype(dtype)  # the derivative of `jnp.abs` at 0 is 1


def mean_absolute_error_fwd(y, t):
    """Saves the arguments."""
    return mean_absolute_error.__wrapped__(y, t), (y, t)


def mean_absolute_error_bwd(residuals, dloss):
    """The cotangents of y and t.

    The derivative of |u| is sign u, and 0 is a subgradient at u = 0, so

        dy = (dL/C) sign(y − t),   dt = −dy.                                                  (1)
    """
    y, t = barrier(residuals)  # else XLA may keep y − t of the forward pass
    dl = widen(dloss)[..., None]
    dy = dl / y.shape[-1] * jnp.sign(_difference(y, t, dloss.dtype))  # (1)
    return dy.astype(y.dtype), label_cotangent(t, -dy)


mean_absolute_error.defvjp(mean_absolute_error_fwd, mean_absolute_error_bwd)


@rule(real=("y",))
def huber(
    y: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"],
    *,
    delta: Number = 1.0,
) -> Float[Array, "*batch"]:
    """The Huber loss of each example: quadratic for small errors, linear for large ones.

        L = (1/C) Σ_j ρ(y_j − t_j),   ρ(u) = q (|u| − q/2),   q = min(|u|, δ)

    ρ(u) is u²/2 for |u| ≤ δ, and a line of slope ±δ for |u| > δ.

    Args:
      y: The output, shape (..., C).
      t: The target, the same shape.
      delta: δ > 0, the error beyond which the gradient does not grow. It may be traced.

    Returns:
      L ≥ 0, shape (...), with the dtype of y.

    Raises:
      ValueError: If the shapes differ, or delta is not positive.

    Reference: Huber, Robust estimation of a location parameter, 1964, Annals of Mathematical
    Statistics 35(1), with k = δ; the mean over C as in `mean_squared_error`.

    >>> float(huber(jnp.array([1.0, 2.0]), jnp.array([1.0, 5.0])))
    1.25
    """
    y, t = jnp.asarray(y), jnp.asarray(t)
    check_same("huber", y, t)
    check_number("huber", "delta", delta, above=0)
    u = jnp.abs(_difference(y, t, y.dtype))
    q = jnp.minimum(u, delta)
    return (q * (u - q / 2)).mean(-1).astype(y.dtype)


def huber_fwd(y, t, *, delta):
    """Saves the arguments."""
    return huber.__wrapped__(y, t, delta=delta), (y, t)


def huber_bwd(residuals, dloss, *, delta):
    """The cotangents of y and t.

    With u = y − t, ρ′(u) = u if |u| ≤ δ, else δ sign u, which is u clipped to [−δ, δ]. So

        dy = (dL/C) min(max(u, −δ), δ),   dt = −dy.                                           (1)
    """
    y, t = barrier(residuals)  # else XLA may keep u of the forward pass
    u = _difference(y, t, y.dtype)
    dy = (widen(dloss) / y.shape[-1])[..., None] * jnp.clip(u, -delta, delta)  # (1)
    return dy.astype(y.dtype), label_cotangent(t, -dy)


huber.defvjp(huber_fwd, huber_bwd)
