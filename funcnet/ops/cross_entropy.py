"""Cross entropy and divergence of probabilities, per example over the last axis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer

from funcnet._arrays import widen
from funcnet.ops._labels import (
    above_zero_if_zero,
    at,
    at_least_if_zero,
    by_class,
    check_class_weights,
    check_same,
    dense,
    finite_if_zero,
    is_class,
    is_index,
    is_per_example,
    keep_examples,
    label_cotangent,
    one_hot,
    visible,
    weighted,
)
from funcnet.ops._masks import keep
from funcnet.ops._types import AnyArray, Real
from funcnet.rule import rule


@rule(real=("y", "class_weights"))
def cross_entropy(
    y: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"] | Integer[ArrayLike, "*batch"],
    where: Bool[ArrayLike, "..."] | None = None,
    class_weights: Real[ArrayLike, "C"] | None = None,
    *,
    ignore: int | None = None,
) -> Float[Array, "*batch"]:
    """The cross entropy of each example, computed from probabilities.

        L = −Σ_j t_j log y_j,   where 0 · log 0 = 0

    For logits use `softmax_cross_entropy`, which neither overflows nor cancels. The source scales
    the loss by 1/C where it differentiates it (3.3.7); divide by C for that form. Handling
    0 · log 0, which autodiff turns into nan, takes a third longer on a CPU than −Σ t log y alone.

    Class weights w replace t by w ⊙ t. The sum is over the classes that count, and `where` and
    `ignore` mean the same as in `softmax_cross_entropy`.

    Args:
      y: Probabilities, shape (..., C).
      t: Labels, in one of two forms: probabilities or one-hot, of the same shape as y; or class
        indices from 0 to C − 1, of shape (...) and an integer dtype. Any other index, including a
        negative one, gives a loss of nan and a gradient of nan.
      where: Booleans, true for what counts: examples, shape (...), or classes of examples, shape
        (..., C). A size may also be 1.
      class_weights: w, shape (C,).
      ignore: A class index that excludes its example; it need not be a class. Static.

    Returns:
      L, shape (...), with the dtype of y.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If labels have neither form, the shape of where or class_weights does not fit, or
        ignore is given for labels that are not indices.

    Reference: Source A 3.1.2.

    >>> round(float(cross_entropy(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))), 4)
    0.6931
    """
    y, t = jnp.asarray(y), jnp.asarray(t)
    mask, by_index = _form(y, t, where, class_weights, ignore)
    if by_index:
        return -jnp.log(widen(_own(y, t, mask))).astype(y.dtype)
    wide = keep(mask, widen(y), 1)
    labels = weighted(keep(mask, dense(t, wide)), class_weights, mask)
    return -(labels * at_least_if_zero(jnp.log(wide), labels)).sum(-1).astype(y.dtype)


def _form(y, t, where, weights, ignore):
    """The mask of what counts, and whether the labels are used as indices."""
    by_index = is_index("cross_entropy", "y", y, t)
    check_class_weights("cross_entropy", y, weights)
    mask = visible("cross_entropy", y, t, where, ignore)
    return mask, by_index and weights is None and is_per_example(mask)


def _own(y: Array, t: Array, mask: Array | None) -> Array:
    """The y of the class of each label, shape (...), and 1 for an example that does not count."""
    own = at(y, keep_examples(mask, t))
    return own if mask is None else keep(mask.any(-1), own, 1)


def cross_entropy_fwd(y, t, where=None, class_weights=None, *, ignore):
    """Saves the arguments."""
    arguments = y, t, where, class_weights
    return cross_entropy.__wrapped__(*arguments, ignore=ignore), arguments


def cross_entropy_bwd(residuals, dloss, *, ignore):
    """The cotangents of y, t and class weights.

    Each y_j occurs in one term, −w_j t_j log y_j, where w_j = 1 without class weights. So

        dy = −dL w ⊙ t / y,   0 where w t = 0,                                                (1)
        dt = −dL w ⊙ log y,                                                                   (2)
        dw = −Σ dL t ⊙ log y,   0 where t = 0, with the sum over the examples.                (3)

    dy and dt are 0 where dL = 0, even if y = 0. A class index stands for a one-hot t and has no
    cotangent. What does not count has t = 0 and y = 1, and dL counts as 0 in an example of which
    nothing counts.

    Reference: Source A 3.3.7, times C.
    """
    y, t, where, weights = residuals
    mask, by_index = _form(y, t, where, weights, ignore)
    dl = keep_examples(mask, widen(dloss))[..., None]
    if by_index:
        dy_own = -_ratio(dl, widen(_own(y, t, mask))[..., None])  # (1)
        t = keep_examples(mask, t)
        dy_other = jnp.where(is_class(t, y.shape[-1])[..., None] | (dl == 0), 0 * dl, jnp.nan)
        dy = jnp.where(one_hot(t, y.shape[-1]), dy_own, dy_other)
        return dy.astype(y.dtype), None, None, None
    wide = keep(mask, widen(y), 1)
    labels = keep(mask, dense(t, wide))
    dy = -_ratio(dl * weighted(labels, weights, mask), wide)  # (1)
    dt = weighted(-dl * finite_if_zero(jnp.log(wide), dl), weights, mask)  # (2)
    dw = None
    if weights is not None:
        log_y = jnp.where(labels == 0, 0, jnp.log(wide))
        dw = by_class(-dl * labels * log_y).astype(weights.dtype)  # (3)
    return dy.astype(y.dtype), label_cotangent(t, dt), None, dw


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


@rule(real=("log_p",))
def kl_divergence(
    log_p: Real[AnyArray, "*batch C"],
    t: Real[AnyArray, "*batch C"],
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "*batch"]:
    """The Kullback-Leibler divergence of the target t from the output p, for each example.

        L = Σ_j t_j (log t_j − log p_j),   where 0 · log 0 = 0

    A class with t_j = 0 does not contribute to L, even if p_j = 0. The gradient with respect to
    such a t_j is 0, although it grows without bound as t_j → 0. Without these guards autodiff gives
    nan. If t is differentiated too, the guards cost a temporary array of the size of t. The sum is
    over the classes that count; what `where` excludes has no influence and gradient 0.

    Args:
      log_p: Logarithms of the output probabilities, shape (..., C), e.g. from `log_softmax`.
      t: Target probabilities, the same shape. A negative one gives nan.
      where: Booleans, true for what counts: examples, shape (...), or classes of examples, shape
        (..., C). A size may also be 1.

    Returns:
      L, shape (...), with the dtype of log_p; L ≥ 0 if p and t sum to 1.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If the shapes differ, or that of where does not fit.

    Reference: Kullback & Leibler, On information and sufficiency, 1951, Annals of Mathematical
    Statistics 22(1).

    >>> float(kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.5, 0.5])))
    0.0
    """
    log_p, t = jnp.asarray(log_p), jnp.asarray(t)
    zero, log_ratio, t, _ = _log_ratio(log_p, t, where)
    return jnp.where(zero, jnp.zeros_like(t), t * log_ratio).sum(-1).astype(log_p.dtype)


def _log_ratio(log_p: Array, t: Array, where: Any) -> tuple[Any, ...]:
    """The mask t = 0, log t − log p (0 where t = 0), and t, in float32 or wider; what counts."""
    check_same("kl_divergence", log_p, t, "log_p")
    mask = visible("kl_divergence", log_p, t, where)
    log_p = widen(log_p)
    t = keep(mask, t.astype(log_p.dtype))
    zero = t == 0
    log_t = jnp.log(jnp.where(zero, jnp.ones_like(t), t))
    return zero, log_t - jnp.where(zero, jnp.zeros_like(log_p), log_p), t, mask


def kl_divergence_fwd(log_p, t, where=None):
    """Saves the arguments."""
    return kl_divergence.__wrapped__(log_p, t, where), (log_p, t, where)


def kl_divergence_bwd(residuals, dloss):
    """The cotangents of log_p and t.

    Each element of log p and t occurs in one term of the sum, and ∂(t log t)/∂t = log t + 1, so

        dlog p = −dL t,                                                                       (1)
        dt = dL (log t − log p + 1),   0 where t = 0 or dL = 0.                               (2)

    What does not count has t = 0, and dL counts as 0 in an example of which nothing counts.
    """
    log_p, t_given, where = residuals
    zero, log_ratio, t, mask = _log_ratio(log_p, t_given, where)
    dl = keep_examples(mask, widen(dloss))[..., None]
    dlog_p = -dl * t  # (1)
    dt = jnp.where(zero, jnp.zeros_like(t), dl * finite_if_zero(log_ratio + 1, dl))  # (2)
    return dlog_p.astype(log_p.dtype), label_cotangent(t_given, dt), None


kl_divergence.defvjp(kl_divergence_fwd, kl_divergence_bwd)
