"""The affine layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from funcnet._arrays import cast_cotangent, explicit_sharding
from funcnet.ops._types import AnyArray, Num
from funcnet.rule import rule


@rule
def affine(
    x: Num[AnyArray, "*batch n"],
    w: Num[AnyArray, "n m"],
    b: Num[AnyArray, "m"] | None = None,
) -> Num[Array, "*batch m"]:
    """Affine map of the last axis: a matrix product plus a bias.

        Y = X · W + 1 b,   y_ij = Σ_α x_iα w_αj + b_j

    Args:
      x: X, shape (..., n); all leading axes are batch axes.
      w: W, shape (n, m).
      b: b, shape (m,); None for no bias.

    Returns:
      Y, shape (..., m), of the dtype that x, w and b promote to.

    Raises:
      ValueError: If the shapes do not fit.

    Reference: Source A 2.4.1 (one example) and 2.4.2 (a batch).

    >>> affine(jnp.array([1.0, 2.0]), jnp.array([[3.0], [4.0]]), jnp.array([5.0])).tolist()
    [16.0]
    """
    _check_affine(x, w, b)
    y = jnp.matmul(x, w)
    return y if b is None else y + jnp.expand_dims(b, tuple(range(y.ndim - 1)))


def _check_affine(x: AnyArray, w: AnyArray, b: AnyArray | None) -> None:
    if w.ndim != 2:
        raise ValueError(f"affine: w must have shape (n, m), got {w.shape}")
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"affine: x must have shape (..., {w.shape[0]}) for w {w.shape}, got {x.shape}"
        )
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"affine: b must have shape {w.shape[1:]} for w {w.shape}, got {b.shape}")


def affine_fwd(x, w, b):
    """Saves the arguments: nothing is copied."""
    return affine.__wrapped__(x, w, b), (x, w, b)


def affine_bwd(residuals, dy):
    """The cotangents of x, w and b.

    For scalars, y = wx + b gives dx = w dy, dw = x dy and db = dy. In general,
    ∂y_ij/∂w_pq = x_ip if j = q, ∂y_ij/∂x_pq = w_qj if i = p, ∂y_ij/∂b_q = 1 if j = q, else 0, so

        dw_pq = Σ_i dy_iq x_ip,     dW = Xᵀ · dY,                                             (1)
        dx_pq = Σ_j dy_pj w_qj,     dX = dY · Wᵀ,                                             (2)
        db_q  = Σ_i dy_iq,          the sum over all batch axes.                              (3)

    Reference: Source A 3.3.3 (numbers) and 3.3.4 (matrices).
    """
    x, w, b = residuals
    batch = tuple(range(x.ndim - 1))
    dw = _contract(x, dy, batch, batch, like=w)  # (1)
    dx = _contract(dy, w, (dy.ndim - 1,), (1,), like=x)  # (2)
    db = None if b is None else cast_cotangent(dy.sum(batch), b)  # (3)
    return dx, dw, db


def _contract(
    left: Array, right: Array, i: tuple[int, ...], j: tuple[int, ...], *, like: Array
) -> Array:
    """Contracts axes i of left with j of right; the result has dtype and sharding of `like`."""
    dtype = jnp.result_type(left, right)
    product = jax.lax.dot_general(
        left.astype(dtype),
        right.astype(dtype),
        ((i, j), ((), ())),
        out_sharding=explicit_sharding(like, left, right),
    )
    return cast_cotangent(product, like)


affine.defvjp(affine_fwd, affine_bwd)
