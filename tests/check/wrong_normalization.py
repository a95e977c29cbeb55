"""Wrong rules of normalization, most of them with several outputs."""

import jax.numpy as jnp
from check.wrong_entry import array, normal, positive, pull, wrong
from jax import lax

EPS = 1e-3


def layer_norm(x, gamma, beta):
    m, v = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - m) * lax.rsqrt(v + EPS) * gamma + beta


def layer_norm_bwd(x, gamma, beta, dy, mean=1.0, hat=1.0, eps=EPS, biased=True):
    m, v = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    r = lax.rsqrt(v + EPS)
    y, d = (x - m) * r, dy * gamma
    dx = d - mean * d.mean(-1, keepdims=True) - hat * y * (d * y).mean(-1, keepdims=True)
    rate = r if biased else lax.rsqrt(x.var(-1, keepdims=True, ddof=1) + EPS)
    return rate * dx * (r if eps is None else lax.rsqrt(v + eps)) / r, (dy * y).sum(0), dy.sum(0)


def rms_norm(x, gamma):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS) * gamma


def rms_norm_bwd(x, gamma, dy, divide=True, eps=EPS):
    r = lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS)
    d = dy * gamma
    s = (d * x).mean(-1, keepdims=True) if divide else (d * x).sum(-1, keepdims=True)
    return r * d - r**3 * x * s, (dy * x * lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)).sum(0)


def batch_norm(x, gamma, beta):
    """The normalised x, and the mean and variance for the running averages."""
    m, v = x.mean(0), x.var(0)
    return (x - m) * lax.rsqrt(v + EPS) * gamma + beta, m, v


def batch_norm_bwd(x, gamma, beta, dout, from_mean=1.0, from_var=1.0, factor=2.0, gamma_of="hat"):
    dy, dm, dv = dout
    m, v = x.mean(0), x.var(0)
    r = lax.rsqrt(v + EPS)
    y, d = (x - m) * r, dy * gamma
    dx = r * (d - d.mean(0) - y * (d * y).mean(0))
    dx = dx + from_mean * dm / len(x) + from_var * factor * dv * (x - m) / len(x)
    return dx, (dy * (y if gamma_of == "hat" else x - m)).sum(0), dy.sum(0)


def group_norm(x, groups):
    g = x.reshape(len(x), groups, -1)
    g = (g - g.mean(-1, keepdims=True)) * lax.rsqrt(g.var(-1, keepdims=True) + EPS)
    return g.reshape(x.shape)


def group_norm_bwd(groups, x, dy):
    return pull(lambda x: group_norm(x, 1), x, dy)


def normalize(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + EPS)


def normalize_bwd(x, dy):
    n = jnp.sqrt((x * x).sum(-1, keepdims=True) + EPS)
    y = x / n
    return ((dy - y * (dy * y).sum(-1, keepdims=True) * 0.999) / n,)


def normalize_without_eps(x, dy):
    n = jnp.sqrt((x * x).sum(-1, keepdims=True))
    y = x / n
    return ((dy - y * (dy * y).sum(-1, keepdims=True)) / n,)


def moments(x):
    return x.mean(), x.var()


def norm_and_unit(x):
    n = jnp.sqrt((x * x).sum())
    return {"norm": n, "unit": x / n}


def norm_and_unit_bwd(x, dout):
    n = jnp.sqrt((x * x).sum())
    y = x / n
    return ((dout["unit"] - y * (y @ dout["unit"])) / n,)


def evaluate(x, mean, var, gamma, beta):
    return (x - mean) * lax.rsqrt(var + EPS) * gamma + beta


def evaluate_bwd(x, mean, var, gamma, beta, dy):
    r = lax.rsqrt(var + EPS)
    d, y = dy * gamma * r, (x - mean) * r
    return d, -d.sum(0), -0.5 * (d * y * r).sum(0), (dy * y).sum(0), dy[0] * len(dy)


X, G, B = normal(6, 5), positive(5), normal(5)


def changed(bwd, **options):
    return lambda *args: bwd(*args, **options)


NORMALIZATION = [
    # The mean of the cotangent is not taken off.
    wrong("layer_norm_mean_term", "gradient", "x", layer_norm, (X, G, B),
          changed(layer_norm_bwd, mean=0.0)),
    # The term of the variance is dropped.
    wrong("layer_norm_variance_term", "gradient", "x", layer_norm, (X, G, B),
          changed(layer_norm_bwd, hat=0.0)),
    # ε is missing.
    wrong("layer_norm_eps", "gradient", "x", layer_norm, (X, G, B), changed(layer_norm_bwd, eps=0)),
    # The unbiased variance.
    wrong("layer_norm_unbiased", "gradient", "x", layer_norm, (X, G, B),
          changed(layer_norm_bwd, biased=False)),
    # γ's cotangent is that of β.
    wrong("layer_norm_dgamma", "gradient", "gamma", layer_norm, (X, G, B),
          lambda x, g, b, dy: (layer_norm_bwd(x, g, b, dy)[0], dy.sum(0), dy.sum(0))),
    # A sum for a mean.
    wrong("rms_norm_sum", "gradient", "x", rms_norm, (X, G), changed(rms_norm_bwd, divide=False)),
    # ε is missing.
    wrong("rms_norm_eps", "gradient", "gamma", rms_norm, (X, G), changed(rms_norm_bwd, eps=0)),
    # The cotangent of the third output is ignored.
    wrong("batch_norm_var_ignored", "gradient", "x", batch_norm, (X, G, B),
          changed(batch_norm_bwd, from_var=0.0)),
    # The cotangent of the second output is ignored.
    wrong("batch_norm_mean_ignored", "gradient", "x", batch_norm, (X, G, B),
          changed(batch_norm_bwd, from_mean=0.0)),
    # The factor 2 of the square.
    wrong("batch_norm_var_factor", "gradient", "x", batch_norm, (X, G, B),
          changed(batch_norm_bwd, factor=1.0)),
    # x is centred, but not divided by its standard deviation.
    wrong("batch_norm_dgamma", "gradient", "gamma", batch_norm, (X, G, B),
          changed(batch_norm_bwd, gamma_of="centred")),
    # The number of groups is ignored.
    wrong("group_norm_groups", "gradient", "x", group_norm, (normal(4, 6), 2), group_norm_bwd,
          nondiff=(1,)),
    # 0.1 % of one term.
    wrong("normalize_per_mille", "gradient", "x", normalize, (X,), normalize_bwd),
    # ε is missing.
    wrong("normalize_eps", "gradient", "x", normalize, (X,), normalize_without_eps),
    # The variance's cotangent for both outputs.
    wrong("moments_swapped", "gradient", "x", moments, (normal(7),),
          lambda x, dout: (dout[1] / len(x) + 2 * dout[0] * (x - x.mean()) / len(x),)),
    # The cotangent of the output "norm" is ignored.
    wrong("dict_output_ignored", "gradient", "x", norm_and_unit, (normal(5),), norm_and_unit_bwd),
    # The first row for all.
    wrong("inference_beta", "gradient", "beta", evaluate,
          (X, normal(5, seed=1), positive(5, seed=2), G, B), evaluate_bwd),
    # The standard deviation where the variance belongs.
    wrong("inference_var", "gradient", "var", evaluate,
          (X, normal(5, seed=1), positive(5, seed=2), G, B),
          lambda x, m, v, g, b, dy: (
              dy * g * lax.rsqrt(v + EPS), -(dy * g).sum(0) * lax.rsqrt(v + EPS),
              -0.5 * (dy * g * (x - m)).sum(0) / (v + EPS),
              (dy * (x - m)).sum(0) * lax.rsqrt(v + EPS), dy.sum(0))),
    # Division by a standard deviation in which x has no part.
    wrong("standardize_constant", "gradient", "x", lambda x: (x - x.mean()) / x.std(), (normal(7),),
          lambda x, dy: ((dy - dy.mean()) / x.std(),)),
    # The learned scalar of a scale norm counts each row once.
    wrong("scale_norm_gain", "gradient", "gain", lambda x, gain: gain * normalize(x),
          (X, array(1.3)),
          lambda x, gain, dy: (
              gain * pull(normalize, x, dy)[0], (dy * normalize(x)).sum(-1).mean())),
]  # fmt: skip
