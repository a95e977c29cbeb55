"""Correct rules of normalizations and of functions that draw random numbers."""

from functools import partial

import jax
import jax.numpy as jnp
from check.right_entry import NO_HALF, WIDE, Right, accumulator, arrays, sizes, values
from jax import lax


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + eps) * scale + bias


def layer_norm_fwd(x, scale, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    rstd = lax.rsqrt((centred**2).mean(-1, keepdims=True) + eps)
    xhat = centred * rstd
    return xhat * scale + bias, (xhat, rstd, scale)


def layer_norm_bwd(eps, residuals, dy):
    xhat, rstd, scale = residuals
    batch = tuple(range(dy.ndim - 1))
    g = dy * scale
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    return dx, (dy * xhat).sum(batch), dy.sum(batch)


layer_norm.defvjp(layer_norm_fwd, layer_norm_bwd)


@jax.custom_vjp
def layer_norm_wide(x, scale):
    """Computes in float32 at least, and returns the dtype of x."""
    v = x.astype(accumulator(x))
    v = v - v.mean(-1, keepdims=True)
    v = v * lax.rsqrt((v * v).mean(-1, keepdims=True) + 1e-5)
    return (v * scale.astype(v.dtype)).astype(x.dtype)


def layer_norm_wide_fwd(x, scale):
    return layer_norm_wide(x, scale), (x, scale)


def layer_norm_wide_bwd(residuals, dy):
    x, scale = residuals
    v, s, g = (a.astype(accumulator(x)) for a in (x, scale, dy))
    centred = v - v.mean(-1, keepdims=True)
    rstd = lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    xhat = centred * rstd
    dscale = (g * xhat).sum(tuple(range(x.ndim - 1)))
    g = g * s
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    return dx.astype(x.dtype), dscale.astype(scale.dtype)


layer_norm_wide.defvjp(layer_norm_wide_fwd, layer_norm_wide_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x, scale, eps=1e-6):
    """Computes in float32 whatever the dtype of x, as most language models do."""
    v = x.astype(jnp.float32)
    v = v * lax.rsqrt(jnp.mean(v * v, -1, keepdims=True) + eps)
    return v.astype(x.dtype) * scale


def rms_norm_fwd(x, scale, eps):
    v = x.astype(jnp.float32)
    rstd = lax.rsqrt(jnp.mean(v * v, -1, keepdims=True) + eps)
    return (v * rstd).astype(x.dtype) * scale, (x, scale, rstd)


def rms_norm_bwd(eps, residuals, dy):
    x, scale, rstd = residuals
    xhat = x.astype(jnp.float32) * rstd
    g = (dy * scale).astype(jnp.float32)
    dx = rstd * (g - xhat * jnp.mean(g * xhat, -1, keepdims=True))
    dscale = (dy.astype(jnp.float32) * xhat).sum(tuple(range(x.ndim - 1)))
    return dx.astype(x.dtype), dscale.astype(scale.dtype)


rms_norm.defvjp(rms_norm_fwd, rms_norm_bwd)


@jax.custom_vjp
def batch_norm(x, scale, bias):
    """The normalized batch, and the mean and variance that update the running ones."""
    batch = tuple(range(x.ndim - 1))
    mean = x.mean(batch)
    var = ((x - mean) ** 2).mean(batch)
    return (x - mean) / jnp.sqrt(var + 1e-3) * scale + bias, mean, var


def batch_norm_fwd(x, scale, bias):
    batch = tuple(range(x.ndim - 1))
    mean = x.mean(batch)
    centred = x - mean
    var = (centred**2).mean(batch)
    rstd = 1 / jnp.sqrt(var + 1e-3)
    return (centred * rstd * scale + bias, mean, var), (centred, rstd, scale)


def batch_norm_bwd(residuals, cotangents):
    centred, rstd, scale = residuals
    dy, dmean, dvar = cotangents
    batch = tuple(range(dy.ndim - 1))
    n = dy.size // dy.shape[-1]
    xhat = centred * rstd
    dbias, dscale = dy.sum(batch), (dy * xhat).sum(batch)
    dx = scale * rstd * (dy - dbias / n - xhat * dscale / n)
    dx += dmean / n + 2 / n * dvar * centred
    return dx, dscale, dbias


batch_norm.defvjp(batch_norm_fwd, batch_norm_bwd)


def in_groups(x, groups):
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def group_norm(x, groups):
    """Normalizes (N, H, W, C) over H, W and each group of channels."""
    g = in_groups(x, groups)
    mean = g.mean((1, 2, 4), keepdims=True)
    var = g.var((1, 2, 4), keepdims=True)
    return ((g - mean) * lax.rsqrt(var + 1e-3)).reshape(x.shape)


def group_norm_fwd(x, groups):
    g = in_groups(x, groups)
    centred = g - g.mean((1, 2, 4), keepdims=True)
    rstd = lax.rsqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-3)
    xhat = centred * rstd
    return xhat.reshape(x.shape), (xhat, rstd)


def group_norm_bwd(groups, residuals, dy):
    xhat, rstd = residuals
    mean = partial(jnp.mean, axis=(1, 2, 4), keepdims=True)
    g = in_groups(dy, groups)
    return ((rstd * (g - mean(g) - xhat * mean(g * xhat))).reshape(dy.shape),)


group_norm.defvjp(group_norm_fwd, group_norm_bwd)


@jax.custom_vjp
def l2_normalize(x):
    return x * lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def l2_normalize_fwd(x):
    r = lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6)
    return x * r, (x * r, r)


def l2_normalize_bwd(residuals, dy):
    y, r = residuals
    return (r * (dy - y * (dy * y).sum(-1, keepdims=True)),)


l2_normalize.defvjp(l2_normalize_fwd, l2_normalize_bwd)


@jax.custom_vjp
def safe_norm(x):
    return jnp.sqrt((x * x).sum(-1))


def safe_norm_fwd(x):
    n = safe_norm(x)
    return n, (x, n)


def safe_norm_bwd(residuals, dn):
    x, n = residuals
    zero = n == 0  # where autodiff gives 0 / 0
    return ((jnp.where(zero, 0, dn) / jnp.where(zero, 1, n))[..., None] * x,)


safe_norm.defvjp(safe_norm_fwd, safe_norm_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardize(x, axes):
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-2)


def standardize_fwd(x, axes):
    std = jnp.sqrt(x.var(axes, keepdims=True) + 1e-2)
    y = (x - x.mean(axes, keepdims=True)) / std
    return y, (y, std)


def standardize_bwd(axes, residuals, dy):
    y, std = residuals
    mean = partial(jnp.mean, axis=axes, keepdims=True)
    return ((dy - mean(dy) - y * mean(dy * y)) / std,)


standardize.defvjp(standardize_fwd, standardize_bwd)


@jax.custom_vjp
def weight_norm(v, g):
    return g * v / jnp.sqrt((v * v).sum(0))


def weight_norm_fwd(v, g):
    n = jnp.sqrt((v * v).sum(0))
    return g * v / n, (v / n, g / n)


def weight_norm_bwd(residuals, dw):
    direction, ratio = residuals
    dg = (dw * direction).sum(0)
    return ratio * (dw - direction * dg), dg


weight_norm.defvjp(weight_norm_fwd, weight_norm_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x, key, rate=0.5):
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def dropout_fwd(x, key, rate):
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0), keep


def dropout_bwd(rate, keep, dy):
    return jnp.where(keep, dy / (1 - rate), 0), None


dropout.defvjp(dropout_fwd, dropout_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout_from_key(x, key, rate):
    return dropout.__wrapped__(x, key, rate)


def dropout_from_key_bwd(rate, key, dy):
    """Draws the mask again rather than keep it in memory."""
    return dropout.__wrapped__(dy, key, rate), None


dropout_from_key.defvjp(
    lambda x, key, rate: (dropout.__wrapped__(x, key, rate), key), dropout_from_key_bwd
)


@jax.custom_vjp
def gaussian_sample(mean, log_std, key):
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)


def gaussian_sample_fwd(mean, log_std, key):
    noise = jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
    return mean + noise, noise


gaussian_sample.defvjp(gaussian_sample_fwd, lambda noise, dy: (dy, dy * noise, None))


def draw_norm(n_params, regimes):
    def draw(rng, dtype):
        *batch, c = sizes(rng, int(rng.integers(1, 4)), 7)
        params = [values(rng, (c,), dtype, "unit positive") for _ in range(n_params)]
        return (values(rng, (*batch, c), dtype, regimes), *params), {}

    return draw


def draw_groups(rng, dtype):
    n, h, w, groups, c = sizes(rng, 5, 3)
    return (values(rng, (n, h, w, groups * c), dtype, "unit ten ties"),), {"groups": groups}


def draw_rows(rng, dtype):
    x = values(rng, sizes(rng, 2), dtype, "unit ten ties")
    return (x.at[0].set(0) if rng.random() < 0.5 else x,), {}


def draw_axes(rng, dtype):
    axes = [(0,), (1, 2), (-1,), (0, 2)][rng.integers(4)]
    return (values(rng, sizes(rng, 3), dtype), axes), {}


def draw_weight(rng, dtype):
    n, m = sizes(rng, 2)
    return (values(rng, (n, m), dtype, "unit ten positive"), values(rng, (m,), dtype)), {}


def draw_with_key(make_key, n=1, **kwargs):
    def draw(rng, dtype):
        shape = sizes(rng, int(rng.integers(1, 4)))
        xs = [values(rng, shape, dtype, "unit ties") for _ in range(n)]
        return (*xs, make_key(int(rng.integers(1000)))), dict(kwargs)

    return draw


NORMS = [
    Right("layer norm", layer_norm, draw_norm(2, "unit ten ties offset")),
    Right("layer norm in float32 at least", layer_norm_wide, draw_norm(1, "unit ten ties")),
    Right("rms norm in float32 always", rms_norm, draw_norm(1, "unit ten ties")),
    Right("batch norm and its statistics", batch_norm, draw_norm(2, "unit ties")),
    Right("group norm", group_norm, draw_groups, NO_HALF),
    Right("l2 normalization", l2_normalize, arrays(1, (1, 3), "unit ten ties")),
    Right("norm with gradient 0 at 0", safe_norm, draw_rows),
    Right("standardization over a tuple of axes", standardize, draw_axes),
    Right("weight norm", weight_norm, draw_weight),
    Right("dropout", dropout, draw_with_key(jax.random.key)),
    Right("dropout, raw key", dropout, draw_with_key(jax.random.PRNGKey, rate=0.25)),
    Right("dropout from its key", dropout_from_key, draw_with_key(jax.random.key, rate=0.1)),
    Right("gaussian sample", gaussian_sample, draw_with_key(jax.random.key, 2), WIDE),
]
