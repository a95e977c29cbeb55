"""Softmax and cross entropy as one rule."""

import jax
import jax.numpy as jnp

from funcnet.ops.labels import (
    at,
    at_least_if_zero,
    is_index,
    label_cotangent,
    put,
    put_by_mask,
)
from funcnet.ops.precision import widen
from funcnet.ops.sharding import placed_like
from funcnet.rule import rule


@rule
def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """The cross entropy of softmax(logits) of each example.

        L = −Σ_j t_j log p_j,   p_j = exp(x_j) / Σ_k exp(x_k)

    x are the logits and t the labels. Loss and gradient keep full relative accuracy where p is
    nearly 1 at the label (both are then tiny), and where all logits share a large offset. Class
    indices are the faster form: of probabilities the tails and 0 · log 0 cost a CPU up to a tenth.

    Label smoothing by a puts (1 − a) t + a/C in the place of t: no p has to become 1.

    Args:
      logits: x, shape (..., C).
      labels: t: probabilities or one-hot, of the shape of logits; or class indices from −C to C − 1
        (as in indexing), of shape (...) and an integer dtype. Another index gives nan.
      label_smoothing: a in [0, 1). Static.

    Returns:
      L, shape (...), with the dtype of logits.

    Raises:
      ValueError: If labels are of neither form, or label_smoothing is outside [0, 1).

    Reference: Source A 3.3.8; the source's (Y − T)/C belongs to its loss scaled by 1/C (3.3.7).
    Label smoothing: Szegedy et al., Rethinking the Inception architecture for computer vision,
    2015, section 7, arXiv:1512.00567.

    >>> print(f"{softmax_cross_entropy(jnp.array([50.0, 0.0]), jnp.array(0)):.4e}")
    1.9287e-22
    """
    return _forward(logits, labels, label_smoothing, put_by_mask)[0]


def softmax_cross_entropy_fwd(logits, labels, *, label_smoothing):
    """Saves e = exp(z), where z = x − max x, and sums of it for each example.

    The sum s of e is kept in two parts, top + rest, so that a tiny rest keeps its digits:

        log s = log1p(rest + (top − 1)).

    For a class index, top is e of that class, and what is saved has 0 in its place. If it is not
    the largest, top < 1 and L ≥ −z of it: nothing tiny is at stake. For a number per class, top is
    how many e are 1 (the largest: one, but for ties), and rest the sum of the others:

        top = C + Σ ⌊e − 1⌋,   rest = Σ (e − ⌊e⌋)   (XLA:CPU fuses a floor into a sum),
        L = T log s + Σ_j t_j (−z_j),   T = Σ t (1 for probabilities): no term is negative.

    A smoothed index adds a (log s − ⟨z⟩), ⟨·⟩ the mean over the classes, to (1 − a) L: no array of
    targets is built.
    """
    return _forward(logits, labels, label_smoothing, put)


def _forward(logits, labels, a, put):
    if not 0 <= a < 1:
        raise ValueError(f"softmax_cross_entropy: label_smoothing must be in [0, 1), got {a}")
    x = widen(logits)
    if is_index("softmax_cross_entropy", logits, labels):
        loss, saved = of_index(x, labels, a, put)
        return loss.astype(logits.dtype), saved
    m = jax.lax.stop_gradient(x.max(-1, keepdims=True))  # L does not depend on it
    e, t = jnp.exp(x - m), _smooth(labels.astype(x.dtype), a)
    top, rest = e.shape[-1] + jnp.floor(e - 1).sum(-1), (e - jnp.floor(e)).sum(-1)
    log_s = jnp.log1p(rest + (top - 1))
    loss = t.sum(-1) * log_s - (t * at_least_if_zero(x - m, t)).sum(-1)
    return loss.astype(logits.dtype), (e, top, rest, labels, logits, m)


def of_index(x, labels, a, put):
    """Loss and residuals for class indices, with e changed at the own class by `put`."""
    m, x_own = jax.lax.stop_gradient(x.max(-1, keepdims=True)), at(x, labels)
    # No change of m, but now e comes after x_own, and XLA can write it over x.
    m = jnp.maximum(m, jax.lax.stop_gradient(x_own)[..., None])
    z_own = x_own - m.squeeze(-1)
    others = put(jnp.exp(x - m), labels, jnp.zeros_like(z_own))
    top, rest = jnp.exp(z_own), others.sum(-1)
    log_s = jnp.log1p(rest + (top - 1))
    loss = log_s - z_own
    if a:
        loss = (1 - a) * loss + a * (log_s - (x - m).mean(-1))
    return loss, (others, top, rest, labels)


def _smooth(t: jax.Array, a: float) -> jax.Array:
    """(1 − a) t + a/C."""
    return (1 - a) * t + a / t.shape[-1] if a else t


def softmax_cross_entropy_bwd(residuals, dloss, *, label_smoothing):
    """The cotangents of logits and labels.

    L = −Σ_j t_j x_j + T log Σ_k exp(x_k), so that with p = e / s

        dx = dL (T p − t),      for T = 1 the source's Y − T,                                 (1)
        dt = −dL log p = dL (log s − z).                                                      (2)

    At a class with e = 1, p is nearly 1 when the answer is right. There 1 − p = (s − e) / s, and

        T p − t = (T − t) − (rest + (top − e)) T / s                                          (3)

    does not cancel: T − t is exact if t > T/2 (Sterbenz), and 0 for a class index or one-hot t. For
    a class index, top = e.

    With label smoothing these t are (1 − a) t + a/C, the one of a class index is 1 − (a − a/C), and
    dt is (1 − a) times (2).

    Reference: Source A 3.3.8.
    """
    a, dl = label_smoothing, widen(dloss)
    if len(residuals) == 4:
        return of_index_bwd(residuals, dl, a, put).astype(dloss.dtype), None
    e, top, rest, labels, logits, m = residuals
    e = placed_like(e, labels)
    t = _smooth(labels.astype(e.dtype), a)
    total = t.sum(-1)
    log_s, scale = jnp.log1p(rest + (top - 1)), total / (top + rest)
    dl, top, rest, total, log_s, scale = (
        v[..., None] for v in (dl, top, rest, total, log_s, scale)
    )
    at_top = (total - t) - (rest + (top - e)) * scale  # (3)
    dx = dl * jnp.where(e < 1, e * scale - t, at_top)  # (1)
    dt = dl * (log_s - (widen(logits) - m))  # (2)
    dt = (1 - a) * dt if a else dt
    return dx.astype(dloss.dtype), label_cotangent(labels, dt)


def of_index_bwd(saved, dl, a, put):
    """(1) for class indices, changed at the own class by `put`."""
    others, top, rest, labels = saved
    classes = others.shape[-1]
    scale = dl / (top + rest)
    dx, dx_own = others * scale[..., None], -rest * scale  # (1), (3) with T = 1
    if a:
        dx, dx_own = dx - (a / classes * dl)[..., None], dx_own + (a - a / classes) * dl
    return put(dx, labels, dx_own)


softmax_cross_entropy.defvjp(softmax_cross_entropy_fwd, softmax_cross_entropy_bwd)
