"""Correct rules of softmax and of losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from check.right_entry import (
    NO_HALF,
    Right,
    arrays,
    booleans,
    integers,
    sizes,
    values,
)
from jax import lax


@jax.custom_vjp
def softmax(x):
    e = jnp.exp(x - lax.stop_gradient(x.max(-1, keepdims=True)))
    return e / e.sum(-1, keepdims=True)


def softmax_fwd(x):
    y = softmax(x)
    return y, y


def softmax_bwd(y, dy):
    return (y * (dy - (dy * y).sum(-1, keepdims=True)),)


softmax.defvjp(softmax_fwd, softmax_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def tempered_softmax(x, temperature, axis=-1):
    return jax.nn.softmax(x / temperature, axis)


def tempered_softmax_fwd(x, temperature, axis):
    y = jax.nn.softmax(x / temperature, axis)
    return y, (x, temperature, y)


def tempered_softmax_bwd(axis, residuals, dy):
    x, temperature, y = residuals
    dz = y * (dy - (dy * y).sum(axis, keepdims=True))
    return dz / temperature, -(dz * x).sum() / temperature**2


tempered_softmax.defvjp(tempered_softmax_fwd, tempered_softmax_bwd)


@jax.custom_vjp
def log_softmax(x):
    return jax.nn.log_softmax(x)


def log_softmax_fwd(x):
    y = jax.nn.log_softmax(x)
    return y, y


def log_softmax_bwd(y, dy):
    return (dy - jnp.exp(y) * dy.sum(-1, keepdims=True),)


log_softmax.defvjp(log_softmax_fwd, log_softmax_bwd)


@jax.custom_vjp
def logsumexp(x):
    return jax.nn.logsumexp(x, -1)


def logsumexp_fwd(x):
    y = jax.nn.logsumexp(x, -1)
    return y, (x, y)


def logsumexp_bwd(residuals, dy):
    x, y = residuals
    return (dy[..., None] * jnp.exp(x - y[..., None]),)


logsumexp.defvjp(logsumexp_fwd, logsumexp_bwd)


@jax.custom_vjp
def cross_entropy(logits, labels):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]


def cross_entropy_fwd(logits, labels):
    return cross_entropy(logits, labels), (jax.nn.softmax(logits), labels)


def cross_entropy_bwd(residuals, dy):
    p, labels = residuals
    onehot = jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    return dy[..., None] * (p - onehot), None


cross_entropy.defvjp(cross_entropy_fwd, cross_entropy_bwd)


@jax.custom_vjp
def cross_entropy_float0(logits, labels):
    return cross_entropy.__wrapped__(logits, labels)


def cross_entropy_float0_bwd(residuals, dy):
    dlogits, _ = cross_entropy_bwd(residuals, dy)
    return dlogits, np.zeros(residuals[1].shape, jax.dtypes.float0)


cross_entropy_float0.defvjp(cross_entropy_fwd, cross_entropy_float0_bwd)


@jax.custom_vjp
def onehot_cross_entropy(logits, targets):
    return -(targets * jax.nn.log_softmax(logits)).sum(-1)


def onehot_cross_entropy_fwd(logits, targets):
    log_p = jax.nn.log_softmax(logits)
    return -(targets * log_p).sum(-1), (log_p, targets)


def onehot_cross_entropy_bwd(residuals, dy):
    log_p, targets = residuals
    dy = dy[..., None]
    dlogits = dy * (jnp.exp(log_p) * targets.sum(-1, keepdims=True) - targets)
    return dlogits, -dy * log_p


onehot_cross_entropy.defvjp(onehot_cross_entropy_fwd, onehot_cross_entropy_bwd)


def smooth(labels, n, smoothing, dtype):
    return (1 - smoothing) * jax.nn.one_hot(labels, n, dtype=dtype) + smoothing / n


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def label_smoothing(logits, labels, smoothing=0.1):
    q = smooth(labels, logits.shape[-1], smoothing, logits.dtype)
    return -(q * jax.nn.log_softmax(logits)).sum(-1).mean()


def label_smoothing_fwd(logits, labels, smoothing):
    return label_smoothing(logits, labels, smoothing), (logits, labels)


def label_smoothing_bwd(smoothing, residuals, dy):
    logits, labels = residuals
    q = smooth(labels, logits.shape[-1], smoothing, logits.dtype)
    return dy / labels.size * (jax.nn.softmax(logits) - q), None


label_smoothing.defvjp(label_smoothing_fwd, label_smoothing_bwd)


@jax.custom_vjp
def masked_cross_entropy(logits, labels, mask):
    losses = cross_entropy.__wrapped__(logits, labels)
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1).astype(logits.dtype)


def masked_cross_entropy_fwd(logits, labels, mask):
    return masked_cross_entropy(logits, labels, mask), (jax.nn.softmax(logits), labels, mask)


def masked_cross_entropy_bwd(residuals, dy):
    p, labels, mask = residuals
    onehot = jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    scale = dy / jnp.maximum(mask.sum(), 1).astype(p.dtype)
    return jnp.where(mask[..., None], scale * (p - onehot), 0), None, None


masked_cross_entropy.defvjp(masked_cross_entropy_fwd, masked_cross_entropy_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def z_loss(logits, labels, weight=1e-2):
    """The cross entropy with a penalty on log Z, and log Z itself for the log of the run."""
    log_z = jax.nn.logsumexp(logits, -1)
    label = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return log_z - label + weight * log_z**2, log_z


def z_loss_fwd(logits, labels, weight):
    loss, log_z = z_loss(logits, labels, weight)
    return (loss, log_z), (logits, labels, log_z)


def z_loss_bwd(weight, residuals, cotangents):
    logits, labels, log_z = residuals
    dloss, dlog_z = cotangents
    dz = dloss * (1 + 2 * weight * log_z) + dlog_z
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    p = jnp.exp(logits - log_z[..., None])
    return dz[..., None] * p - dloss[..., None] * onehot, None


z_loss.defvjp(z_loss_fwd, z_loss_bwd)


@jax.custom_vjp
def bce_with_logits(x, t):
    return jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))


bce_with_logits.defvjp(
    lambda x, t: (bce_with_logits(x, t), (x, t)),
    lambda res, dy: (dy * (jax.nn.sigmoid(res[0]) - res[1]), -dy * res[0]),
)


@jax.custom_vjp
def kl_of_logits(a, b):
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def kl_of_logits_fwd(a, b):
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    kl = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return kl, (log_p, log_q, kl)


def kl_of_logits_bwd(residuals, dy):
    log_p, log_q, kl = residuals
    p, dy = jnp.exp(log_p), dy[..., None]
    return dy * p * (log_p - log_q - kl[..., None]), dy * (jnp.exp(log_q) - p)


kl_of_logits.defvjp(kl_of_logits_fwd, kl_of_logits_bwd)


@jax.custom_vjp
def mean_squared_error(y, t):
    return jnp.mean((y - t) ** 2)


def mean_squared_error_fwd(y, t):
    r = y - t
    return jnp.mean(r * r), r


def mean_squared_error_bwd(r, dy):
    dr = 2 / r.size * dy * r
    return dr, -dr


mean_squared_error.defvjp(mean_squared_error_fwd, mean_squared_error_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def huber(y, t, delta=1.0):
    r = jnp.abs(y - t)
    return jnp.where(r <= delta, 0.5 * r * r, delta * (r - 0.5 * delta))


def huber_bwd(delta, r, dy):
    dr = dy * jnp.clip(r, -delta, delta)
    return dr, -dr


huber.defvjp(lambda y, t, delta: (huber(y, t, delta), y - t), huber_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def pinball(y, t, q):
    r = t - y
    return jnp.maximum(q * r, (q - 1) * r)


def pinball_bwd(q, r, dy):
    dr = dy * jnp.where(r > 0, q, jnp.where(r < 0, q - 1, q - 0.5)).astype(dy.dtype)
    return -dr, dr


pinball.defvjp(lambda y, t, q: (pinball(y, t, q), t - y), pinball_bwd)


@jax.custom_vjp
def hinge(x, labels):
    return jnp.maximum(0, 1 - labels.astype(x.dtype) * x)


def hinge_bwd(residuals, dy):
    x, labels = residuals
    sign = labels.astype(x.dtype)
    margin = sign * x
    return jnp.where(margin < 1, -sign * dy, jnp.where(margin == 1, -sign * dy / 2, 0)), None


hinge.defvjp(lambda x, labels: (hinge(x, labels), (x, labels)), hinge_bwd)

CHUNK = 3


@jax.custom_vjp
def fused_cross_entropy(h, w, labels):
    """The mean cross entropy of the logits `h @ w`."""
    return cross_entropy.__wrapped__(h @ w, labels).mean()


def fused_cross_entropy_fwd(h, w, labels):
    """Never holds more than one chunk of logits, so it makes the gradients on the way."""
    n = labels.size

    def chunk(arguments):
        x, ids = arguments
        logits = x @ w
        p = jax.nn.softmax(logits)
        dlogits = (p - jax.nn.one_hot(ids, w.shape[1], dtype=p.dtype)) / n
        losses = cross_entropy.__wrapped__(logits, ids)
        return losses.sum(), dlogits @ w.T, x.T @ dlogits

    chunks = h.reshape(-1, CHUNK, h.shape[1]), labels.reshape(-1, CHUNK)
    loss, dh, dw = lax.map(chunk, chunks)
    return loss.sum() / n, (dh.reshape(h.shape), dw.sum(0))


def fused_cross_entropy_bwd(residuals, dy):
    dh, dw = residuals
    return dy * dh, dy * dw, None


fused_cross_entropy.defvjp(fused_cross_entropy_fwd, fused_cross_entropy_bwd)


def draw_logits(regimes="unit ten ties", mask=False, **kwargs):
    def draw(rng, dtype):
        *batch, n = sizes(rng, int(rng.integers(1, 4)), 7)
        masks = [booleans(rng, batch)] if mask else []
        args = values(rng, (*batch, n), dtype, regimes), integers(rng, n, batch), *masks
        return args, dict(kwargs)

    return draw


def draw_temperature(rng, dtype):
    shape = sizes(rng, 3)
    args = values(rng, shape, dtype, "unit ten ties"), values(rng, (), dtype, "positive")
    return args, {"axis": int(rng.integers(-3, 3))}


def draw_targets(rng, dtype):
    shape = sizes(rng, int(rng.integers(1, 4)))
    targets = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    if rng.random() < 0.5:
        targets = np.eye(shape[-1])[targets.argmax(-1)]
    return (values(rng, shape, dtype, "unit ten ties"), jnp.asarray(targets, dtype)), {}


def draw_hinge(rng, dtype):
    shape = sizes(rng, 2)
    labels = jnp.asarray(rng.choice([-1, 1], shape), jnp.int32)
    return (values(rng, shape, dtype, "unit ten ties"), labels), {}


def draw_fused(rng, dtype):
    n, d, c = CHUNK * int(rng.integers(1, 4)), *sizes(rng, 2)
    args = values(rng, (n, d), dtype, "unit ties"), values(rng, (d, c), dtype), integers(rng, c, n)
    return args, {}


LOSSES = [
    Right("softmax", softmax, arrays(1, (1, 4), "unit ten hundred ties tails offset")),
    Right("softmax with a temperature along an axis", tempered_softmax, draw_temperature),
    Right("log softmax", log_softmax, arrays(1, (1, 4), "unit ten hundred ties tails")),
    Right("logsumexp", logsumexp, arrays(1, (1, 4), "unit ten hundred ties tails")),
    Right("cross entropy of labels", cross_entropy, draw_logits("unit ten hundred ties tails")),
    Right("cross entropy, float0 for labels", cross_entropy_float0, draw_logits()),
    Right("cross entropy of one-hot targets", onehot_cross_entropy, draw_targets),
    Right("label smoothing", label_smoothing, draw_logits()),
    Right("label smoothing, another share", label_smoothing, draw_logits(smoothing=0.3)),
    Right("masked cross entropy", masked_cross_entropy, draw_logits(mask=True)),
    Right("cross entropy with z-loss", z_loss, draw_logits()),
    Right("binary cross entropy", bce_with_logits, arrays(2, regimes="unit ten hundred")),
    Right("divergence of two softmaxes", kl_of_logits, arrays(2, (1, 3), "unit ties")),
    Right("mean squared error", mean_squared_error, arrays(2, regimes="unit ten ties")),
    Right("huber", huber, arrays(2, regimes="unit ten ties", delta=1.5)),
    Right("pinball", pinball, arrays(2, regimes="unit ten ties", q=0.9)),
    Right("hinge", hinge, draw_hinge),
    Right("linear cross entropy in chunks", fused_cross_entropy, draw_fused, NO_HALF),
]
