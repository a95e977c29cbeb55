"""Sigmoid and binary cross entropy as one rule."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from funcnet._arguments import check_broadcasts, check_real
from funcnet._arrays import sum_to, widen
from funcnet.ops._labels import finite_if_zero, label_cotangent, visible
from funcnet.ops._masks import keep
from funcnet.ops._types import Real
from funcnet.rule import rule


@rule(real=("logits", "pos_weight"))
def sigmoid_binary_cross_entropy(
    logits: Real[ArrayLike, "*shape"],
    labels: Real[ArrayLike, "*shape"],
    where: Bool[ArrayLike, "..."] | None = None,
    pos_weight: Real[ArrayLike, "..."] | None = None,
    *,
    ignore: int | None = None,
) -> Float[Array, "*shape"]:
    """The binary cross entropy between sigmoid(logits) and the labels, element by element.

        L = −w y log s(z) − (1 − y) log s(−z),   s(z) = 1 / (1 + e⁻ᶻ)

    Here z are the logits, y the labels and w = 1 unless pos_weight is given; each element is a
    separate binary decision. With e = exp(−|z|) and v = w y + 1 − y, L is v log(1 + e) + (1 − y) z
    for z ≥ 0 and v log(1 + e) − w y z for z < 0. No term is negative or overflows, and the loss and
    the gradient keep their relative accuracy in the tails.

    `where` and `ignore` exclude elements. The other losses and gradients do not depend on excluded
    numbers, even if these are nan or infinite, and the loss and the gradients of an excluded
    element are 0. For the mean over the elements that count, write `loss.mean(where=where)`.

    Args:
      logits: z, of any shape, finite.
      labels: y in [0, 1], of the same shape as logits and any real dtype.
      where: Booleans, true for what counts: elements, of the shape of logits, or examples, of that
        shape without its last axis. A size may also be 1.
      pos_weight: w ≥ 0, of a shape that broadcasts to that of logits. A w above 1 raises the recall
        of the positive class, and one below 1 the precision.
      ignore: A label that excludes its element, such as −1. Static.

    Returns:
      L, with the shape and dtype of logits; the caller takes the sum or the mean over the outputs.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If the shapes differ, or that of where or pos_weight does not fit.

    Reference: Bishop, Pattern recognition and machine learning, 2006, equation 4.90.

    >>> round(float(sigmoid_binary_cross_entropy(jnp.array(0.0), jnp.array(1.0))), 4)
    0.6931
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    z, up, _, e, total, _, mask = _sides(logits, labels, where, pos_weight, ignore)
    log_s = jnp.log1p(e) if pos_weight is None else total * jnp.log1p(e)
    return keep(mask, up * z + log_s).astype(logits.dtype)


def _sides(logits, labels, where, weight, ignore) -> tuple[Any, ...]:
    """z, the coefficients of the larger and the smaller sigmoid in (1), e, v, w and the mask.

    At z = 0 both branches give the right value, but only a single branch throughout gives the right
    derivatives, so e is computed by the same branch as the coefficients, not from |z|. What does
    not count has z = 0 and y = 0.
    """
    f = "sigmoid_binary_cross_entropy"
    check_real(f, "labels", labels)
    if logits.shape != labels.shape:
        raise ValueError(
            f"{f}: labels must have the shape of logits, {logits.shape}, got {labels.shape}"
        )
    mask, z = visible(f, logits, labels, where), widen(logits)
    y = labels.astype(z.dtype)
    if ignore is not None:
        mask = y != ignore if mask is None else mask & (y != ignore)
    z, y = keep(mask, z), keep(mask, y)
    right, w, positive = z >= 0, None, y
    if weight is not None:
        check_broadcasts(f, "pos_weight", weight, "logits", logits)
        w = keep(mask, jnp.broadcast_to(weight.astype(z.dtype), z.shape))
        positive = w * y
    e = jnp.exp(jnp.where(right, -z, z))
    up, down = jnp.where(right, 1 - y, -positive), jnp.where(right, -positive, 1 - y)
    return z, up, down, e, positive + (1 - y), w, mask


def sigmoid_binary_cross_entropy_fwd(logits, labels, where=None, pos_weight=None, *, ignore):
    """Saves the arguments."""
    arguments = logits, labels, where, pos_weight
    return sigmoid_binary_cross_entropy.__wrapped__(*arguments, ignore=ignore), arguments


def sigmoid_binary_cross_entropy_bwd(residuals, dloss, *, ignore):
    """The cotangents of logits, labels and pos_weight.

    From d log s(z)/dz = s(−z),

        dz = dL ((1 − y) s(z) − w y s(−z)),                                                   (1)
        dy = dL (log s(−z) − w log s(z)) = −dL z without w, as log s(z) − log s(−z) = z,      (2)
        dw = −dL y log s(z), summed over the axes along which w is broadcast.                 (3)

    Without w, (1) equals dL (s(z) − y), but that form rounds to 0 as soon as s(z) rounds to y. With
    e = exp(−|z|) ≤ 1, the two sigmoids are 1/(1 + e) and e/(1 + e); the larger one is s(z) if z ≥ 0
    and s(−z) if z < 0. −log s(z) is log(1 + e) + max(−z, 0). Where dL = 0, dy is 0 even if z is
    infinite. dL counts as 0 where nothing counts.
    """
    logits, labels, where, pos_weight = residuals
    z, up, down, e, _, w, mask = _sides(logits, labels, where, pos_weight, ignore)
    dl = keep(mask, widen(dloss))
    dz = dl * ((up + down * e) / (1 + e))  # (1)
    if w is None:
        dy = -dl * finite_if_zero(z, dl)  # (2)
        return dz.astype(logits.dtype), label_cotangent(labels, dy), None, None
    right, log_s = z >= 0, jnp.log1p(e)
    zero = jnp.zeros_like(z)
    positive, negative = log_s + jnp.where(right, zero, -z), log_s + jnp.where(right, z, zero)
    dy = dl * finite_if_zero(w * positive - negative, dl)  # (2)
    y = keep(mask, labels.astype(z.dtype))
    dw = sum_to(dl * y * positive, pos_weight).astype(pos_weight.dtype)  # (3)
    return dz.astype(logits.dtype), label_cotangent(labels, dy), None, dw


sigmoid_binary_cross_entropy.defvjp(
    sigmoid_binary_cross_entropy_fwd, sigmoid_binary_cross_entropy_bwd
)
