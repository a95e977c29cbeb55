"""The value of each rule by other means, in float64: NumPy and SciPy's formulas, jax.nn, Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def _dropout(x, key, *, rate):
    """Whatever the mask is: the same elements of x, scaled, or zero."""
    from funcnet import ops

    kept = np.asarray(ops.dropout(np.ones_like(x), key, rate=rate)) > 0
    return np.where(kept, x / (1 - rate), 0.0)


def _batch_norm(x, scale, bias, *, eps=1e-5):
    x = np.asarray(x, np.longdouble)  # a large mean costs digits that float64 does not have
    columns = np.reshape(x, (-1, np.shape(x)[-1]))
    mean, var = columns.mean(0), columns.var(0)
    return (x - mean) / np.sqrt(var + eps) * scale + bias, mean, var


def _cross_entropy(y, t):
    dense = np.eye(y.shape[-1])[t] if np.shape(t) != np.shape(y) else t
    return -(dense * np.log(y)).sum(-1)


def _softmax_cross_entropy(x, t):
    if np.shape(t) != np.shape(x):
        wrapped = jnp.where(jnp.asarray(t, jnp.int32) < 0, t + np.shape(x)[-1], t)
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            jnp.asarray(x), jnp.asarray(wrapped, jnp.int32)
        )
    log_p = jax.nn.log_softmax(jnp.asarray(x))
    return -jnp.where(t == 0, 0.0, np.asarray(t, float) * log_p).sum(
        -1
    )  # Optax gives nan for 0 · log 0


def _leaves(params):
    leaves = [np.ravel(p) for p in jax.tree.leaves(params)]
    return np.concatenate([p for p in leaves if np.issubdtype(p.dtype, np.floating)])


ORACLES = {
    "identity": lambda x: x,
    "step": lambda x: np.heaviside(x, 1.0),
    "sigmoid": lambda x: jax.scipy.special.expit(jnp.asarray(x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "affine": lambda x, w, b: np.einsum("...i,ij->...j", x, w) + b,
    "batch_norm": _batch_norm,
    "batch_norm_inference": lambda x, scale, bias, mean, var, *, eps=1e-5: (
        (x - mean) / np.sqrt(var + eps) * scale + bias
    ),
    "dropout": _dropout,
    "mean_squared_error": lambda y, t: np.square(y - t).mean(-1),
    "sum_squared_error": lambda y, t: np.square(y - t).sum(-1) / 2,
    "cross_entropy": _cross_entropy,
    "softmax_cross_entropy": _softmax_cross_entropy,
    "l1_penalty": lambda params, rate: rate * np.abs(_leaves(params)).sum(),
    "l2_penalty": lambda params, rate: rate / 2 * np.square(_leaves(params)).sum(),
    "elastic_net_penalty": lambda params, l1_rate, l2_rate: (
        l1_rate * np.abs(_leaves(params)).sum() + l2_rate / 2 * np.square(_leaves(params)).sum()
    ),
}
