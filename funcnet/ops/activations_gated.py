"""Gated linear units: an activation of one half of the features multiplies the other half."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from funcnet._arrays import widen
from funcnet._barrier import barrier
from funcnet.ops._types import Real
from funcnet.ops.activations import bell
from funcnet.ops.activations_smooth import gelu, gelu_slope, silu, silu_slope
from funcnet.rule import rule

Activation = Callable[[Array], Array]


def _gated(f: str, activation: Activation, gate: ArrayLike, up: ArrayLike) -> Array:
    gate, up = jnp.asarray(gate), jnp.asarray(up)
    if gate.shape != up.shape:
        raise ValueError(f"{f}: up must have the shape {gate.shape} of gate, got {up.shape}")
    y = activation(widen(gate)) * widen(up)
    return y.astype(jnp.result_type(gate, up))


@rule(real=("gate", "up"))
def swiglu(
    gate: Real[ArrayLike, "*shape"],
    up: Real[ArrayLike, "*shape"],
) -> Float[Array, "*shape"]:
    """The gated linear unit with `silu` as the activation of the gate.

        y = silu(a) ⊙ b,   silu(a) = a s(a)

    Here a is `gate` and b is `up`; both are linear maps of the same features.

    Args:
      gate: a, of any shape.
      up: b, of the same shape as gate.

    Returns:
      y, with the shape of gate and the dtype that gate and up promote to.

    Raises:
      ValueError: If the shapes differ.

    Reference: Shazeer, GLU variants improve Transformer, 2020, equation 5, arXiv:2002.05202.

    >>> swiglu(jnp.array([100.0, 0.0]), jnp.array([3.0, 5.0])).tolist()
    [300.0, 0.0]
    """
    return _gated("swiglu", silu.__wrapped__, gate, up)


def swiglu_fwd(gate, up):
    """Saves the arguments."""
    return swiglu.__wrapped__(gate, up), (gate, up)


def swiglu_bwd(residuals, dy):
    """The cotangents of gate and up.

    By the product rule, with silu′(a) = s(a) + a s(a) s(−a) as in `silu`,

        da = dy ⊙ b ⊙ silu′(a),   db = dy ⊙ silu(a).                                          (1)
    """
    # Without a barrier XLA would keep silu(a) of fwd and its parts in addition to a and b.
    gate, up = barrier(residuals)
    a, b, g = widen(gate), widen(up), widen(dy)
    # Each line computes its own exponential, because XLA:CPU would store a shared one.
    dgate = g * b * silu_slope(a)  # (1)
    dup = g * silu.__wrapped__(a)
    return dgate.astype(gate.dtype), dup.astype(up.dtype)


swiglu.defvjp(swiglu_fwd, swiglu_bwd)


@rule(real=("gate", "up"))
def glu(
    gate: Real[ArrayLike, "*shape"],
    up: Real[ArrayLike, "*shape"],
) -> Float[Array, "*shape"]:
    """The gated linear unit, with the sigmoid s of the gate.

        y = s(a) ⊙ b

    Here a is `gate` and b is `up`; both are linear maps of the same features. `jax.nn.glu(x)` is
    `glu(a, b)` where b is the first half of x and a is the second.

    Args:
      gate: a, of any shape.
      up: b, of the same shape as gate.

    Returns:
      y, with the shape of gate and the dtype that gate and up promote to.

    Raises:
      ValueError: If the shapes differ.

    Reference: Dauphin et al., Language modeling with gated convolutional networks, 2017, equation
    1, arXiv:1612.08083.

    >>> glu(jnp.array([100.0, 0.0]), jnp.array([3.0, 5.0])).tolist()
    [3.0, 2.5]
    """
    return _gated("glu", jax.lax.logistic, gate, up)


def glu_fwd(gate, up):
    """Saves the arguments."""
    return glu.__wrapped__(gate, up), (gate, up)


def glu_bwd(residuals, dy):
    """The cotangents of gate and up.

    By the product rule, with s′(a) = s(a) s(−a) as in `sigmoid`,

        da = dy ⊙ b ⊙ s(a) s(−a),   db = dy ⊙ s(a).                                           (1)
    """
    gate, up = barrier(residuals)  # see swiglu_bwd
    a, b, g = widen(gate), widen(up), widen(dy)
    dgate = g * b * bell(a)  # (1)
    dup = g * jax.lax.logistic(a)
    return dgate.astype(gate.dtype), dup.astype(up.dtype)


glu.defvjp(glu_fwd, glu_bwd)


@rule(real=("gate", "up"))
def geglu(
    gate: Real[ArrayLike, "*shape"],
    up: Real[ArrayLike, "*shape"],
    *,
    approximate: bool = True,
) -> Float[Array, "*shape"]:
    """The gated linear unit with `gelu` as the activation of the gate.

        y = gelu(a) ⊙ b,   gelu(a) = a Φ(a)

    Here a is `gate` and b is `up`; both are linear maps of the same features. `gelu` tells what the
    approximate form costs.

    Args:
      gate: a, of any shape.
      up: b, of the same shape as gate.
      approximate: Whether to approximate Φ, as in `gelu`. Static.

    Returns:
      y, with the shape of gate and the dtype that gate and up promote to.

    Raises:
      ValueError: If the shapes differ.

    Reference: Shazeer, GLU variants improve Transformer, 2020, equation 5, arXiv:2002.05202.

    >>> geglu(jnp.array([100.0, 0.0]), jnp.array([3.0, 5.0])).tolist()
    [300.0, 0.0]
    """
    return _gated("geglu", lambda a: gelu.__wrapped__(a, approximate=approximate), gate, up)


def geglu_fwd(gate, up, *, approximate):
    """Saves the arguments."""
    return geglu.__wrapped__(gate, up, approximate=approximate), (gate, up)


def geglu_bwd(residuals, dy, *, approximate):
    """The cotangents of gate and up.

    By the product rule, with the derivative of `gelu`,

        da = dy ⊙ b ⊙ gelu′(a),   db = dy ⊙ gelu(a).                                          (1)
    """
    gate, up = barrier(residuals)  # see swiglu_bwd
    a, b, g = widen(gate), widen(up), widen(dy)
    dgate = g * b * gelu_slope(a, approximate=approximate)  # (1)
    dup = g * gelu.__wrapped__(a, approximate=approximate)
    return dgate.astype(gate.dtype), dup.astype(up.dtype)


geglu.defvjp(geglu_fwd, geglu_bwd)
