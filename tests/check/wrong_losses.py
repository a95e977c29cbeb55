"""Wrong rules of softmax, losses and attention."""

import jax
import jax.numpy as jnp
from check.wrong_entry import array, integers, normal, one_hot, positive, where, wrong
from jax.nn import log_sigmoid, log_softmax, sigmoid, softmax
from jax.scipy.special import logsumexp


def softmax_over(x, axis):
    return softmax(x, axis)


def softmax_bwd_last(axis, x, dy):
    y = softmax(x, axis)
    return (y * (dy - (y * dy).sum(-1, keepdims=True)),)


def tempered(x, temperature):
    return softmax(x / temperature)


def tempered_bwd(x, t, dy, sign=1, scale=True):
    y = softmax(x / t)
    dz = y * (dy - (y * dy).sum(-1, keepdims=True))
    return (dz / t if scale else dz), sign * -(dz * x).sum() / t**2


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(log_softmax(logits), labels[:, None], 1).mean()


def masked_cross_entropy(logits, labels):
    """Labels of −1 do not count."""
    nll = -jnp.take_along_axis(log_softmax(logits), labels.clip(0)[:, None], 1)[:, 0]
    return where(labels >= 0, nll).sum() / (labels >= 0).sum().astype(logits.dtype)


def masked_cross_entropy_bwd(logits, labels, dy):
    d = softmax(logits) - one_hot(labels, logits)
    return dy * where((labels >= 0)[:, None], d) / len(labels), None


def smoothed_cross_entropy(logits, labels, smoothing=0.1):
    q = (1 - smoothing) * one_hot(labels, logits) + smoothing / logits.shape[-1]
    return -(q * log_softmax(logits)).sum(-1)


def weighted_cross_entropy(logits, labels, weights):
    nll = -jnp.take_along_axis(log_softmax(logits), labels[:, None], 1)[:, 0]
    return (weights[labels] * nll).sum()


def weighted_cross_entropy_bwd(logits, labels, weights, dy):
    d = softmax(logits) - one_hot(labels, logits)
    nll = -jnp.take_along_axis(log_softmax(logits), labels[:, None], 1)[:, 0]
    dweights = jnp.zeros_like(weights).at[labels].set(nll)  # a class occurs twice
    return dy * weights[labels][:, None] * d, None, dy * dweights


def soft_cross_entropy(logits, q):
    return -(q * log_softmax(logits)).sum(-1)


def z_loss(logits, labels):
    return cross_entropy(logits, labels) + 0.1 * (logsumexp(logits, -1) ** 2).mean()


def bce(logits, target, positive_weight):
    return -(positive_weight * target * log_sigmoid(logits)
             + (1 - target) * log_sigmoid(-logits)).mean()  # fmt: skip


def bce_bwd(logits, target, w, dy):
    p, n = sigmoid(logits), logits.size
    dlogits = (p - target) / n  # as for w = 1
    dtarget = (-w * log_sigmoid(logits) + log_sigmoid(-logits)) / n
    return dy * dlogits, dy * dtarget, dy * -(target * log_sigmoid(logits)).mean()


def mse(prediction, target):
    return ((prediction - target) ** 2).mean()


def huber(x, delta):
    a = jnp.abs(x)
    return jnp.where(a <= delta, x * x / 2, delta * (a - delta / 2))


def kl(p, q):
    return (p * (jnp.log(p) - jnp.log(q))).sum()


def cosine(a, b):
    return a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


def cosine_bwd(a, b, dy):
    m, n = jnp.linalg.norm(a), jnp.linalg.norm(b)
    return dy * (b / (m * n) - (a @ b) * a / (m**3 * n)), dy * a / (m * n)


def focal(logits, gamma):
    p = sigmoid(logits)
    return -((1 - p) ** gamma) * jnp.log(p)


def focal_bwd(gamma, logits, dy):
    p = sigmoid(logits)
    return (dy * -((1 - p) ** (gamma + 1)),)  # d(1 − p)^γ is dropped


def entropy(logits):
    return -(softmax(logits) * log_softmax(logits)).sum(-1)


def entropy_bwd(logits, dy):
    p, logp = softmax(logits), log_softmax(logits)
    return (dy[:, None] * -p * (logp + 1),)


def contrastive(a, b):
    return cross_entropy(a @ b.T, jnp.arange(len(a)))


def contrastive_bwd(a, b, dy):
    d = (softmax(a @ b.T) - jnp.eye(len(a), dtype=a.dtype)) / len(a)
    return dy * d @ b, dy * d @ a


def attention(q, k, v):
    return softmax(q @ k.T / q.shape[-1] ** 0.5) @ v


def attention_bwd(q, k, v, dy, q_scale=True, normalise=True):
    scale = q.shape[-1] ** -0.5
    p = softmax(q @ k.T * scale)
    dp = dy @ v.T
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    dv = (p if normalise else p / p.max()).T @ dy
    return (ds @ k if q_scale else ds @ k / scale), ds.T @ q, dv


def causal(q, k, v):
    s = q @ k.T
    return softmax(jnp.where(jnp.tri(*s.shape, dtype=bool), s, -1e30)) @ v


def causal_bwd(q, k, v, dy):
    s = q @ k.T
    p = softmax(jnp.where(jnp.tri(*s.shape, dtype=bool), s, -1e30))
    dp = dy @ v.T
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    return ds @ k, ds.T @ q, softmax(s).T @ dy


def masked_mean(x, mask):
    return where(mask, x).sum() / mask.sum().astype(x.dtype)


def triplet(anchor, near, far):
    return jax.nn.relu(((anchor - near) ** 2).sum() - ((anchor - far) ** 2).sum() + 9)


def triplet_bwd(anchor, near, far, dy):
    d = where(triplet(anchor, near, far) > 0, 2 * dy)
    return d * (far - near), d * (near - anchor), d * (far - anchor)


def gaussian_nll(x, mean, log_var):
    return 0.5 * (log_var + (x - mean) ** 2 * jnp.exp(-log_var)).sum()


def gaussian_nll_bwd(x, mean, log_var, dy):
    z = (x - mean) * jnp.exp(-log_var)
    return dy * z, -dy * z, 0.5 * dy * (1 - z * z)


X, LABELS, T = normal(5, 4), integers(4, 5), array(1.7)
MASK = array([1, 0, 1, 1, 0, 1], bool)
Q, K, V = normal(5, 3), normal(5, 3, seed=1), normal(5, 2)

LOSSES = [
    # The term that makes the cotangent sum to 0 is missing.
    wrong("softmax_mean_term", "gradient", "x", softmax_over, (X, -1),
          lambda axis, x, dy: (softmax(x, axis) * dy,), nondiff=(1,)),
    # The sum is over the last axis, whatever the axis.
    wrong("softmax_axis", "gradient", "x", softmax_over, (X, 0), softmax_bwd_last, nondiff=(1,)),
    # dy is not summed.
    wrong("log_softmax_sum", "gradient", "x", lambda x: log_softmax(x), (X,),
          lambda x, dy: (dy - softmax(x),)),
    # 1 / T is missing.
    wrong("temperature_dx", "gradient", "x", tempered, (X, T),
          lambda x, t, dy: tempered_bwd(x, t, dy, scale=False)),
    # The sign.
    wrong("temperature_sign", "gradient", "temperature", tempered, (X, T),
          lambda x, t, dy: tempered_bwd(x, t, dy, sign=-1)),
    # The softmax is over the other axis.
    wrong("logsumexp_axis", "gradient", "x", lambda x: logsumexp(x, -1), (normal(4, 4),),
          lambda x, dy: (dy[:, None] * softmax(x, 0),)),
    # The cotangent of a scalar loss is taken to be 1.
    wrong("cross_entropy_ones", "gradient", "logits", cross_entropy, (X, LABELS),
          lambda z, labels, dy: ((softmax(z) - one_hot(labels, z)) / len(z), None)),
    # The sum for the mean.
    wrong("cross_entropy_sum", "gradient", "logits", cross_entropy, (X, LABELS),
          lambda z, labels, dy: (dy * (softmax(z) - one_hot(labels, z)), None)),
    # The mean over all elements for that over the rows.
    wrong("cross_entropy_size", "gradient", "logits", cross_entropy, (X, LABELS),
          lambda z, labels, dy: (dy * (softmax(z) - one_hot(labels, z)) / z.size, None)),
    # The cotangents of the examples are averaged.
    wrong("cross_entropy_dy_mean", "gradient", "logits",
          lambda logits, labels: soft_cross_entropy(logits, one_hot(labels, logits)), (X, LABELS),
          lambda z, labels, dy: (dy.mean() * (softmax(z) - one_hot(labels, z)), None)),
    # Divided by the number of all labels, not of those that count.
    wrong("cross_entropy_ignored", "gradient", "logits", masked_cross_entropy,
          (X, array([2, -1, 0, 3, -1], jnp.int32)), masked_cross_entropy_bwd),
    # The smoothing is forgotten.
    wrong("cross_entropy_smoothing", "gradient", "logits", smoothed_cross_entropy,
          (X, LABELS, 0.1),
          lambda s, z, labels, dy: (dy[:, None] * (softmax(z) - one_hot(labels, z)), None),
          nondiff=(2,)),
    # Of a class that occurs twice only one example counts.
    wrong("cross_entropy_class_weight", "gradient", "weights", weighted_cross_entropy,
          (X, array([2, 0, 2, 3, 1], jnp.int32), positive(4)), weighted_cross_entropy_bwd),
    # Right for q that sum to 1.
    wrong("soft_labels_mass", "gradient", "logits", soft_cross_entropy, (X, positive(5, 4)),
          lambda z, q, dy: (dy[:, None] * (softmax(z) - q), -dy[:, None] * log_softmax(z))),
    # The regularizer is forgotten.
    wrong("z_loss", "gradient", "logits", z_loss, (X, LABELS),
          lambda z, labels, dy: (dy * (softmax(z) - one_hot(labels, z)) / len(z), None)),
    # The weight of the positives is forgotten.
    wrong("bce_positive_weight", "gradient", "logits", bce, (X, positive(5, 4) / 2, T), bce_bwd),
    # The factor 2.
    wrong("mse_factor", "gradient", "prediction", mse, (X, normal(5, 4, seed=1)),
          lambda p, t, dy: (dy * (p - t) / p.size, 2 * dy * (t - p) / p.size)),
    # The sign.
    wrong("mse_target", "gradient", "target", mse, (X, normal(5, 4, seed=1)),
          lambda p, t, dy: (2 * dy * (p - t) / p.size, 2 * dy * (p - t) / p.size)),
    # The linear part has slope 1 in place of δ.
    wrong("huber_slope", "gradient", "x", huber, (X, 0.5),
          lambda delta, x, dy: (dy * jnp.where(jnp.abs(x) <= delta, x, jnp.sign(x)),),
          nondiff=(1,)),
    # The 1 of d(p log p) is missing.
    wrong("kl_one", "gradient", "p", kl, (positive(6), positive(6, seed=1)),
          lambda p, q, dy: (dy * (jnp.log(p) - jnp.log(q)), -dy * p / q)),
    # The logarithm's argument is p, not q.
    wrong("kl_quotient", "gradient", "q", kl, (positive(6), positive(6, seed=1)),
          lambda p, q, dy: (dy * (jnp.log(p) - jnp.log(q) + 1), -dy * q / p)),
    # The derivative of the norm is missing.
    wrong("cosine_projection", "gradient", "b", cosine, (normal(6), normal(6, seed=1)), cosine_bwd),
    # The product rule is cut short.
    wrong("focal_term", "gradient", "logits", focal, (X, 2), focal_bwd, nondiff=(1,)),
    # The 1 stands for the entropy itself.
    wrong("entropy_term", "gradient", "logits", entropy, (X,), entropy_bwd),
    # The matrix of similarities is to be transposed.
    wrong("contrastive_transpose", "gradient", "b", contrastive, (Q, K), contrastive_bwd),
    # The scale is missing in dq.
    wrong("attention_scale", "gradient", "q", attention, (Q, K, V),
          lambda q, k, v, dy: attention_bwd(q, k, v, dy, q_scale=False)),
    # The probabilities are not normalised.
    wrong("attention_dv", "gradient", "v", attention, (Q, K, V),
          lambda q, k, v, dy: attention_bwd(q, k, v, dy, normalise=False)),
    # dv sees the future.
    wrong("causal_mask", "gradient", "v", causal, (Q, K, V), causal_bwd),
    # The mask is inverted.
    wrong("masked_mean_inverted", "gradient", "x", masked_mean, (normal(6), MASK),
          lambda x, mask, dy: (where(~mask, dy / mask.sum().astype(dy.dtype)), None)),
    # The mean over all, masked or not.
    wrong("masked_mean_count", "gradient", "x", masked_mean, (normal(6), MASK),
          lambda x, mask, dy: (where(mask, dy / len(x)), None)),
    # The sign of the far point.
    wrong("triplet_far", "gradient", "far", triplet,
          (normal(4), normal(4, seed=1), normal(4, seed=2)),
          triplet_bwd),
    # z² stands for (x − μ)² / σ².
    wrong("gaussian_log_var", "gradient", "log_var", gaussian_nll,
          (normal(5), normal(5, seed=1), normal(5, seed=2)), gaussian_nll_bwd),
    # The cotangent of a mean along an axis belongs to its rows, not its columns.
    wrong("mean_axis", "gradient", "x", lambda x: x.mean(0), (normal(4, 4),),
          lambda x, dy: (jnp.broadcast_to(dy[:, None] / 4, x.shape),)),
    # Bessel's correction.
    wrong("variance_bessel", "gradient", "x", lambda x: x.var(-1), (X,),
          lambda x, dy: (2 * dy[:, None] * (x - x.mean(-1, keepdims=True)) / (x.shape[-1] - 1),)),
]  # fmt: skip
