"""The forwards that people write: what `bench.py` lets JAX differentiate, to compare."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

EPS = 1e-5


def bernoulli_dropout(x: jax.Array, key: jax.Array) -> jax.Array:
    """Dropout by `jax.random.bernoulli`."""
    return jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0.0)


def two_pass(x: jax.Array, axis: int | tuple[int, ...]) -> tuple[jax.Array, ...]:
    """(x − mean) / σ, mean and variance, the variance from the deviations."""
    mean = x.mean(axis, keepdims=True)
    var = ((x - mean) ** 2).mean(axis, keepdims=True)
    return (x - mean) / jnp.sqrt(var + EPS), mean, var


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    """Batch Normalization, with the statistics of the batch."""
    normal, mean, var = two_pass(x, 0)
    return normal * scale + bias, mean[0], var[0]


def batch_norm_inference(x: jax.Array, scale: jax.Array, bias: jax.Array, *running: Any) -> Any:
    """Batch Normalization by running statistics."""
    mean, var = running
    return (x - mean) / jnp.sqrt(var + EPS) * scale + bias


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer Normalization."""
    return two_pass(x, -1)[0] * scale + bias


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Division by the root mean square."""
    return x * lax.rsqrt((x**2).mean(-1, keepdims=True) + EPS) * scale


def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int) -> jax.Array:
    """Group Normalization of images."""
    parted = x.reshape(*x.shape[:-1], groups, -1)
    return two_pass(parted, (1, 2, 4))[0].reshape(x.shape) * scale + bias


def smoothed(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy with labels smoothed by 0.1."""
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, 0.1))


def linear_cross_entropy(h: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    """The logits first, then their loss."""
    return optax.softmax_cross_entropy_with_integer_labels(h @ w, labels)


def conv(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """3 × 3 of images, "SAME"."""
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims) + b


def conv_transpose(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """3 × 3 of images, "SAME", a stride of 2."""
    return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b


def depthwise_conv(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """XLA's grouped convolution, each channel a group."""
    c, dims = x.shape[-1], ("NHWC", "HWIO", "NHWC")
    w = w[:, :, None, :]
    y = lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=c
    )
    return y + b


def max_pool(x: jax.Array) -> jax.Array:
    """2 × 2 of images, by `reduce_window`."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def avg_pool(x: jax.Array) -> jax.Array:
    """2 × 2 of images, by `reduce_window`."""
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def rope(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotates the halves of x (..., T, heads, d) by their positions."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half, dtype=x.dtype) / half)
    angles = positions.astype(x.dtype)[:, None, None] * frequencies
    cos, sin, left, right = jnp.cos(angles), jnp.sin(angles), x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def over_time(cell: Callable[..., Any], x: jax.Array, *start: jax.Array) -> Any:
    """A cell (x_t, *state) ↦ state in `lax.scan`; all h, then the last state."""

    def body(state, x_t):
        state = cell(x_t, *state)
        return state, state[0]

    last, h = lax.scan(body, start, jnp.moveaxis(x, -2, 0))
    return jnp.moveaxis(h, 0, -2), *last


def rnn(x: jax.Array, h0: jax.Array, w_x: jax.Array, w_h: jax.Array, b: jax.Array) -> Any:
    """The cell as in the book."""
    return over_time(lambda x, h: (jnp.tanh(x @ w_x + h @ w_h + b),), x, h0)


def lstm(x: jax.Array, h0: jax.Array, c0: jax.Array, w_x: Any, w_h: Any, b: Any) -> Any:
    """The cell as in the book: one product for all gates."""

    def cell(x, h, c):
        i, f, g, o = jnp.split(x @ w_x + h @ w_h + b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    return over_time(cell, x, h0, c0)


def gru(x: jax.Array, h0: jax.Array, w_x: Any, w_h: Any, b: Any, b_h: Any) -> Any:
    """The cell with the reset gate after the product, as in cuDNN."""

    def cell(x, h):
        (r, z, n), (r_h, z_h, n_h) = (jnp.split(y, 3, -1) for y in (x @ w_x + b, h @ w_h + b_h))
        r, z = jax.nn.sigmoid(r + r_h), jax.nn.sigmoid(z + z_h)
        return ((1 - z) * jnp.tanh(n + r * n_h) + z * h,)

    return over_time(cell, x, h0)


def linear_recurrence(a: jax.Array, b: jax.Array, h0: jax.Array) -> jax.Array:
    """h_t = a_t h_{t−1} + b_t by `lax.associative_scan`."""
    b = b.at[..., 0, :].add(a[..., 0, :] * h0)
    compose = lambda first, second: (first[0] * second[0], second[0] * first[1] + second[1])
    return lax.associative_scan(compose, (a, b), axis=a.ndim - 2)[1]


def sequential_recurrence(a: jax.Array, b: jax.Array, h0: jax.Array) -> jax.Array:
    """The same by `lax.scan`."""

    def body(h, factors):
        h = factors[0] * h + factors[1]
        return h, h

    steps = jnp.moveaxis(a, -2, 0), jnp.moveaxis(b, -2, 0)
    return jnp.moveaxis(lax.scan(body, h0, steps)[1], 0, -2)


OF_ONE_MATRIX: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {  # and their sources
    "identity": (lambda x: x, "x"),
    "step": (lambda x: jnp.where(x > 0, 1.0, 0.0).astype(x.dtype), "jnp"),
    "sigmoid": (jax.nn.sigmoid, "jax.nn"),
    "tanh": (jnp.tanh, "jnp"),
    "relu": (jax.nn.relu, "jax.nn"),
    "leaky_relu": (jax.nn.leaky_relu, "jax.nn"),
    "relu6": (jax.nn.relu6, "jax.nn"),
    "elu": (jax.nn.elu, "jax.nn"),
    "selu": (jax.nn.selu, "jax.nn"),
    "gelu": (jax.nn.gelu, "jax.nn"),
    "silu": (jax.nn.silu, "jax.nn"),
    "mish": (jax.nn.mish, "jax.nn"),
    "softplus": (jax.nn.softplus, "jax.nn"),
    "log_sigmoid": (jax.nn.log_sigmoid, "jax.nn"),
    "hard_sigmoid": (jax.nn.hard_sigmoid, "jax.nn"),
    "hard_tanh": (jax.nn.hard_tanh, "jax.nn"),
    "hard_silu": (jax.nn.hard_silu, "jax.nn"),
    "softmax": (jax.nn.softmax, "jax.nn"),
    "log_softmax": (jax.nn.log_softmax, "jax.nn"),
}
