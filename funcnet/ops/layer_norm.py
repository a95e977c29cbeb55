"""Layer, RMS and group normalization: each example is normalized by its own statistics."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from funcnet._arrays import cast_each, explicit_sharding, sum_products, widen
from funcnet._barrier import CPU_AND_GPU, barrier
from funcnet.ops._masks import keep, mask_of, mean_of, or_one, share
from funcnet.ops._moments import check_norm, moments, or_ones, row, scaled
from funcnet.ops._types import AnyArray, Number, Real
from funcnet.rule import rule


def _check(f: str, x: Array, eps: float, **vectors: Array | None) -> None:
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError(f"{f}: x must have shape (..., c) with c of at least 1, got {x.shape}")
    check_norm(f, x, eps, **vectors)


def _mean(a: Array) -> Array:
    return a.mean(-1, keepdims=True)


def _products(rows: Array, vector: Array, like: Array) -> Array:
    """The product of each row with a vector, shape (..., 1), sharded like `like`.

    XLA:CPU sums a matrix product as it reads the arrays; it would store γ ⊙ dy before summing it.
    """
    column, highest = vector[:, None], jax.lax.Precision.HIGHEST
    return jnp.matmul(rows, column, precision=highest, out_sharding=explicit_sharding(like))


@rule(real=("x", "scale", "bias"))
def layer_norm(
    x: Real[AnyArray, "*batch c"],
    scale: Real[AnyArray, "c"] | None = None,
    bias: Real[AnyArray, "c"] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    eps: Number = 1e-5,
) -> Float[Array, "*batch c"]:
    """Standardises each row with its own statistics, then scales and shifts it.

        μ = ⟨x⟩,   σ² = ⟨(x − μ)²⟩,   z = (x − μ) / √(σ² + ε),   y = γ ⊙ z + β

    ⟨·⟩ is the mean over the last axis, and the variance is the biased one. Rows whose mean is far
    above their standard deviation keep full accuracy.

    Args:
      x: Shape (..., c).
      scale: γ, shape (c,); None for no scale.
      bias: β, shape (c,); None for no bias.
      where: Booleans that broadcast to the shape of x, true for what counts. The means are over
        what counts. Nothing depends on the other elements, even if they are nan, and y = 0 there.
      eps: ε ≥ 0, keeps z finite where a row is constant. It may be traced.

    Returns:
      y with the shape and dtype of x, or the default float for integers.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If the shapes do not fit, there are no features, or eps is negative.

    Reference: Ba, Kiros & Hinton, Layer normalization, 2016, equations 3 and 4, arXiv:1607.06450.

    >>> layer_norm(jnp.array([1.0, 3.0]), jnp.ones(2), jnp.zeros(2), eps=0.0).tolist()
    [-1.0, 1.0]
    """
    return layer_norm_fwd(x, scale, bias, where, eps=eps)[0]


def layer_norm_fwd(x, scale, bias, where=None, *, eps):
    """Saves x, μ (in two parts) and r, three numbers per row, and γ."""
    _check("layer_norm", x, eps, scale=scale, bias=bias)
    mask = mask_of("layer_norm", where, x)
    wide = keep(mask, widen(x))
    mean, delta, var = moments(wide, mean_of(mask, wide, _mean))
    r = jax.lax.rsqrt(or_one(mask, wide, _mean, var + eps))
    z = (wide - mean - delta) * r
    y = scaled(z, scale, bias)
    return keep(mask, y).astype(x.dtype), (x, mean, delta, r, scale, bias, where)


def layer_norm_bwd(residuals, dy, *, eps):
    """The cotangents of x, scale and bias.

    From y = γz + β directly, with sums over all rows,

        dγ = Σ dy ⊙ z,   dβ = Σ dy.                                                           (1)

    With dz = γ ⊙ dy, u = x − μ and r = 1/√(σ² + ε), so that z = u r, and ∂r/∂σ² = −r³/2,
    ∂σ²/∂u = 2u/c,

        du = r dz − u r³ ⟨dz ⊙ u⟩ = r (dz − z ⟨dz ⊙ z⟩),

    and dx = du − ⟨du⟩, where ⟨z⟩ = 0. The two means are products with γ:

        ⟨dz⟩ = dy · γ / c,   ⟨dz ⊙ z⟩ = (dy ⊙ z) · γ / c,                                     (2)
        dx = r (dz − ⟨dz⟩ − z ⟨dz ⊙ z⟩).                                                      (3)

    Both means come from one pass over the data. Autodiff computes ⟨dz⟩ in a separate pass after
    the rest: that rounds a little less for a few features, and reads all rows again. What a mask
    excludes is not in c, and has z = dy = 0. Without a scale, γ = 1.
    """
    # Without a barrier XLA would reuse x − μ from fwd, and keep it in memory as well as x.
    x, mean, delta, r, scale, bias, where = barrier(residuals, on=CPU_AND_GPU)
    rows, mask = tuple(range(x.ndim - 1)), mask_of("layer_norm", where, x)
    g, gamma = keep(mask, widen(dy)), or_ones(scale, x)
    c = x.shape[-1] * share(mask, g, _mean)
    z = keep(mask, (widen(x) - mean - delta) * r)
    gz = g * z
    dscale = gz.sum(rows)  # (1)
    dbias = g.sum(rows)
    mean_dz = _products(g, gamma, r) / c  # (2)
    mean_dz_z = _products(gz, gamma, r) / c
    dx = keep(mask, r * (row(gamma, x.ndim) * g - mean_dz - z * mean_dz_z))  # (3)
    return *cast_each((dx, dscale, dbias), (x, scale, bias)), None


layer_norm.defvjp(layer_norm_fwd, layer_norm_bwd)


@rule(real=("x", "scale"))
def rms_norm(
    x: Real[AnyArray, "*batch c"],
    scale: Real[AnyArray, "c"] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    eps: Number = 1e-6,
) -> Float[Array, "*batch c"]:
    """Divides each row by its root mean square, then scales it.

        z = x / √(⟨x²⟩ + ε),   y = γ ⊙ z

    Args:
      x: Shape (..., c).
      scale: γ, shape (c,); None for no scale.
      where: Booleans that broadcast to the shape of x, true for what counts. The means are over
        what counts. Nothing depends on the other elements, even if they are nan, and y = 0 there.
      eps: ε ≥ 0, keeps z finite where a row is 0. It may be traced.

    Returns:
      y with the shape and dtype of x, or the default float for integers.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If the shapes do not fit, there are no features, or eps is negative.

    Reference: Zhang & Sennrich, Root mean square layer normalization, 2019, equation 4,
    arXiv:1910.07467.

    >>> rms_norm(jnp.array([3.0, 3.0]), jnp.ones(2), eps=0.0).tolist()
    [1.0, 1.0]
    """
    return rms_norm_fwd(x, scale, where, eps=eps)[0]


def rms_norm_fwd(x, scale, where=None, *, eps):
    """Saves x, r, one number per row, and γ."""
    _check("rms_norm", x, eps, scale=scale)
    mask = mask_of("rms_norm", where, x)
    wide = keep(mask, widen(x))
    square = mean_of(mask, wide, _mean)(wide**2)
    r = jax.lax.rsqrt(or_one(mask, wide, _mean, square + eps))
    y = scaled(wide * r, scale, None).astype(x.dtype)
    return keep(mask, y), (x, r, scale, where)


def rms_norm_bwd(residuals, dy, *, eps):
    """The cotangents of x and scale.

    Let dz = γ ⊙ dy and z = x r, where ∂r/∂x = −r³ x/c. With sums over all rows,

        dγ = Σ dy ⊙ z,                                                                        (1)
        ⟨dz ⊙ z⟩ = (dy ⊙ z) · γ / c,                                                          (2)
        dx = r dz − x r³ ⟨dz ⊙ x⟩ = r (dz − z ⟨dz ⊙ z⟩).                                      (3)

    What a mask excludes is not in c, and has z = dy = 0. Without a scale, γ = 1.
    """
    x, r, scale, where = barrier(residuals)  # see layer_norm_bwd
    mask = mask_of("rms_norm", where, x)
    g, gamma = keep(mask, widen(dy)), or_ones(scale, x)
    c = x.shape[-1] * share(mask, g, _mean)
    z = keep(mask, widen(x)) * r
    gz = g * z
    dscale = gz.sum(tuple(range(x.ndim - 1)))  # (1)
    mean_dz_z = _products(gz, gamma, r) / c  # (2)
    dx = keep(mask, r * (row(gamma, x.ndim) * g - z * mean_dz_z))  # (3)
    return *cast_each((dx, dscale), (x, scale)), None


rms_norm.defvjp(rms_norm_fwd, rms_norm_bwd)


@rule(real=("x", "scale", "bias"))
def group_norm(
    x: Real[AnyArray, "n *spatial c"],
    scale: Real[AnyArray, "c"] | None = None,
    bias: Real[AnyArray, "c"] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    groups: int,
    eps: Number = 1e-5,
) -> Float[Array, "n *spatial c"]:
    """Standardises the channels of each example in groups, then scales and shifts each channel.

        z = (x − μ) / √(σ² + ε),   y = γ ⊙ z + β

    μ and σ² are computed per example and group, over all positions and the c/G channels of the
    group. With one group this is layer normalization over positions and channels; with c groups it
    is instance normalization.

    Args:
      x: Shape (n, ..., c): n examples, any number of spatial axes, c channels.
      scale: γ, shape (c,); None for no scale.
      bias: β, shape (c,); None for no bias.
      where: Booleans that broadcast to the shape of x, true for what counts. The means are over
        what counts. Nothing depends on the other elements, even if they are nan, and y = 0 there.
      groups: G, which must divide c. Static.
      eps: ε ≥ 0, keeps z finite where a group is constant. It may be traced.

    Returns:
      y with the shape and dtype of x, or the default float for integers.

    Raises:
      TypeError: If where is not boolean.
      ValueError: If the shapes do not fit, an axis other than n is empty, groups does not divide c,
        or eps is negative.

    Reference: Wu & He, Group normalization, 2018, equations 1, 2 and 7, arXiv:1803.08494.

    >>> x = jnp.array([[1.0, 3.0, 10.0, 14.0]])
    >>> group_norm(x, jnp.ones(4), jnp.zeros(4), groups=2, eps=0.0).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """
    return group_norm_fwd(x, scale, bias, where, groups=groups, eps=eps)[0]


def _over_groups(a: Array, groups: int) -> Array:
    """Averages (n, 1, …, 1, c) over the channels of each group; the shape stays."""
    split = a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups)
    return jnp.broadcast_to(split.mean(-1, keepdims=True), split.shape).reshape(a.shape)


def _average(a: Array, groups: int) -> Array:
    """Averages (n, ..., c) over the positions and channels of each group, to (n, 1, …, 1, c)."""
    # The mean over positions comes first: arrays as large as x are never split into groups, which
    # would make their last axis short.
    return _over_groups(a.mean(tuple(range(1, a.ndim - 1)), keepdims=True), groups)


def _of_channels(a: Array, like: Array) -> Array:
    """Repeats (n, 1, …, 1, groups) for the channels of each group."""
    return jnp.repeat(a, like.shape[-1] // a.shape[-1], -1)


def group_norm_fwd(x, scale, bias, where=None, *, groups, eps):
    """Saves x, μ (in two parts) and r, three numbers per example and group, and γ."""
    _check("group_norm", x, eps, scale=scale, bias=bias)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(
            f"group_norm: x must have shape (n, ..., c) with no empty axis but n, got {x.shape}"
        )
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"group_norm: groups must divide {x.shape[-1]} channels, got {groups}")
    mask = mask_of("group_norm", where, x)
    average = lambda a: _average(a, groups)
    wide = keep(mask, widen(x))
    mean, delta, var = moments(wide, mean_of(mask, wide, average))
    r = jax.lax.rsqrt(or_one(mask, wide, average, var + eps))
    z = (wide - mean - delta) * r
    y = scaled(z, scale, bias)
    saved = (a[..., :: x.shape[-1] // groups] for a in (mean, delta, r))
    return keep(mask, y).astype(x.dtype), (x, *saved, scale, bias, where)


def group_norm_bwd(residuals, dy, *, groups, eps):
    """The cotangents of x, scale and bias, as in `layer_norm` but with other means.

    With sums over the positions, per example and channel,

        S = Σ dy,   T = Σ dy ⊙ z,                                                             (1)

    and sums of these over the examples,

        dγ = Σ T,   dβ = Σ S.                                                                 (2)

    γ is the same at all positions. Let dz = γ ⊙ dy, let ⟨·⟩ be the mean over the m elements of a
    group (positions times channels), and let Σ be the sum over its channels. Then

        ⟨dz⟩ = Σ γ S / m,   ⟨dz ⊙ z⟩ = Σ γ T / m,                                             (3)
        dx = r (dz − ⟨dz⟩ − z ⟨dz ⊙ z⟩).                                                      (4)

    What a mask excludes is not in m, and has z = dy = 0. Without a scale, γ = 1.
    """
    # See layer_norm_bwd.
    x, *saved, scale, bias, where = barrier(residuals, on=CPU_AND_GPU)
    mean, delta, r = (_of_channels(a, x) for a in saved)
    places, mask = tuple(range(1, x.ndim - 1)), mask_of("group_norm", where, x)
    g, gamma = keep(mask, widen(dy)), row(or_ones(scale, x), x.ndim)
    z = keep(mask, (widen(x) - mean - delta) * r)
    s = g.sum(places, keepdims=True)  # (1)
    t = jnp.expand_dims(sum_products(g, z, places), places)
    others = tuple(range(x.ndim - 1))
    dscale = t.sum(others).reshape(x.shape[-1:])  # (2)
    dbias = s.sum(others).reshape(x.shape[-1:])
    # m is this times the channels of a group.
    count = math.prod(x.shape[1:-1]) * share(mask, g, lambda a: _average(a, groups))
    mean_dz = _over_groups(gamma * s, groups) / count  # (3)
    mean_dz_z = _over_groups(gamma * t, groups) / count
    dx = keep(mask, r * (gamma * g - mean_dz - z * mean_dz_z))  # (4)
    return *cast_each((dx, dscale, dbias), (x, scale, bias)), None


group_norm.defvjp(group_norm_fwd, group_norm_bwd)
