"""Sigmoid and binary cross entropy as one rule."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from funcnet._arguments import check_real
from funcnet._arrays import widen
from funcnet.ops._labels import finite_if_zero, label_cotangent
from funcnet.ops._types import Real
from funcnet.rule import rule


@rule(real=("logits",))
def sigmoid_binary_cross_entropy(
    logits: Real[ArrayLike, "*shape"],
    labels: Real[ArrayLike, "*shape"],
) -> Float[Array, "*shape"]:
    """The binary cross entropy between sigmoid(logits) and the labels, element by element.

        L = −y log s(z) − (1 − y) log s(−z),   s(z) = 1 / (1 + e⁻ᶻ)

    Here z are the logits and y the labels; each element is a separate binary decision. With
    e = exp(−|z|), L is log(1 + e) + (1 − y) z for z ≥ 0 and log(1 + e) − y z for z < 0. No term is
    negative or overflows, and the loss and the gradient keep their relative accuracy in the tails.

    Args:
      logits: z, of any shape, finite.
      labels: y in [0, 1], of the same shape as logits and any real dtype.

    Returns:
      L, with the shape and dtype of logits; the caller takes the sum or the mean over the outputs.

    Raises:
      ValueError: If the shapes differ.

    Reference: Bishop, Pattern recognition and machine learning, 2006, equation 4.90.

    >>> round(float(sigmoid_binary_cross_entropy(jnp.array(0.0), jnp.array(1.0))), 4)
    0.6931
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_real("sigmoid_binary_cross_entropy", "labels", labels)
    if logits.shape != labels.shape:
        raise ValueError(
            "sigmoid_binary_cross_entropy: labels must have the shape of logits, "
            f"{logits.shape}, got {labels.shape}"
        )
    z, up, _, e = _sides(logits, labels)
    return (up * z + jnp.log1p(e)).astype(logits.dtype)


def _sides(logits: Array, labels: Array) -> tuple[Array, ...]:
    """z, the coefficients of the larger and the smaller sigmoid in (1), and e = exp(−|z|).

    At z = 0 both branches give the right value, but only a single branch throughout gives the right
    derivatives, so e is computed by the same branch as the coefficients, not from |z|.
    """
    z = widen(logits)
    y, right = labels.astype(z.dtype), z >= 0
    e = jnp.exp(jnp.where(right, -z, z))
    return z, jnp.where(right, 1 - y, -y), jnp.where(right, -y, 1 - y), e


def sigmoid_binary_cross_entropy_fwd(logits, labels):
    """Saves the arguments."""
    return sigmoid_binary_cross_entropy.__wrapped__(logits, labels), (logits, labels)


def sigmoid_binary_cross_entropy_bwd(residuals, dloss):
    """The cotangents of logits and labels.

    From d log s(z)/dz = s(−z) and log s(z) − log s(−z) = z,

        dz = dL ((1 − y) s(z) − y s(−z)),                                                     (1)
        dy = −dL z.                                                                           (2)

    (1) equals dL (s(z) − y), but that form rounds to 0 as soon as s(z) rounds to y. With
    e = exp(−|z|) ≤ 1, the two sigmoids are 1/(1 + e) and e/(1 + e); the larger one is s(z) if z ≥ 0
    and s(−z) if z < 0. Where dL = 0, dy is 0 even if z is infinite.
    """
    logits, labels = residuals
    dl = widen(dloss)
    z, up, down, e = _sides(logits, labels)
    dz = dl * ((up + down * e) / (1 + e))  # (1)
    dy = -dl * finite_if_zero(z, dl)  # (2)
    return dz.astype(logits.dtype), label_cotangent(labels, dy)


sigmoid_binary_cross_entropy.defvjp(
    sigmoid_binary_cross_entropy_fwd, sigmoid_binary_cross_entropy_bwd
)
