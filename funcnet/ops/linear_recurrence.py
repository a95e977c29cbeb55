"""Linear recurrence with elementwise factors."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from funcnet._arrays import batch_like, cast_cotangent, wide_dtype
from funcnet.ops._types import AnyArray, Num
from funcnet.rule import rule


def _check(a: Array, b: Array, h0: Array | None) -> None:
    if b.ndim < 2:
        raise ValueError(f"linear_recurrence: b must have shape (..., T, C), got {b.shape}")
    if a.shape != b.shape:
        raise ValueError(f"linear_recurrence: a must have the shape {b.shape} of b, got {a.shape}")
    state = b.shape[:-2] + b.shape[-1:]
    if h0 is not None and h0.shape != state:
        raise ValueError(
            f"linear_recurrence: h0 must have shape {state} for b {b.shape}, got {h0.shape}"
        )


def _at(x: Array, start: int | None, stop: int | None = None, stride: int = 1) -> Array:
    return x[..., start:stop:stride, :]


def _scan(a: Array, b: Array, *, reverse: bool) -> Array:
    """Runs h_t = a_t h_{t−1} + b_t from 0, in logarithmic depth.

    A pair of steps composes to one step h ↦ a₂(a₁h + b₁) + b₂. So a recurrence of half the length
    gives h after the second step of each pair, and one more step gives it after the first. This is
    the algorithm of `jax.lax.associative_scan`, which in reverse copies all arrays to flip them.
    """
    steps = b.shape[-2]
    if steps < 2:
        return b
    i, j = (1 - steps % 2, steps % 2) if reverse else (0, 1)  # where first and second steps start
    a1, b1, a2, b2 = _at(a, i, None, 2), _at(b, i, None, 2), _at(a, j, None, 2), _at(b, j, None, 2)
    pairs, others = a2.shape[-2], a1.shape[-2] - 1  # others: first steps that follow a pair
    in_pairs = (steps % 2, None) if reverse else (0, pairs)
    compose = lambda y: a2 * _at(y, *in_pairs)
    h2 = _scan(compose(a1), compose(b1) + b2, reverse=reverse)
    if reverse:
        rest = _at(a1, 0, others) * _at(h2, pairs - others) + _at(b1, 0, others)
        h1 = jnp.concatenate([rest, _at(b1, others)], -2)
    else:
        rest = _at(a1, 1) * _at(h2, 0, others) + _at(b1, 1)
        h1 = jnp.concatenate([_at(b1, 0, 1), rest], -2)

    def spread(h, start):
        """Places h at every second step from `start` on, with 0 in between."""
        stop = steps - start - (2 * h.shape[-2] - 1)
        widths = [(0, 0, 0)] * (h.ndim - 2) + [(start, stop, 1), (0, 0, 0)]
        return lax.pad(h, jnp.zeros((), h.dtype), widths)

    return spread(h1, i) + spread(h2, j)


def _shift(x: Array, first: Array, *, reverse: bool) -> Array:
    """Shifts x by one step and inserts `first`, which has one step."""
    return jnp.concatenate([_at(x, 1), first] if reverse else [first, _at(x, 0, -1)], -2)


def _first(x: Array, *, reverse: bool) -> Array:
    """The step where the recurrence begins; empty if x has no steps."""
    return _at(x, -1) if reverse else _at(x, 0, 1)


@rule
def linear_recurrence(
    a: Num[AnyArray, "*batch T C"],
    b: Num[AnyArray, "*batch T C"],
    h0: Num[AnyArray, "*batch C"] | None = None,
    *,
    reverse: bool = False,
) -> Num[Array, "*batch T C"]:
    """Elementwise linear recurrence, computed in logarithmic depth.

        h_t = a_t ⊙ h_{t−1} + b_t,   t = 1 … T

    In reverse, t runs from T down to 1, with h_{t+1} in place of h_{t−1}. A factor of 0 discards
    all earlier steps. Factors are multiplied with each other, so their products must not overflow.
    Steps run in parallel if the device has lanes for them; on two CPU cores, a `jax.lax.scan` over
    the steps is faster.

    Args:
      a: a_1 … a_T, shape (..., T, C), usually with |a| ≤ 1.
      b: b_1 … b_T, shape (..., T, C).
      h0: h_0, shape (..., C); None means 0, and then the first factor has no influence.
      reverse: Whether to run from the last step to the first. Static.

    Returns:
      h_1 … h_T, shape (..., T, C), of the dtype that the arguments promote to.

    Raises:
      ValueError: If the shapes do not fit.

    Reference: Blelloch, 1990, Prefix sums and their applications, section 1.4.

    >>> half, b = jnp.full((3, 1), 0.5), jnp.array([[1.0], [0.0], [2.0]])
    >>> linear_recurrence(half, b).ravel().tolist()
    [1.0, 0.5, 2.25]
    """
    return linear_recurrence_fwd(a, b, h0, reverse=reverse)[0]


def linear_recurrence_fwd(a, b, h0, *, reverse):
    """Saves the output h."""
    _check(a, b, h0)
    dtype = jnp.result_type(*(x for x in (a, b, h0) if x is not None))
    wide = wide_dtype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype
    widen = lambda x: x.astype(wide)
    a_wide, b_wide = widen(a), widen(b)
    if h0 is not None and b.shape[-2] > 0:
        begin = lambda x: _first(x, reverse=reverse)
        first = begin(a_wide) * widen(h0)[..., None, :] + begin(b_wide)
        rest = [_at(b_wide, 0, -1), first] if reverse else [first, _at(b_wide, 1)]
        b_wide = jnp.concatenate(rest, -2)
    h = _scan(a_wide, b_wide, reverse=reverse).astype(dtype)
    return h, (a, jnp.empty(0, b.dtype), h0, h)  # only the dtype of b is needed


def linear_recurrence_bwd(residuals, dh, *, reverse):
    """The cotangents of a, b and h0.

    Let g_t be the total cotangent of h_t. h_t influences the output and h_{t+1}, so

        g_t = dh_t + u_{t+1},   u_t = a_t ⊙ g_t = a_t ⊙ u_{t+1} + a_t ⊙ dh_t,   u_{T+1} = 0,  (1)

    which is the same kind of recurrence in the other direction. From h_t = a_t ⊙ h_{t−1} + b_t,

        da_t = g_t ⊙ h_{t−1},   db_t = g_t,   dh_0 = u_1.                                     (2)

    Autodiff would save the factors of all products, at each level of the algorithm.
    """
    a, b, h0, h = residuals
    if a.shape[-2] == 0:
        return a, cast_cotangent(dh, b), None if h0 is None else jnp.zeros_like(h0)
    wide = wide_dtype(h.dtype)
    g, a_wide = dh.astype(wide), a.astype(wide)
    u = _scan(a_wide, a_wide * g, reverse=not reverse)  # (1)
    zero = jnp.zeros_like(_first(u, reverse=reverse))
    g = g + _shift(u, zero, reverse=not reverse)
    before = zero if h0 is None else batch_like(h0, h).astype(wide)[..., None, :]
    da = g * _shift(h.astype(wide), before, reverse=reverse)  # (2)
    dh0 = None if h0 is None else cast_cotangent(_first(u, reverse=reverse).squeeze(-2), h0)
    return cast_cotangent(da, a), cast_cotangent(g, b), dh0


linear_recurrence.defvjp(linear_recurrence_fwd, linear_recurrence_bwd)
