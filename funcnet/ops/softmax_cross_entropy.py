"""Softmax and cross entropy as one rule."""

import jax
import jax.numpy as jnp

from funcnet.ops.labels import at, is_index, label_cotangent, one_hot
from funcnet.ops.precision import widen
from funcnet.rule import rule


@rule
def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross entropy of softmax(logits) of each example.

        L = −Σ_j t_j log p_j,   p_j = exp(x_j) / Σ_k exp(x_k)

    x are the logits and t the labels. Loss and gradient keep full relative accuracy where p is
    nearly 1 at the label (both are then tiny), and where all logits share a large offset.

    Args:
      logits: x, shape (..., C).
      labels: t: probabilities or one-hot, of the shape of logits; or class indices from −C to C − 1
        (as in indexing), of shape (...) and an integer dtype. Another index gives nan.

    Returns:
      L, shape (...), with the dtype of logits.

    Raises:
      ValueError: If labels are of neither form.

    Reference: Source A 3.3.8; the source's (Y − T)/C belongs to its loss scaled by 1/C (3.3.7).

    >>> print(f"{softmax_cross_entropy(jnp.array([50.0, 0.0]), jnp.array(0)):.4e}")
    1.9287e-22
    """
    return softmax_cross_entropy_fwd(logits, labels)[0]


def softmax_cross_entropy_fwd(logits, labels):
    """Saves logits and labels, m = max x and `rest`: two numbers per example.

    With z = x − m the sum s = Σ eᶻ is at least 1. One term of it is left out of `rest`, so that a
    tiny rest keeps its digits, and log s = log1p(rest) does:

    - for a class index t, the term of t, which needs no search. If t is the maximum that term is 1,
      and else s = rest + exp(z_t) with rest ≥ 1 and L ≥ −z_t > 0, so nothing tiny is at stake.
    - else one maximal term. If the maximum occurs n times, n − 1 of them belong to the rest.
    """
    x = widen(logits)
    m = jax.lax.stop_gradient(x.max(-1, keepdims=True))  # L does not depend on it
    z = x - m
    e = jnp.exp(z)
    if is_index("softmax_cross_entropy", logits, labels):
        t = one_hot(labels, x.shape[-1])
        z_t = at(z, labels)
        rest = jnp.where(t, jnp.zeros_like(e), e).sum(-1)
        loss = jnp.log1p(rest + jnp.expm1(z_t)) - z_t
    else:
        t = labels.astype(x.dtype)
        peak = z == 0
        ties = peak.sum(-1, dtype=x.dtype)
        rest = jnp.where(peak, e - 1, e).sum(-1) + (ties - 1)
        terms = t * (jnp.log1p(rest)[..., None] - z)
        excluded = (t == 0) & (z == -jnp.inf)  # 0 · log 0 = 0
        loss = jnp.where(excluded, jnp.zeros_like(z), terms).sum(-1)
    return loss.astype(logits.dtype), (logits, labels, m, rest)


def softmax_cross_entropy_bwd(residuals, dloss):
    """The cotangents of logits and labels.

    L = −Σ_j t_j x_j + T log Σ_k exp(x_k), with T = Σ_j t_j, so that

        dx = dL (T p − t),      for T = 1 the source's Y − T,                                 (1)
        dt = −dL log p = dL (log1p(rest) − z).                                                (2)

    For a class index (T = 1) p_t − 1 = −rest/s, with no cancellation, as `rest` leaves out t:

        p_j = e_j / s,   j ≠ t;      p_t − 1 = −rest / s,   s = rest + e_t.                   (3)

    Else 1 − p_j = q_j = (rest + (1 − e_j))/s, a sum of non-negative terms. Where t_j is the larger
    part of T, T − t_j is exact (Sterbenz), and

        T p_j − t_j = (T − t_j) − T q_j   if t_j > T/2.                                       (4)

    Reference: Source A 3.3.8.
    """
    logits, labels, m, rest = residuals
    z = widen(logits) - m
    e = jnp.exp(z)
    dl, rest = widen(dloss)[..., None], rest[..., None]
    if is_index("softmax_cross_entropy", logits, labels):
        t = one_hot(labels, z.shape[-1])
        s = rest + jnp.exp(at(z, labels))[..., None]
        dx = dl * jnp.where(t, -rest, e) / s  # (3)
        return dx.astype(logits.dtype), None
    t = labels.astype(z.dtype)
    total = t.sum(-1, keepdims=True)
    p, q = e / (1 + rest), (rest + (1 - e)) / (1 + rest)
    dx = dl * jnp.where(2 * t > total, (total - t) - total * q, total * p - t)  # (1), (4)
    dt = dl * (jnp.log1p(rest) - z)  # (2)
    return dx.astype(logits.dtype), label_cotangent(labels, dt)


softmax_cross_entropy.defvjp(softmax_cross_entropy_fwd, softmax_cross_entropy_bwd)
