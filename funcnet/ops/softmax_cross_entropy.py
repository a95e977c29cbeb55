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
    nearly 1 at the label (both are then tiny), and where all logits share a large offset. Class
    indices are the fast form; for a number per class that accuracy costs two more passes.

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
    """Saves `others`, of the size of x, and sums of it for each example.

    With m = max x, z = x − m and e = eᶻ, the class that the label is about, if there is one, is the
    own class: the index, or the one with t_j > T/2, where T = Σ t (1 for probabilities). The sum
    s = Σ e is kept in two parts: `others` is e with 0 at the own class, and

        rest = Σ others,   s = e_own + rest,   log s = log1p(rest + (e_own − 1)),

    so that a tiny rest keeps its digits. If the own class is the maximum, e_own = 1 and log s is
    exact; if not, rest ≥ 1 or L ≥ t_own (m − x_own), and nothing tiny is at stake.
    """
    x = widen(logits)
    m = jax.lax.stop_gradient(x.max(-1, keepdims=True))  # L does not depend on it
    e = jnp.exp(x - m)
    if is_index("softmax_cross_entropy", logits, labels):
        others = jnp.where(one_hot(labels, x.shape[-1]), jnp.zeros_like(e), e)
        rest = others.sum(-1)
        z_own = at(x, labels) - m.squeeze(-1)
        e_own = jnp.exp(z_own)
        loss = jnp.log1p(rest + (e_own - 1)) - z_own
        return loss.astype(logits.dtype), (others, e_own, rest, labels)
    t = labels.astype(x.dtype)
    own = 2 * t > t.sum(-1, keepdims=True)
    others = jnp.where(own, jnp.zeros_like(e), e)
    rest = others.sum(-1, keepdims=True)
    e_own = jnp.where(own, e, jnp.zeros_like(e)).sum(-1, keepdims=True)
    terms = t * (jnp.log1p(rest + (e_own - 1)) - (x - m))
    excluded = (t == 0) & (x == -jnp.inf)  # 0 · log 0 = 0
    loss = jnp.where(excluded, jnp.zeros_like(x), terms).sum(-1)
    return loss.astype(logits.dtype), (others, e_own, rest, labels, logits, m)


def softmax_cross_entropy_bwd(residuals, dloss):
    """The cotangents of logits and labels.

    L = −Σ_j t_j x_j + T log Σ_k exp(x_k), so that with p = e / s (others / s but for the own class)

        dx = dL (T p − t),      for T = 1 the source's Y − T,                                 (1)
        dt = −dL log p = dL (log s − z).                                                      (2)

    At the own class p is nearly 1 when the answer is right. There 1 − p_own = rest / s, and

        T p_own − t_own = (T − t_own) − T rest / s                                            (3)

    does not cancel: T − t_own is exact (Sterbenz), and 0 for a class index or one-hot t.

    Reference: Source A 3.3.8.
    """
    others, e_own, rest, labels, *logits_m = residuals
    dl = widen(dloss)
    if not logits_m:
        own = one_hot(labels, others.shape[-1])
        scale = (dl / (e_own + rest))[..., None]
        dx = jnp.where(own, -rest[..., None], others) * scale  # (1), (3) with T = 1
        return dx.astype(dloss.dtype), None
    logits, m = logits_m
    t = labels.astype(others.dtype)
    total = t.sum(-1, keepdims=True)
    own, s = 2 * t > total, e_own + rest
    at_own = (total - t) - total * (rest / s)  # (3)
    dx = dl[..., None] * jnp.where(own, at_own, others * (total / s) - t)  # (1)
    log_s = jnp.log1p(rest + (e_own - 1))
    dt = dl[..., None] * (log_s - (widen(logits) - m))  # (2)
    return dx.astype(dloss.dtype), label_cotangent(labels, dt)


softmax_cross_entropy.defvjp(softmax_cross_entropy_fwd, softmax_cross_entropy_bwd)
