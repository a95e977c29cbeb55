"""The linear recurrence with an elementwise factor."""

import jax
import jax.numpy as jnp
from jax import lax

from funcnet.ops.precision import wide_dtype
from funcnet.rule import rule


def _check(a: jax.Array, b: jax.Array, h0: jax.Array | None) -> None:
    if b.ndim < 2:
        raise ValueError(f"linear_recurrence: b must have shape (..., T, C), got {b.shape}")
    if a.shape != b.shape:
        raise ValueError(
            f"linear_recurrence: a must have the shape {b.shape} of b, got {a.shape}"
        )
    last = b.shape[:-2] + b.shape[-1:]
    if h0 is not None and h0.shape != last:
        raise ValueError(
            f"linear_recurrence: h0 must have shape {last} for b {b.shape}, got {h0.shape}"
        )


def _scan(a: jax.Array, b: jax.Array, *, reverse: bool) -> jax.Array:
    """h_t = a_t h_{t−1} + b_t from h_0 = 0, over axis −2, in logarithmic depth.

    The maps h ↦ a h + b of successive steps compose to h ↦ a′(a h + b) + b′, which is associative.
    """

    def compose(first, then):
        return then[0] * first[0], then[0] * first[1] + then[1]

    return lax.associative_scan(compose, (a, b), reverse=reverse, axis=a.ndim - 2)[1]
