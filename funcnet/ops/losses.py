"""Losses per example, computed over the last axis. The caller takes the mean over examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from funcnet._arguments import check_number, check_real
from funcnet._arrays import wide_dtype, widen
from funcnet._barrier import barrier
from funcnet.ops._labels import (
    above_zero_if_zero,
    at,
    at_least_if_zero,
    check_classes,
    finite_if_zero,
    is_class,
    is_index,
    label_cotangent,
    one_hot,
)
from funcnet.ops._types import AnyArray, Real
from funcnet.rule import rule


def _check_same(f: str, y: Array, t: Array, name: str = "y") -> None:
    check_classes(f, name, y)
    check_real(f, "t", t)
    if y.shape != t.shape:
        raise ValueError(f"{f}: t must have the shape of {name}, {y.shape}, got {t.shape}")


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
    _check_same("mean_squared_error", y, t)
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
    _check_same("sum_squared_error", y, t)
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
def cross_entropy(
    y: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"] | Integer[ArrayLike, "*batch"],
) -> Float[Array, "*batch"]:
    """The cross entropy of each example, computed from probabilities.

        L = −Σ_j t_j log y_j,   where 0 · log 0 = 0

    For logits use `softmax_cross_entropy`, which neither overflows nor cancels. The source scales
    the loss by 1/C where it differentiates it (3.3.7); divide by C for that form. Handling
    0 · log 0, which autodiff turns into nan, takes a third longer on a CPU than −Σ t log y alone.

    Args:
      y: Probabilities, shape (..., C).
      t: Labels, in one of two forms: probabilities or one-hot, of the same shape as y; or class
        indices from 0 to C − 1, of shape (...) and an integer dtype. Any other index, including a
        negative one, gives a loss of nan and a gradient of nan.

    Returns:
      L, shape (...), with the dtype of y.

    Raises:
      ValueError: If labels have neither form.

    Reference: Source A 3.1.2.

    >>> round(float(cross_entropy(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))), 4)
    0.6931
    """
    y, t = jnp.asarray(y), jnp.asarray(t)
    if is_index("cross_entropy", "y", y, t):
        return -jnp.log(widen(at(y, t))).astype(y.dtype)
    wide = widen(y)
    labels = t.astype(wide.dtype)
    return -(labels * at_least_if_zero(jnp.log(wide), labels)).sum(-1).astype(y.dtype)


def cross_entropy_fwd(y, t):
    """Saves the arguments."""
    return cross_entropy.__wrapped__(y, t), (y, t)


def cross_entropy_bwd(residuals, dloss):
    """The cotangents of y and t.

    Each y_j occurs in one term, −t_j log y_j, so

        dy = −dL t / y,   0 where t = 0,                                                      (1)
        dt = −dL log y.                                                                       (2)

    Both are 0 where dL = 0, even if y = 0. A class index stands for a one-hot t and has no
    cotangent.

    Reference: Source A 3.3.7, times C.
    """
    (y, t), dl = residuals, widen(dloss)[..., None]
    wide = widen(y)
    if is_index("cross_entropy", "y", y, t):
        dy_own = -_ratio(dl, at(wide, t)[..., None])  # (1)
        dy_other = jnp.where(is_class(t, y.shape[-1])[..., None] | (dl == 0), 0 * dl, jnp.nan)
        return jnp.where(one_hot(t, y.shape[-1]), dy_own, dy_other).astype(y.dtype), None
    dy = -_ratio(dl * jnp.asarray(t, wide.dtype), wide)  # (1)
    dt = -dl * finite_if_zero(jnp.log(wide), dl)  # (2)
    return dy.astype(y.dtype), label_cotangent(t, dt)


@jax.custom_jvp
def _ratio(a: Array, b: Array) -> Array:
    """The ratio a / b, which is 0 where a = 0."""
    return a / above_zero_if_zero(b, a)


@_ratio.defjvp
def _ratio_jvp(primals, tangents):
    """Avoids the b⁻² of JAX's derivative, which overflows long before a / b² does."""
    (a, b), (da, db) = primals, tangents
    ratio = _ratio(a, b)
    return ratio, (da - ratio * db) / above_zero_if_zero(b, a)


cross_entropy.defvjp(cross_entropy_fwd, cross_entropy_bwd)


@rule(real=("y",))
def huber(
    y: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"],
    *,
    delta: float = 1.0,
) -> Float[Array, "*batch"]:
    """The Huber loss of each example: quadratic for small errors, linear for large ones.

        L = (1/C) Σ_j ρ(y_j − t_j),   ρ(u) = q (|u| − q/2),   q = min(|u|, δ)

    ρ(u) is u²/2 for |u| ≤ δ, and a line of slope ±δ for |u| > δ.

    Args:
      y: The output, shape (..., C).
      t: The target, the same shape.
      delta: δ > 0, the error beyond which the gradient does not grow. Static.

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
    _check_same("huber", y, t)
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


@rule(real=("log_p",))
def kl_divergence(
    log_p: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"],
) -> Float[Array, "*batch"]:
    """The Kullback-Leibler divergence of the target t from the output p, for each example.

        L = Σ_j t_j (log t_j − log p_j),   where 0 · log 0 = 0

    A class with t_j = 0 does not contribute to L, even if p_j = 0. The gradient with respect to
    such a t_j is 0, although it grows without bound as t_j → 0. Without these guards autodiff gives
    nan. If t is differentiated too, the guards cost a temporary array of the size of t.

    Args:
      log_p: Logarithms of the output probabilities, shape (..., C), e.g. from `log_softmax`.
      t: Target probabilities, the same shape. A negative one gives nan.

    Returns:
      L, shape (...), with the dtype of log_p; L ≥ 0 if p and t sum to 1.

    Raises:
      ValueError: If the shapes differ.

    Reference: Kullback & Leibler, On information and sufficiency, 1951, Annals of Mathematical
    Statistics 22(1).

    >>> float(kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.5, 0.5])))
    0.0
    """
    log_p, t = jnp.asarray(log_p), jnp.asarray(t)
    _check_same("kl_divergence", log_p, t, "log_p")
    zero, log_ratio, t = _log_ratio(log_p, t)
    return jnp.where(zero, jnp.zeros_like(t), t * log_ratio).sum(-1).astype(log_p.dtype)


def _log_ratio(log_p: Array, t: Array) -> tuple[Array, Array, Array]:
    """The mask t = 0, log t − log p (0 where t = 0), and t, in float32 or a wider dtype."""
    log_p = widen(log_p)
    t = t.astype(log_p.dtype)
    zero = t == 0
    log_t = jnp.log(jnp.where(zero, jnp.ones_like(t), t))
    return zero, log_t - jnp.where(zero, jnp.zeros_like(log_p), log_p), t


def kl_divergence_fwd(log_p, t):
    """Saves the arguments."""
    return kl_divergence.__wrapped__(log_p, t), (log_p, t)


def kl_divergence_bwd(residuals, dloss):
    """The cotangents of log_p and t.

    Each element of log p and t occurs in one term of the sum, and ∂(t log t)/∂t = log t + 1, so

        dlog p = −dL t,                                                                       (1)
        dt = dL (log t − log p + 1),   0 where t = 0 or dL = 0.                               (2)
    """
    log_p, t_given = residuals
    zero, log_ratio, t = _log_ratio(log_p, t_given)
    dl = widen(dloss)[..., None]
    dlog_p = -dl * t  # (1)
    dt = jnp.where(zero, jnp.zeros_like(t), dl * finite_if_zero(log_ratio + 1, dl))  # (2)
    return dlog_p.astype(log_p.dtype), label_cotangent(t_given, dt)


kl_divergence.defvjp(kl_divergence_fwd, kl_divergence_bwd)
