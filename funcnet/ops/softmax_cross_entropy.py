"""Softmax and cross entropy as one rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer

from funcnet._arguments import check_number
from funcnet._arrays import placed_like, widen
from funcnet.ops._labels import (
    at,
    at_least_if_zero,
    by_class,
    check_class_weights,
    dense,
    finite_if_zero,
    is_class,
    is_index,
    is_per_example,
    keep_examples,
    label_cotangent,
    put,
    put_by_mask,
    visible,
    weighted,
)
from funcnet.ops._masks import keep, without
from funcnet.ops._types import AnyArray, Number, Real
from funcnet.rule import rule


@rule(real=("logits", "class_weights"))
def softmax_cross_entropy(
    logits: Real[AnyArray, "*batch C"],
    labels: Real[AnyArray, "*batch C"] | Integer[ArrayLike, "*batch"],
    where: Bool[ArrayLike, "..."] | None = None,
    class_weights: Real[ArrayLike, "C"] | None = None,
    *,
    label_smoothing: Number = 0.0,
    ignore: int | None = None,
) -> Float[Array, "*batch"]:
    """The cross entropy between softmax(logits) and the labels, for each example.

        L = −Σ_j t_j log p_j,   p_j = exp(x_j) / Σ_k exp(x_k)

    Here x are the logits and t the labels. The loss and the gradient keep full relative accuracy
    where p is nearly 1 at the label (both are then tiny) and where all logits share a large offset.
    Class indices are the faster form of labels: with probabilities, the accurate tails and
    0 · log 0 = 0 take up to a tenth more time on a CPU.

    Label smoothing by a replaces t by (1 − a) t + a/C, so that no p has to become 1. Class weights
    w then replace t by w ⊙ t. With either a mask of classes or class weights, indices are taken as
    one-hot labels.

    `where` and `ignore` exclude examples or classes. The loss and the gradients do not depend on
    excluded numbers, even if these are nan or infinite, and their own gradients are 0. The sums are
    over the classes that count, and C is their number. If no class of an example counts, or the
    class of its index does not, its loss is 0. For the mean over the examples that count, write
    `loss.mean(where=labels != ignore)`.

    Args:
      logits: x, shape (..., C).
      labels: t, in one of two forms: probabilities or one-hot, of the same shape as logits; or
        class indices from 0 to C − 1, of shape (...) and an integer dtype. Any other index,
        including a negative one, gives a loss of nan and a gradient of nan.
      where: Booleans, true for what counts: examples, shape (...), or classes of examples, shape
        (..., C). A size may also be 1.
      class_weights: w, shape (C,). PyTorch's mean divides by the sum of w at the labels.
      label_smoothing: a in [0, 1). It may be traced.
      ignore: A class index that excludes its example; it need not be a class. Static.

    Returns:
      L, shape (...), with the dtype of logits.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If labels have neither form, the shape of where or class_weights does not fit,
        label_smoothing is outside [0, 1), or ignore is given for labels that are not indices.

    Reference: Source A 3.3.8; the source's (Y − T)/C belongs to its loss scaled by 1/C (3.3.7).
    Label smoothing: Szegedy et al., Rethinking the Inception architecture for computer vision,
    2015, section 7, arXiv:1512.00567.

    >>> print(f"{softmax_cross_entropy(jnp.array([50.0, 0.0]), jnp.array(0)):.4e}")
    1.9287e-22
    """
    return _forward(logits, labels, where, class_weights, label_smoothing, ignore, put_by_mask)[0]


def softmax_cross_entropy_fwd(
    logits, labels, where=None, class_weights=None, *, label_smoothing, ignore
):
    """Saves e = exp(z), where z = x − max x, and two sums of e per example.

    The sum s of e is kept in two parts, top + rest, so that a tiny rest keeps its digits:

        log s = log1p(rest + (top − 1)).

    For a class index, top is the e of that class, and the saved array has 0 in its place. If that e
    is not the largest, top < 1 and L ≥ −z of that class, so nothing tiny has to be preserved. For
    labels with one number per class, top is the number of e that are 1 (those of the maximum: one,
    except for ties), and rest is the sum of the others:

        top = C + Σ ⌊e − 1⌋,   rest = Σ (e − ⌊e⌋)   (XLA:CPU fuses a floor into a sum),
        L = T log s + Σ_j t_j (−z_j),   T = Σ t (1 for probabilities).

    No term of L is negative. For a class index with label smoothing, the loss is (1 − a) L plus
    a (log s − ⟨z⟩), where ⟨·⟩ is the mean over the classes; no array of targets is built.

    A class that does not count has x = −∞, so that e = 0, and t = 0. All x are 0 in an example of
    which nothing counts.
    """
    return _forward(logits, labels, where, class_weights, label_smoothing, ignore, put)


def _forward(logits, labels, where, weights, a, ignore, put):
    f = "softmax_cross_entropy"
    check_number(f, "label_smoothing", a, at_least=0, below=1)
    x, by_index = widen(logits), is_index(f, "logits", logits, labels)
    check_class_weights(f, logits, weights)
    mask = visible(f, logits, labels, where, ignore)
    if by_index and weights is None and is_per_example(mask):
        loss, saved = of_index(keep(mask, x), keep_examples(mask, labels), a, put)
        loss = keep_examples(mask, loss).astype(logits.dtype)
        return loss, (saved[:-1], labels, None, where, None)
    x = without(mask, x)
    m = jax.lax.stop_gradient(x.max(-1, keepdims=True))
    z, t = _below(x, m), weighted(_targets(labels, x, mask, a), weights, mask)
    e = jnp.exp(z)
    top, rest = e.shape[-1] + jnp.floor(e - 1).sum(-1), (e - jnp.floor(e)).sum(-1)
    log_s = jnp.log1p(rest + (top - 1))
    loss = t.sum(-1) * log_s - (t * at_least_if_zero(z, t)).sum(-1)
    return loss.astype(logits.dtype), ((e, top, rest, m), labels, logits, where, weights)


def _is_used(a: Number) -> bool:
    """Whether there is label smoothing; if a is traced, there may be."""
    return isinstance(a, Tracer) or bool(a)


def _targets(labels: Array, like: Array, mask: Array | None, a: Number) -> Array:
    """The smoothed labels (1 − a) t + a/C of the classes that count, and 0 for the others."""
    t = dense(labels, like)
    if _is_used(a):
        count = like.shape[-1]
        if mask is not None and mask.shape[-1] > 1:
            count = jnp.maximum(mask.sum(-1, keepdims=True, dtype=like.dtype), 1)
        t = (1 - a) * t + a / count
    return keep(mask, t)


def of_index(x, labels, a, put):
    """Loss and residuals for class indices; `put` sets e to 0 at the class of the label."""
    # fmax does not change m, but e now depends on at(x), so XLA can compute e in place of x.
    m = jnp.fmax(x.max(-1), at(x, labels))[..., None]
    m = jax.lax.stop_gradient(m)
    z, z_own = _below(x, m), _below(x, m, labels)
    others = put(jnp.exp(z), labels, jnp.zeros_like(z_own))
    top, rest = jnp.exp(z_own), others.sum(-1)
    log_s = jnp.log1p(rest + (top - 1))
    loss = log_s - z_own
    if _is_used(a):
        mean = log_s - z.mean(-1)
        mean = finite_if_zero(mean, a) if isinstance(a, Tracer) else mean
        loss = (1 - a) * loss + a * mean
    return loss, (others, top, rest, labels)


@jax.custom_jvp
def _below(x: Array, m: Array, index: Array | None = None) -> Array:
    """The difference z = x − m, for all classes or one index per row; m is the row's maximum."""
    return x - m if index is None else at(x, index) - m.squeeze(-1)


@_below.defjvp
def _below_jvp(primals, tangents):
    """The derivative of x − max x, in which m moves with the largest x, so that its z stays 0.

    The loss and its gradient do not depend on m. But with this derivative of m, the second
    derivative sums only terms that are tiny if 1 − p is tiny; without it, terms of order 1 would
    have to cancel.
    """
    (x, m, index), dx = primals, tangents[0]
    classes = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    largest = classes == jnp.expand_dims(jnp.argmax(x, -1).astype(jnp.int32), -1)
    zero = jnp.zeros_like(dx)
    dm = jnp.where(largest, dx, zero).sum(-1, keepdims=True)
    dz = jnp.where(largest, zero, dx - dm)
    return _below(x, m, index), dz if index is None else at(dz, index)


def softmax_cross_entropy_bwd(residuals, dloss, *, label_smoothing, ignore):
    """The cotangents of logits, labels and class weights.

    From L = −Σ_j t_j x_j + T log Σ_k exp(x_k), with p = e / s,

        dx = dL (T p − t),      the source's Y − T if T = 1,                                  (1)
        dt = −dL log p = dL (log s − z).                                                      (2)

    At a class with e = 1, p is nearly 1 if the prediction is right. There 1 − p = (s − e) / s, and

        T p − t = (T − t) − (rest + (top − e)) T / s                                          (3)

    does not cancel: T − t is exact if t > T/2 (Sterbenz), and 0 for a class index or one-hot t. For
    a class index, top = e. Where dL = 0, dt is 0 even at x = −∞.

    With label smoothing, t in (1) and (3) is (1 − a) t + a/C, which is 1 − (a − a/C) at a class
    index, and dt is (1 − a) times (2). With class weights, t in (1) and (3) is w ⊙ that, dt is also
    multiplied by w, and, with the sum over the examples,

        dw = Σ dL ((1 − a) t + a/C) (log s − z),   0 where the factor of log s − z is 0.      (4)

    What does not count has t = 0, e = 0 and no part in (2) and (4). dL counts as 0 in an example of
    which nothing counts.

    Reference: Source A 3.3.8.
    """
    a, saved, (labels, logits, where, weights) = label_smoothing, residuals[0], residuals[1:]
    mask = visible("softmax_cross_entropy", saved[0], labels, where, ignore)
    dl = keep_examples(mask, widen(dloss))
    if logits is None:
        dx = of_index_bwd((*saved, keep_examples(mask, labels)), dl, a, put)
        return dx.astype(dloss.dtype), None, None, None
    e, top, rest, m = saved
    unweighted = _targets(labels, e, mask, a)
    e, t = placed_like(e, unweighted), weighted(unweighted, weights, mask)
    total = t.sum(-1)
    log_s, scale = jnp.log1p(rest + (top - 1)), total / (top + rest)
    dl, top, rest, total, log_s, scale = (
        v[..., None] for v in (dl, top, rest, total, log_s, scale)
    )
    # T is summed again, so that only the other t contribute to the derivative of T − t.
    at_top = (t.sum(-1, keepdims=True) - t) - (rest + (top - e)) * scale  # (3)
    dx = keep(mask, dl * jnp.where(e < 1, e * scale - t, at_top))  # (1)
    z = _below(keep(mask, widen(logits), jnp.finfo(e.dtype).min), m)  # −∞, but finite
    dt = weighted(keep(mask, dl * finite_if_zero(log_s - z, dl)), weights, mask)  # (2)
    dt = (1 - a) * dt if _is_used(a) else dt
    dw = None
    if weights is not None:
        less_log_p = jnp.where(unweighted == 0, 0, log_s - z)
        dw = by_class(dl * unweighted * less_log_p).astype(weights.dtype)  # (4)
    return dx.astype(dloss.dtype), label_cotangent(labels, dt), None, dw


def of_index_bwd(saved, dl, a, put):
    """Equation (1) for class indices; `put` writes the element at the class of the label.

    If the index is out of range, top is nan, and so is the row of dx, unless dL = 0, which means
    that the loss is masked out.
    """
    others, top, rest, labels = saved
    classes = others.shape[-1]
    hidden = (dl == 0) & ~is_class(labels, classes)
    scale = dl / jnp.where(hidden, jnp.ones_like(top), top + rest)
    dx = others * scale[..., None]  # (1)
    dx_own = jnp.where(top < 1, top * scale - dl, -rest * scale)  # (1), or (3) with T = 1
    if _is_used(a):
        dx, dx_own = dx - (a / classes * dl)[..., None], dx_own + (a - a / classes) * dl
    return put(dx, labels, dx_own)


softmax_cross_entropy.defvjp(softmax_cross_entropy_fwd, softmax_cross_entropy_bwd)
