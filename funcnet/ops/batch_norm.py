"""Batch Normalization."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from funcnet._arrays import cast_each, widen
from funcnet.ops._masks import keep, mask_of, mean_of, or_one, share
from funcnet.ops._moments import check_norm, moments, or_ones, row, scaled
from funcnet.ops._types import AnyArray, Number, Real
from funcnet.rule import rule


def _check_columns(f: str, x: Array, eps: float, **vectors: Array | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"{f}: x must have shape (..., c) with a batch axis, got {x.shape}")
    check_norm(f, x, eps, **vectors)


@rule(real=("x", "scale", "bias"))
def batch_norm(
    x: Real[AnyArray, "*batch c"],
    scale: Real[AnyArray, "c"] | None = None,
    bias: Real[AnyArray, "c"] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    eps: Number = 1e-5,
) -> tuple[Float[Array, "*batch c"], Float[Array, "c"], Float[Array, "c"]]:
    """Standardises each column with the statistics of this batch, then scales and shifts it.

        μ = ⟨x⟩,   σ² = ⟨(x − μ)²⟩,   z = (x − μ) / √(σ² + ε),   y = γ ⊙ z + β

    ⟨·⟩ is the mean over all axes but the last, the batch of B examples. The variance is the biased
    one (1/B). With ε = 0 this is the source's formula; a constant column then gives nan. Data whose
    mean is far above their standard deviation keep full accuracy. For an empty batch, or a column
    of which nothing counts, μ and σ² are 0.

    Args:
      x: X, shape (..., c) with at least one batch axis.
      scale: γ, shape (c,); None for no scale.
      bias: β, shape (c,); None for no bias.
      where: Booleans that broadcast to the shape of x, true for what counts. The means are over
        what counts. Nothing depends on the other elements, even if they are nan, and y = 0 there.
      eps: ε ≥ 0, keeps z finite where a column is constant. It may be traced.

    Returns:
      y with the shape and dtype of x, or the default float for integers; μ and σ², shape (c,), in
      float32 at least. All three are differentiable.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If the shapes do not fit, or eps is negative.

    Reference: Source A 4.2.1.1; Ioffe & Szegedy, 2015, algorithm 1, arXiv:1502.03167.

    >>> y, mean, var = batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1), eps=0.0)
    >>> y.tolist(), mean.tolist(), var.tolist()
    ([[-1.0], [1.0]], [2.0], [1.0])
    """
    return batch_norm_fwd(x, scale, bias, where, eps=eps)[0]


def batch_norm_fwd(x, scale, bias, where=None, *, eps):
    """Saves x, μ (in two parts), s = √(σ² + ε), γ and β: five numbers per column besides x."""
    _check_columns("batch_norm", x, eps, scale=scale, bias=bias)
    batch = tuple(range(x.ndim - 1))
    average = jnp.sum if 0 in x.shape[:-1] else jnp.mean
    columns = lambda a: average(a, batch, keepdims=True)
    mask = mask_of("batch_norm", where, x)
    wide = keep(mask, widen(x))
    mean, delta, var = moments(wide, mean_of(mask, wide, columns))
    s = jnp.sqrt(or_one(mask, wide, columns, var + eps))
    gamma, beta = row(or_ones(scale, x), x.ndim), 0 if bias is None else row(widen(bias), x.ndim)
    # The division comes last: XLA computes it once per column, but a product once per element.
    a, k = gamma / s, (beta * s - gamma * delta) / s
    y = keep(mask, a * (wide - mean) + k).astype(x.dtype)
    saved = x, mean, delta, s, scale, bias, where
    return (y, (mean + delta).squeeze(batch), var.squeeze(batch)), saved


def batch_norm_bwd(residuals, douts, *, eps):
    """The cotangents of x, scale and bias.

    As in `moments`, μ = μ₀ + δ. Let u = x − μ₀, whose mean is δ, s = √(σ² + ε) and a = γ/s, so that
    z = (u − δ)/s and y = a (u − δ) + β. With sums over the batch,

        dβ = Σ dy,   dγ = Σ dy ⊙ z = (Σ dy ⊙ u − δ dβ)/s.                                     (1)

    y depends on x through u − δ, and through σ² in a; the outputs μ and σ² depend on x too. With
    ∂a/∂σ² = −a/(2s²) and ∂σ²/∂u = 2(u − δ)/B, the total cotangent of u − δ is

        a dy + (dσ² − Σ dy ⊙ (u − δ) a/(2s²)) 2(u − δ)/B = a dy + b (u − δ),
        b = p/(B s),   p = 2 s dσ² − a dγ.                                                    (2)

    Through δ, its mean a ⟨dy⟩ = γ dβ/(B s) is subtracted, and μ adds dμ/B. Hence

        dx = a dy + b u + c,   c = (s dμ − γ dβ − p δ)/(B s).                                 (3)

    If only y is used, this is the last equation of the source, dx = (γ/s)(dy − (z dγ + dβ)/B), in
    which σ is the standard deviation; in some places the source prints σ for σ².

    What a mask excludes is not in B, and has u = dy = 0. Without a scale, γ = 1.

    Reference: Source A 4.2.1.2.
    """
    x, mean, delta, s, scale, bias, where = residuals
    if 0 in x.shape[:-1]:
        return *jax.tree.map(jnp.zeros_like, (x, scale, bias)), None
    (dy, dmean, dvar), mask = douts, mask_of("batch_norm", where, x)
    batch = tuple(range(x.ndim - 1))
    gamma, dmean, dvar = (row(v, x.ndim) for v in (or_ones(scale, x), dmean, dvar))
    a, g = gamma / s, keep(mask, widen(dy))
    count = math.prod(x.shape[:-1]) * share(mask, g, lambda a: a.mean(batch, keepdims=True))
    dbias, u = g.sum(batch, keepdims=True), keep(mask, widen(x) - mean)
    # This is always dy ⊙ u, written so that XLA:CPU does not fuse the product into the sum:
    # otherwise it would keep u from the forward pass, in addition to x, only for the sum.
    product = jnp.where(dbias == dbias, g * u, dbias)
    dscale = (product.sum(batch, keepdims=True) - delta * dbias) / s  # (1)
    p = 2 * s * dvar - a * dscale
    b = p / (count * s)  # (2)
    c = (s * dmean - gamma * dbias - p * delta) / (count * s)
    dx = keep(mask, a * g + (b * u + c))  # (3)
    cotangents = dx, dscale.squeeze(batch), dbias.squeeze(batch)
    return *cast_each(cotangents, (x, scale, bias)), None


batch_norm.defvjp(batch_norm_fwd, batch_norm_bwd)


@rule(real=("x", "scale", "bias", "mean", "var"))
def batch_norm_inference(
    x: Real[AnyArray, "*batch c"],
    scale: Real[AnyArray, "c"] | None,
    bias: Real[AnyArray, "c"] | None,
    mean: Real[AnyArray, "c"],
    var: Real[AnyArray, "c"],
    *,
    eps: Number = 1e-5,
) -> Float[Array, "*batch c"]:
    """Standardises each column with given statistics, then scales and shifts it.

        z = (x − μ) / √(σ² + ε),   y = γ ⊙ z + β

    Args:
      x: X, shape (..., c) with at least one batch axis.
      scale: γ, shape (c,); None for no scale.
      bias: β, shape (c,); None for no bias.
      mean: μ, shape (c,): the running mean of training.
      var: σ² ≥ 0, shape (c,): the running variance.
      eps: ε ≥ 0, the same as in training. It may be traced.

    Returns:
      y with the shape and dtype of x.

    Raises:
      ValueError: If the shapes do not fit, or eps is negative.

    Reference: Source A 4.2.1.1, at inference.

    >>> one = jnp.ones(1)
    >>> batch_norm_inference(jnp.array([[3.0]]), one, 0 * one, one, 4 * one, eps=0.0).tolist()
    [[1.0]]
    """
    return batch_norm_inference_fwd(x, scale, bias, mean, var, eps=eps)[0]


def batch_norm_inference_fwd(x, scale, bias, mean, var, *, eps):
    """Saves the arguments."""
    _check_columns("batch_norm_inference", x, eps, scale=scale, bias=bias, mean=mean, var=var)
    arguments = x, scale, bias, mean, var
    mean, var = (row(widen(v), x.ndim) for v in (mean, var))
    z = (widen(x) - mean) * jax.lax.rsqrt(var + eps)
    return scaled(z, scale, bias).astype(x.dtype), arguments


def batch_norm_inference_bwd(residuals, dy, *, eps):
    """The cotangents of all five arguments.

    Let r = 1/√(σ² + ε) and z = (x − μ) r, so that ∂z/∂μ = −r and ∂z/∂σ² = −z r²/2. With sums over
    the batch,

        dx = γ r dy,   dγ = Σ dy ⊙ z,   dβ = Σ dy,                                            (1)
        dμ = −γ r Σ dy = −γ r dβ,   dσ² = −(r²/2) γ Σ dy ⊙ z = −(r²/2) γ dγ.                  (2)

    Without a scale, γ = 1.
    """
    x, scale, _, mean, var = residuals
    batch = tuple(range(x.ndim - 1))
    g, gamma = widen(dy), or_ones(scale, x)
    r = jax.lax.rsqrt(widen(var) + eps)
    z = (widen(x) - row(widen(mean), x.ndim)) * row(r, x.ndim)
    dx = row(gamma * r, x.ndim) * g  # (1)
    dscale = (g * z).sum(batch)
    dbias = g.sum(batch)
    dmean = -gamma * r * dbias  # (2)
    dvar = -(r**2) / 2 * gamma * dscale
    return cast_each((dx, dscale, dbias, dmean, dvar), residuals)


batch_norm_inference.defvjp(batch_norm_inference_fwd, batch_norm_inference_bwd)
