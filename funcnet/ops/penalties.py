"""Penalties on the size of parameters, as a term of the loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from funcnet._arguments import check_array, check_real
from funcnet.rule import rule


def l1_gradient(p: jax.Array, rate: jax.Array) -> jax.Array:
    """∂/∂p λ Σ|p| = λ sign(p), where sign(0) = 0."""
    return rate * jnp.sign(p)


def l2_gradient(p: jax.Array, rate: jax.Array) -> jax.Array:
    """∂/∂p (λ/2) Σp² = λ p."""
    return rate * p


def elastic_net_gradient(p: jax.Array, l1_rate: jax.Array, l2_rate: jax.Array) -> jax.Array:
    """∂/∂p (λ₁ Σ|p| + (λ₂/2) Σp²) = λ₁ sign(p) + λ₂ p."""
    return l1_gradient(p, l1_rate) + l2_gradient(p, l2_rate)


@rule
def l1_penalty(params: Any, rate: ArrayLike) -> jax.Array:
    """The L1 penalty (lasso): the sum of absolute values over all leaves of a tree.

        y = λ Σ|p|

    Its gradient λ sign(p) pulls each parameter to 0 by the same force, however small it is, which
    makes parameters sparse. The derivative at 0 is sign(0) = 0, by the rule and by `autodiff` of
    this function; that of `jnp.abs` is 1 there.

    Args:
      params: p, a tree of real arrays of any shapes. Leaves of other dtypes, such as integers, do
        not count.
      rate: λ, a scalar.

    Returns:
      y, shape (). All is computed in its dtype: the widest among float32 and those of the leaves.

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
    """Saves p, which is no copy, λ, and the scalar Σ|p|."""
    return l1_penalty.__wrapped__(params, rate), (params, rate, _sum(_abs, params))


def l1_penalty_bwd(residuals, dy):
    """The cotangents of params and rate.

    y is a sum over elements, |p|′ = sign(p), and y is linear in λ, so that

        dp = dy λ sign(p)                                                                     (1)
        dλ = dy Σ|p|.                                                                         (2)
    """
    params, rate, norm = residuals
    dp = lambda p: l1_gradient(p, dy * jnp.asarray(rate, dy.dtype))  # (1)
    drate = dy * norm  # (2)
    return _cotangents(dp, params, dy), _cotangent(rate, drate)


l1_penalty.defvjp(l1_penalty_fwd, l1_penalty_bwd)


@rule
def l2_penalty(params: Any, rate: ArrayLike) -> jax.Array:
    """The L2 penalty (ridge): half the sum of squares over all leaves of a tree.

        y = (λ/2) Σp²

    Its gradient λp pulls each parameter to 0 by a force that fades with it, so that few get there.

    Args:
      params: p, a tree of real arrays of any shapes. Leaves of other dtypes, such as integers, do
        not count.
      rate: λ, a scalar.

    Returns:
      y, shape (). All is computed in its dtype: the widest among float32 and those of the leaves.

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
    """Saves p, which is no copy, λ, and the scalar ½Σp²."""
    return l2_penalty.__wrapped__(params, rate), (params, rate, _sum(_square, params) / 2)


def l2_penalty_bwd(residuals, dy):
    """The cotangents of params and rate.

    y is a sum over elements, (½p²)′ = p, and y is linear in λ, so that

        dp = dy λ p                                                                           (1)
        dλ = dy ½Σp².                                                                         (2)
    """
    params, rate, half = residuals
    dp = lambda p: l2_gradient(p, dy * jnp.asarray(rate, dy.dtype))  # (1)
    drate = dy * half  # (2)
    return _cotangents(dp, params, dy), _cotangent(rate, drate)


l2_penalty.defvjp(l2_penalty_fwd, l2_penalty_bwd)


@rule
def elastic_net_penalty(params: Any, l1_rate: ArrayLike, l2_rate: ArrayLike) -> jax.Array:
    """The elastic net: the L1 and the L2 penalty added.

        y = λ₁ Σ|p| + (λ₂/2) Σp²

    The rule is there for its derivation, and costs what autodiff costs.

    Args:
      params: p, a tree of real arrays of any shapes. Leaves of other dtypes, such as integers, do
        not count.
      l1_rate: λ₁, a scalar.
      l2_rate: λ₂, a scalar.

    Returns:
      y, shape (). All is computed in its dtype: the widest among float32 and those of the leaves.

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
    """Saves p, which is no copy, λ₁, λ₂, and the scalars Σ|p| and ½Σp²."""
    norm, half = _sum(_abs, params), _sum(_square, params) / 2
    y = elastic_net_penalty.__wrapped__(params, l1_rate, l2_rate)
    return y, (params, l1_rate, l2_rate, norm, half)


def elastic_net_penalty_bwd(residuals, dy):
    """The cotangents of params and both rates: those of the two penalties, as y is their sum.

    dp = dy λ₁ sign(p) + dy λ₂ p                                                              (1)
    dλ₁ = dy Σ|p|                                                                             (2)
    dλ₂ = dy ½Σp²                                                                             (3)
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
def _abs(p: jax.Array) -> jax.Array:
    """|p| with the derivative 0 at 0, where JAX gives `jnp.abs` the derivative 1."""
    return jnp.abs(p)


_abs.defjvps(lambda dp, _, p: dp * jnp.sign(p))


def _square(p: jax.Array) -> jax.Array:
    return p * p


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jax.typeof(x).dtype, jnp.floating)


def _sum(f: Callable[[jax.Array], jax.Array], params: Any) -> jax.Array:
    """Σf(p) over all floating leaves, in the widest of their dtypes and float32."""
    leaves = [jnp.asarray(p) for p in jax.tree.leaves(params) if _is_float(p)]
    dtypes = [jnp.dtype("float32"), *(p.dtype for p in leaves)]
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    return sum((f(p.astype(widest)).sum() for p in leaves), start=jnp.zeros((), widest))


def _cotangent(x: Any, dx: jax.Array) -> jax.Array | None:
    """`dx` in the dtype of x, None if x is of no floating dtype."""
    return dx.astype(jax.typeof(x).dtype) if _is_float(x) else None


def _cotangents(dp: Callable[[jax.Array], jax.Array], params: Any, dy: jax.Array) -> Any:
    """The tree of dp(p), computed in the dtype of dy."""
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
        check_array(function, argument, rate)
        check_real(function, argument, rate)
        if jnp.shape(rate):
            raise ValueError(
                f"{function}: {argument} must be a scalar, got shape {jnp.shape(rate)}"
            )
