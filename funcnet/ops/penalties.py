"""Penalties on the size of the parameters, to be added to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from funcnet._arguments import check_real
from funcnet.ops._types import Real
from funcnet.rule import rule


def l1_gradient(p: Array, rate: Array) -> Array:
    """The gradient of the L1 penalty: ∂/∂p λ Σ|p| = λ sign(p), where sign(0) = 0."""
    return rate * jnp.sign(p)


def l2_gradient(p: Array, rate: Array) -> Array:
    """The gradient of the L2 penalty: ∂/∂p (λ/2) Σp² = λ p."""
    return rate * p


def elastic_net_gradient(p: Array, l1_rate: Array, l2_rate: Array) -> Array:
    """The gradient of the elastic net: ∂/∂p (λ₁ Σ|p| + (λ₂/2) Σp²) = λ₁ sign(p) + λ₂ p."""
    return l1_gradient(p, l1_rate) + l2_gradient(p, l2_rate)


@rule
def l1_penalty(params: Any, rate: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """The L1 penalty (lasso): λ times the sum of the absolute values over all leaves.

        y = λ Σ|p|

    Its gradient λ sign(p) pulls each parameter towards 0 with the same strength, however small the
    parameter is, which makes the parameters sparse. The derivative at 0 is sign(0) = 0, both by the
    rule and by `autodiff` of this function; the derivative of `jnp.abs` is 1 there.

    Args:
      params: p, a pytree of real arrays of any shapes. Leaves without a floating dtype, such as
        integers, are ignored.
      rate: λ, a scalar.

    Returns:
      y, shape (). Its dtype, in which everything is computed, is the widest of float32 and the
      dtypes of the leaves.

    Raises:
      TypeError: If a leaf is complex.
      ValueError: If rate is not a scalar.

    Reference: Source A 4.3.1.

    >>> float(l1_penalty({"w": jnp.array([3.0, -1.0]), "b": jnp.array(0.0)}, 0.5))
    2.0
    """
    _check("l1_penalty", params, rate=rate)
    norm = _sum(_abs, params)
    return jnp.asarray(rate, norm.dtype) * norm


def l1_penalty_fwd(params, rate):
    """Saves p (without a copy), λ, and the scalar Σ|p|."""
    return l1_penalty.__wrapped__(params, rate), (params, rate, _sum(_abs, params))


def l1_penalty_bwd(residuals, dy):
    """The cotangents of params and rate.

    y is a sum over elements with |p|′ = sign(p), and y is linear in λ, so

        dp = dy λ sign(p)                                                                     (1)
        dλ = dy Σ|p|.                                                                         (2)
    """
    params, rate, norm = residuals
    dp = lambda p: l1_gradient(p, dy * jnp.asarray(rate, dy.dtype))  # (1)
    drate = dy * norm  # (2)
    return _cotangents(dp, params, dy), _cotangent(rate, drate)


l1_penalty.defvjp(l1_penalty_fwd, l1_penalty_bwd)


@rule
def l2_penalty(params: Any, rate: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """The L2 penalty (ridge): λ times half the sum of the squares over all leaves.

        y = (λ/2) Σp²

    Its gradient λp pulls each parameter towards 0 with a strength proportional to the parameter, so
    few parameters become exactly 0.

    Args:
      params: p, a pytree of real arrays of any shapes. Leaves without a floating dtype, such as
        integers, are ignored.
      rate: λ, a scalar.

    Returns:
      y, shape (). Its dtype, in which everything is computed, is the widest of float32 and the
      dtypes of the leaves.

    Raises:
      TypeError: If a leaf is complex.
      ValueError: If rate is not a scalar.

    Reference: Source A 4.3.2.

    >>> float(l2_penalty({"w": jnp.array([3.0, -1.0]), "b": jnp.array(0.0)}, 0.5))
    2.5
    """
    _check("l2_penalty", params, rate=rate)
    half = _sum(_square, params) / 2
    return jnp.asarray(rate, half.dtype) * half


def l2_penalty_fwd(params, rate):
    """Saves p (without a copy), λ, and the scalar ½Σp²."""
    return l2_penalty.__wrapped__(params, rate), (params, rate, _sum(_square, params) / 2)


def l2_penalty_bwd(residuals, dy):
    """The cotangents of params and rate.

    y is a sum over elements with (½p²)′ = p, and y is linear in λ, so

        dp = dy λ p                                                                           (1)
        dλ = dy ½Σp².                                                                         (2)
    """
    params, rate, half = residuals
    dp = lambda p: l2_gradient(p, dy * jnp.asarray(rate, dy.dtype))  # (1)
    drate = dy * half  # (2)
    return _cotangents(dp, params, dy), _cotangent(rate, drate)


l2_penalty.defvjp(l2_penalty_fwd, l2_penalty_bwd)


@rule
def elastic_net_penalty(
    params: Any,
    l1_rate: Real[ArrayLike, ""],
    l2_rate: Real[ArrayLike, ""],
) -> Float[Array, ""]:
    """The elastic net: the sum of the L1 and the L2 penalty.

        y = λ₁ Σ|p| + (λ₂/2) Σp²

    The rule is included for its derivation; it costs as much as autodiff.

    Args:
      params: p, a pytree of real arrays of any shapes. Leaves without a floating dtype, such as
        integers, are ignored.
      l1_rate: λ₁, a scalar.
      l2_rate: λ₂, a scalar.

    Returns:
      y, shape (). Its dtype, in which everything is computed, is the widest of float32 and the
      dtypes of the leaves.

    Raises:
      TypeError: If a leaf is complex.
      ValueError: If a rate is not a scalar.

    Reference: Source A 4.3.3.

    >>> float(elastic_net_penalty({"w": jnp.array([3.0, -1.0])}, 0.5, 0.5))
    4.5
    """
    _check("elastic_net_penalty", params, l1_rate=l1_rate, l2_rate=l2_rate)
    norm, half = _sum(_abs, params), _sum(_square, params) / 2
    return jnp.asarray(l1_rate, norm.dtype) * norm + jnp.asarray(l2_rate, half.dtype) * half


def elastic_net_penalty_fwd(params, l1_rate, l2_rate):
    """Saves p (without a copy), λ₁, λ₂, and the scalars Σ|p| and ½Σp²."""
    norm, half = _sum(_abs, params), _sum(_square, params) / 2
    y = elastic_net_penalty.__wrapped__(params, l1_rate, l2_rate)
    return y, (params, l1_rate, l2_rate, norm, half)


def elastic_net_penalty_bwd(residuals, dy):
    """The cotangents of params and both rates.

    y is the sum of the two penalties, so its cotangents are those of `l1_penalty` and `l2_penalty`:

        dp = dy λ₁ sign(p) + dy λ₂ p                                                          (1)
        dλ₁ = dy Σ|p|                                                                         (2)
        dλ₂ = dy ½Σp²                                                                         (3)
    """
    params, l1_rate, l2_rate, norm, half = residuals
    rates = [dy * jnp.asarray(rate, dy.dtype) for rate in (l1_rate, l2_rate)]
    dp = lambda p: elastic_net_gradient(p, *rates)  # (1)
    dl1_rate = dy * norm  # (2)
    dl2_rate = dy * half  # (3)
    return (
        _cotangents(dp, params, dy),
        _cotangent(l1_rate, dl1_rate),
        _cotangent(l2_rate, dl2_rate),
    )


elastic_net_penalty.defvjp(elastic_net_penalty_fwd, elastic_net_penalty_bwd)


@jax.custom_jvp
def _abs(p: Array) -> Array:
    """|p| with the derivative 0 at 0, whereas that of `jnp.abs` in JAX is 1."""
    return jnp.abs(p)


_abs.defjvps(lambda dp, _, p: dp * jnp.sign(p))


def _square(p: Array) -> Array:
    return p * p


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jax.typeof(x).dtype, jnp.floating)


def _sum(f: Callable[[Array], Array], params: Any) -> Array:
    """The sum Σf(p) over all floating leaves, in the widest of their dtypes and float32."""
    leaves = [jnp.asarray(p) for p in jax.tree.leaves(params) if _is_float(p)]
    dtypes = [jnp.dtype("float32"), *(p.dtype for p in leaves)]
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    return sum((f(p.astype(widest)).sum() for p in leaves), start=jnp.zeros((), widest))


def _cotangent(x: Any, dx: Array) -> Array | None:
    """`dx` in the dtype of x, or None if that dtype is not floating."""
    return dx.astype(jax.typeof(x).dtype) if _is_float(x) else None


def _cotangents(dp: Callable[[Array], Array], params: Any, dy: Array) -> Any:
    """The pytree of the cotangents dp(p), computed in the dtype of dy."""
    return jax.tree.map(
        lambda p: _cotangent(p, dp(jnp.asarray(p, dy.dtype))) if _is_float(p) else None, params
    )


def _check(function: str, params: Any, **rates: ArrayLike) -> None:
    if params is None:
        raise TypeError(f"{function}: params must be a tree of arrays, got None")
    for path, p in jax.tree.leaves_with_path(params):
        if jnp.issubdtype(jax.typeof(p).dtype, jnp.complexfloating):
            check_real(function, f"params{jax.tree_util.keystr(path)}", p)
    for argument, rate in rates.items():
        check_real(function, argument, rate)
        if jnp.shape(rate):
            raise ValueError(
                f"{function}: {argument} must be a scalar, got shape {jnp.shape(rate)}"
            )
