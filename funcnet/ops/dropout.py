"""Dropout."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Inexact, PRNGKeyArray

from funcnet._arguments import check_key, check_number
from funcnet._arrays import explicit_sharding
from funcnet.ops._types import Num, Number
from funcnet.rule import rule


@rule(inexact=("x",))
def dropout(
    x: Num[ArrayLike, "*shape"],
    key: PRNGKeyArray,
    *,
    rate: Number,
) -> Inexact[Array, "*shape"]:
    """Sets each element to 0 with probability p and scales the others to preserve the mean.

        y = r ⊙ x / (1 − p),   r_ij = 0 with probability p, else 1, independently

    This is the training mode; at inference, dropout is the identity (see `funcnet.layers.Dropout`).

    Args:
      x: Input of any shape.
      key: A PRNG key, from `jax.random.key` or `jax.random.PRNGKey`. The same key gives the same r
        on the same platform; a CPU draws another r than a GPU or TPU.
      rate: p in [0, 1), the probability of dropping an element, accurate to 2⁻¹⁷. It may be traced;
        then its range is not checked.

    Returns:
      y with the shape and dtype of x; integers are converted to floats.

    Raises:
      ValueError: If rate is not in [0, 1).
      TypeError: If key is not a single PRNG key.

    Reference: Source A 4.2.2.1; Srivastava et al., JMLR 15, 2014.

    >>> y = dropout(jnp.ones(1000), jax.random.key(0), rate=0.5)
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """
    return dropout_fwd(x, key, rate=rate)[0]


def draw(key: Array, rate: Number, shape: tuple[int, ...]) -> Array:
    """The mask r, True with probability 1 − p; p is rounded here, but not in the scale 1/(1 − p).

    On a CPU each 32-bit random word is used for two elements, because random bits are the largest
    cost of dropout. On other platforms joining the halves would cost more than the bits.
    """
    halves = functools.partial(_two_of_a_word, rate=rate, shape=shape)
    words = functools.partial(_one_of_a_word, rate=rate, shape=shape)
    return jax.lax.platform_dependent(key, cpu=halves, default=words)


def _two_of_a_word(key: Array, *, rate: Number, shape: tuple[int, ...]) -> Array:
    *batch, n = shape or (1,)
    words = jax.random.bits(key, (*batch, -(-n // 2)), jnp.uint32)
    halves = jnp.concatenate([words >> 16, words & 0xFFFF], axis=-1)[..., :n]
    return _is_kept(halves, rate).reshape(shape)


def _one_of_a_word(key: Array, *, rate: Number, shape: tuple[int, ...]) -> Array:
    return _is_kept(jax.random.bits(key, shape, jnp.uint32) >> 16, rate)


def _is_kept(bits: Array, rate: Number) -> Array:
    """Whether a number of 16 random bits keeps its element."""
    threshold = rate * 2**16
    if isinstance(threshold, Tracer):
        return bits >= jnp.round(threshold).astype(bits.dtype)
    return bits >= round(threshold)


def _apply(r: Array, x: Array, rate: Number) -> Array:
    """Computes r ⊙ x / (1 − p), both for x in the forward and for dy in the backward pass."""
    return jnp.where(r, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))


def dropout_fwd(x, key, *, rate):
    """Saves the mask r, one byte per element."""
    check_number("dropout", "rate", rate, at_least=0, below=1)
    check_key("dropout", key)
    r = draw(key, rate, x.shape)
    if (sharding := explicit_sharding(x)) is not None:
        r = jax.sharding.reshard(r, sharding)
    return _apply(r, x, rate), r


def dropout_bwd(r, dy, *, rate):
    """The cotangent of x; the key has none.

    ∂y_ij/∂x_ij = r_ij / (1 − p), and all other derivatives are 0, so

        dx = r ⊙ dy / (1 − p).                                                                (1)

    Reference: Source A 4.2.2.2.
    """
    return _apply(r, dy, rate), None  # (1)


dropout.defvjp(dropout_fwd, dropout_bwd)
