"""Losses of each example, over the last axis. The caller takes the mean over examples."""

import jax
import jax.numpy as jnp

from funcnet.ops.labels import (
    above_zero_if_zero,
    at,
    at_least_if_zero,
    is_index,
    label_cotangent,
    one_hot,
)
from funcnet.ops.precision import widen
from funcnet.rule import rule


def _check_same(f: str, y: jax.Array, t: jax.Array, name: str = "y") -> None:
    if y.ndim == 0 or y.shape != t.shape:
        raise ValueError(
            f"{f}: t must have the shape of {name}, {y.shape} of rank 1 at least, got {t.shape}"
        )


@rule
def mean_squared_error(y: jax.Array, t: jax.Array) -> jax.Array:
    """The mean squared error of each example.

        L = (1/C) ‖y − t‖²

    Args:
      y: The output, shape (..., C).
      t: The target, the same shape.

    Returns:
      L ≥ 0, shape (...).

    Raises:
      ValueError: If the shapes differ.

    Reference: Source A 3.1.1.

    >>> float(mean_squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
    """
    _check_same("mean_squared_error", y, t)
    return ((y - t) ** 2).mean(-1)


def mean_squared_error_fwd(y, t):
    """Saves the arguments."""
    return mean_squared_error.__wrapped__(y, t), (y, t)


def mean_squared_error_bwd(residuals, dloss):
    """The cotangents of y and t.

    From ∂L/∂y_j = (2/C)(y_j − t_j) = −∂L/∂t_j,

        dy = dL (2/C) (y − t),   dt = −dy.                                                    (1)
    """
    y, t = residuals
    dy = dloss[..., None] * (2 / y.shape[-1]) * (y - t)  # (1)
    return dy.astype(y.dtype), label_cotangent(t, -dy)


mean_squared_error.defvjp(mean_squared_error_fwd, mean_squared_error_bwd)


@rule
def sum_squared_error(y: jax.Array, t: jax.Array) -> jax.Array:
    """Half the sum of squared errors of each example.

        L = ½ Σ_k (y_k − t_k)²

    Args:
      y: The output, shape (..., C).
      t: The target, the same shape.

    Returns:
      L ≥ 0, shape (...).

    Raises:
      ValueError: If the shapes differ.

    Reference: Source B 5.5.7.

    >>> float(sum_squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
    """
    _check_same("sum_squared_error", y, t)
    return ((y - t) ** 2).sum(-1) / 2


def sum_squared_error_fwd(y, t):
    """Saves the arguments."""
    return sum_squared_error.__wrapped__(y, t), (y, t)


def sum_squared_error_bwd(residuals, dloss):
    """The cotangents of y and t.

    The ½ cancels the 2 of the derivative: ∂L/∂y_k = y_k − t_k = −∂L/∂t_k, and

        dy = dL (y − t),   dt = −dy.                                                          (1)

    Reference: Source B (5-24).
    """
    y, t = residuals
    dy = dloss[..., None] * (y - t)  # (1)
    return dy.astype(y.dtype), label_cotangent(t, -dy)


sum_squared_error.defvjp(sum_squared_error_fwd, sum_squared_error_bwd)


@rule
def cross_entropy(y: jax.Array, t: jax.Array) -> jax.Array:
    """The cross entropy of each example, from probabilities.

        L = −Σ_j t_j log y_j,   where 0 · log 0 = 0

    From logits use `softmax_cross_entropy`: it neither overflows nor cancels. The source scales the
    loss by 1/C where it differentiates it (3.3.7); divide by C for that form. To keep 0 · log 0,
    which autodiff turns into nan, takes a CPU a third longer than −Σ t log y.

    Args:
      y: Probabilities, shape (..., C).
      t: Labels: probabilities or one-hot, of the shape of y; or class indices from −C to C − 1 (as
        in indexing), of shape (...) and an integer dtype. Another index gives nan.

    Returns:
      L, shape (...), with the dtype of y.

    Raises:
      ValueError: If labels are of neither form.

    Reference: Source A 3.1.2.

    >>> round(float(cross_entropy(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))), 4)
    0.6931
    """
    if is_index("cross_entropy", y, t):
        return -jnp.log(at(y, t))
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

    A class index is the one-hot t, and has no cotangent.

    Reference: Source A 3.3.7, times C.
    """
    (y, t), dl = residuals, widen(dloss)[..., None]
    wide = widen(y)
    if is_index("cross_entropy", y, t):
        dy = jnp.where(one_hot(t, y.shape[-1]), -dl / wide, jnp.zeros_like(wide))  # (1)
        return dy.astype(y.dtype), None
    labels = jnp.asarray(t, wide.dtype)
    dy = -dl * labels / above_zero_if_zero(wide, labels)  # (1)
    return dy.astype(y.dtype), label_cotangent(t, -dl * jnp.log(wide))  # (2)


cross_entropy.defvjp(cross_entropy_fwd, cross_entropy_bwd)


@rule
def huber(y: jax.Array, t: jax.Array, *, delta: float = 1.0) -> jax.Array:
    """The Huber loss of each example: squares of small errors, absolute values of large ones.

        L = (1/C) Σ_j ρ(y_j − t_j),   ρ(u) = q (|u| − q/2),   q = min(|u|, δ)

    ρ(u) is u²/2 for |u| ≤ δ, and a line of slope ±δ beyond.

    Args:
      y: The output, shape (..., C).
      t: The target, the same shape.
      delta: δ > 0, the error from which on a larger one pulls no harder. Static.

    Returns:
      L ≥ 0, shape (...), with the dtype of y.

    Raises:
      ValueError: If the shapes differ, or delta is not positive.

    Reference: Huber, Robust estimation of a location parameter, 1964, Annals of Mathematical
    Statistics 35(1), with k = δ; the mean over C as in `mean_squared_error`.

    >>> float(huber(jnp.array([1.0, 2.0]), jnp.array([1.0, 5.0])))
    1.25
    """
    _check_same("huber", y, t)
    if not delta > 0:
        raise ValueError(f"huber: delta must be positive, got {delta}")
    u = jnp.abs(_difference(y, t))
    q = jnp.minimum(u, delta)
    return (q * (u - q / 2)).mean(-1).astype(y.dtype)


def _difference(y: jax.Array, t: jax.Array) -> jax.Array:
    wide = widen(y)
    return wide - t.astype(wide.dtype)


def huber_fwd(y, t, *, delta):
    """Saves the arguments."""
    return huber.__wrapped__(y, t, delta=delta), (y, t)


def huber_bwd(residuals, dloss, *, delta):
    """The cotangents of y and t.

    With u = y − t, ρ′(u) = u if |u| ≤ δ, else δ sign u: it is u, held within ±δ. So

        dy = (dL/C) min(max(u, −δ), δ),   dt = −dy.                                           (1)
    """
    y, t = jax.lax.optimization_barrier(residuals)  # else u may be kept from the forward pass
    u = _difference(y, t)
    dy = (widen(dloss) / y.shape[-1])[..., None] * jnp.clip(u, -delta, delta)  # (1)
    return dy.astype(y.dtype), label_cotangent(t, -dy)


huber.defvjp(huber_fwd, huber_bwd)


@rule
def kl_divergence(log_p: jax.Array, t: jax.Array) -> jax.Array:
    """The Kullback-Leibler divergence of each example, from the output p to the target t.

        L = Σ_j t_j (log t_j − log p_j),   where 0 · log 0 = 0

    A class with t_j = 0 has no part in it: also where p_j = 0, and in the gradient by t_j, which
    grows without bound on the way there. Without these guards autodiff gives nan; where t is
    differentiated too, they cost a temporary array of its size.

    Args:
      log_p: Logarithms of the output, shape (..., C), as of `log_softmax`.
      t: The target, of the same shape: probabilities. A negative one gives nan.

    Returns:
      L, shape (...), with the dtype of log_p; at least 0 where p and t sum to 1.

    Raises:
      ValueError: If the shapes differ.

    Reference: Kullback & Leibler, On information and sufficiency, 1951, Annals of Mathematical
    Statistics 22(1).

    >>> float(kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.5, 0.5])))
    0.0
    """
    _check_same("kl_divergence", log_p, t, "log_p")
    zero, log_ratio, t = _log_ratio(log_p, t)
    return jnp.where(zero, jnp.zeros_like(t), t * log_ratio).sum(-1).astype(log_p.dtype)


def _log_ratio(log_p: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where t = 0, log t − log p but for there, and t, in the precision to compute in."""
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

    Both occur in one term of the sum, and ∂(t log t)/∂t = log t + 1:

        dlog p = −dL t,                                                                       (1)
        dt = dL (log t − log p + 1),   0 where t = 0.                                         (2)
    """
    log_p, t_given = residuals
    zero, log_ratio, t = _log_ratio(log_p, t_given)
    dl = widen(dloss)[..., None]
    dlog_p = -dl * t  # (1)
    dt = jnp.where(zero, jnp.zeros_like(t), dl * (log_ratio + 1))  # (2)
    return dlog_p.astype(log_p.dtype), label_cotangent(t_given, dt)


kl_divergence.defvjp(kl_divergence_fwd, kl_divergence_bwd)
