"""Correct rules of reductions, indexing and sequences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from check.right_entry import NO_HALF, WIDE, Right, accumulator, arrays, integers, sizes, values
from jax import lax


@jax.custom_vjp
def embed(table, ids):
    return table[ids]


def embed_fwd(table, ids):
    return table[ids], (jnp.zeros_like(table), ids)


def embed_bwd(residuals, dy):
    zeros, ids = residuals
    return zeros.at[ids].add(dy), None


embed.defvjp(embed_fwd, embed_bwd)


@jax.custom_vjp
def gather(x, index):
    return jnp.take_along_axis(x, index, -1)


def gather_bwd(residuals, dy):
    x, index = residuals
    onehot = jax.nn.one_hot(index, x.shape[-1], dtype=dy.dtype)
    return (dy[..., None] * onehot).sum(-2), None


gather.defvjp(lambda x, index: (gather(x, index), (x, index)), gather_bwd)


@jax.custom_vjp
def scatter(x, index, updates):
    """Row index[i] of x becomes updates[i]; `index` has no repeats."""
    return x.at[index].set(updates)


scatter.defvjp(
    lambda x, index, updates: (scatter(x, index, updates), index),
    lambda index, dy: (dy.at[index].set(0), None, dy[index]),
)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def segment_sum(x, segments, n):
    return jnp.zeros((n, *x.shape[1:]), x.dtype).at[segments].add(x)


segment_sum.defvjp(
    lambda x, segments, n: (segment_sum(x, segments, n), segments),
    lambda n, segments, dy: (dy[segments], None),
)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def maximum_along(x, axis):
    return x.max(axis)


def maximum_along_fwd(x, axis):
    y = x.max(axis)
    return y, (x, y)


def maximum_along_bwd(axis, residuals, dy):
    x, y = residuals
    chosen = (x == jnp.expand_dims(y, axis)).astype(x.dtype)
    share = dy / chosen.sum(axis)  # the reference splits ties evenly
    return (chosen * jnp.expand_dims(share, axis),)


maximum_along.defvjp(maximum_along_fwd, maximum_along_bwd)


@jax.custom_vjp
def sort(x):
    return jnp.sort(x, -1)


def sort_fwd(x):
    order = jnp.argsort(x, -1)
    return jnp.take_along_axis(x, order, -1), order


def sort_bwd(order, dy):
    return (jnp.take_along_axis(dy, jnp.argsort(order, -1), -1),)


sort.defvjp(sort_fwd, sort_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def top_k(x, k):
    return tuple(lax.top_k(x, k))


def top_k_fwd(x, k):
    y, index = lax.top_k(x, k)
    return (y, index), (x, index)


def top_k_bwd(k, residuals, cotangents):
    x, index = residuals
    dy, _ = cotangents  # that of the indices is float0
    return (jnp.einsum("...k,...kn->...n", dy, jax.nn.one_hot(index, x.shape[-1], dtype=x.dtype)),)


top_k.defvjp(top_k_fwd, top_k_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def cumulative_sum(x, axis=-1):
    return jnp.cumsum(x, axis)


cumulative_sum.defvjp(
    lambda x, axis: (jnp.cumsum(x, axis), None),
    lambda axis, _, dy: (jnp.flip(jnp.cumsum(jnp.flip(dy, axis), axis), axis),),
)


def linear_recurrence_scan(a, x):
    def step(h, ax):
        h = ax[0] * h + ax[1]
        return h, h

    return lax.scan(step, jnp.zeros_like(x[0]), (a, x))[1]


@jax.custom_vjp
def linear_recurrence(a, x):
    """h[t] = a[t] h[t-1] + x[t]."""
    return linear_recurrence_scan(a, x)


def linear_recurrence_fwd(a, x):
    """The same sequence in logarithmic depth."""

    def join(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    h = lax.associative_scan(join, (a, x))[1]
    return h, (a, h)


def linear_recurrence_bwd(residuals, dh):
    a, h = residuals
    # The adjoint is the same recurrence, backwards in time, with a[t+1] for a[t].
    later = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    dx = linear_recurrence_scan(later[::-1], dh[::-1])[::-1]
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return dx * before, dx


linear_recurrence.defvjp(linear_recurrence_fwd, linear_recurrence_bwd)


@jax.custom_vjp
def rnn(params, h, xs):
    def step(h, x):
        h = jnp.tanh(x @ params["w"] + h @ params["u"] + params["b"])
        return h, h

    return lax.scan(step, h, xs)[1]


def rnn_fwd(params, h, xs):
    hs = rnn.__wrapped__(params, h, xs)
    return hs, (params, h, xs, hs)


def rnn_bwd(residuals, dhs):
    """Backpropagation through time."""
    params, h, xs, hs = residuals

    def step(carry, t):
        dh, dparams = carry
        x, before, after, dy = t
        dz = (dh + dy) * (1 - after * after)
        dparams = {
            "w": dparams["w"] + x.T @ dz,
            "u": dparams["u"] + before.T @ dz,
            "b": dparams["b"] + dz.sum(0),
        }
        return (dz @ params["u"].T, dparams), dz @ params["w"].T

    start = jnp.zeros_like(h), jax.tree.map(jnp.zeros_like, params)
    steps = xs, jnp.concatenate([h[None], hs[:-1]]), hs, dhs
    (dh, dparams), dxs = lax.scan(step, start, steps, reverse=True)
    return dparams, dh, dxs


rnn.defvjp(rnn_fwd, rnn_bwd)


@jax.custom_vjp
def lstm_cell(gates, c):
    """The new hidden and cell states, from the four gates (..., 4, n) before activation."""
    i, f, g, o = jnp.moveaxis(gates, -2, 0)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"h": jax.nn.sigmoid(o) * jnp.tanh(c), "c": c}


def lstm_cell_fwd(gates, c):
    return lstm_cell(gates, c), (gates, c)


def lstm_cell_bwd(residuals, dstate):
    gates, before = residuals
    i, f, g, o = jnp.moveaxis(gates, -2, 0)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    t = jnp.tanh(f * before + i * g)
    dc = dstate["c"] + dstate["h"] * o * (1 - t * t)
    di, df, dg = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g)
    do = dstate["h"] * t * o * (1 - o)
    return jnp.stack([di, df, dg, do], -2), dc * f


lstm_cell.defvjp(lstm_cell_fwd, lstm_cell_bwd)


@jax.custom_vjp
def attention(q, k, v, mask):
    """softmax(q kᵀ / √d) v where `mask`, of which no row is empty."""
    s = jnp.einsum("...qd,...kd->...qk", q, k) * q.shape[-1] ** -0.5
    s = jnp.where(mask, s.astype(accumulator(s)), -1e30)
    return jax.nn.softmax(s).astype(v.dtype) @ v


def attention_fwd(q, k, v, mask):
    s = jnp.einsum("...qd,...kd->...qk", q, k) * q.shape[-1] ** -0.5
    s = jnp.where(mask, s.astype(accumulator(s)), -1e30)
    p = jax.nn.softmax(s)
    return p.astype(v.dtype) @ v, (q, k, v, p)


def attention_bwd(residuals, dy):
    q, k, v, p = residuals
    dp = (dy @ v.mT).astype(p.dtype)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
    ds = ds.astype(q.dtype)
    return ds @ k, ds.mT @ q, p.astype(v.dtype).mT @ dy, None


attention.defvjp(attention_fwd, attention_bwd)


def causal_scores(q, k):
    s = q @ k.T * q.shape[-1] ** -0.5
    return jnp.where(jnp.tri(*s.shape, dtype=bool), s, -jnp.inf)


@jax.custom_vjp
def flash_attention(q, k, v):
    return jax.nn.softmax(causal_scores(q, k)) @ v


def flash_attention_fwd(q, k, v):
    """Saves one number per row in place of the matrix of probabilities."""
    s = causal_scores(q, k)
    log_z = jax.nn.logsumexp(s, -1, keepdims=True)
    y = jnp.exp(s - log_z) @ v
    return y, (q, k, v, y, log_z)


def flash_attention_bwd(residuals, dy):
    q, k, v, y, log_z = residuals
    p = jnp.exp(causal_scores(q, k) - log_z)
    ds = p * (dy @ v.T - (dy * y).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
    return ds @ k, ds.T @ q, p.T @ dy


flash_attention.defvjp(flash_attention_fwd, flash_attention_bwd)


def rotate(x, positions, base, sign):
    n = x.shape[-1] // 2
    dtype = accumulator(x)
    frequencies = base ** (-jnp.arange(n, dtype=dtype) / n)
    angles = positions[:, None].astype(dtype) * frequencies
    c, s = jnp.cos(angles).astype(x.dtype), sign * jnp.sin(angles).astype(x.dtype)
    a, b = x[..., :n], x[..., n:]
    return jnp.concatenate([a * c - b * s, b * c + a * s], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rope(x, positions, base=10000.0):
    return rotate(x, positions, base, 1)


rope.defvjp(
    lambda x, positions, base: (rotate(x, positions, base, 1), positions),
    lambda base, positions, dy: (rotate(dy, positions, base, -1), None),
)


def draw_embed(rng, dtype):
    n, d = sizes(rng, 2)
    ids = integers(rng, n, sizes(rng, int(rng.integers(0, 4))))
    return (values(rng, (n, d), dtype, "unit ten"), ids), {}


def draw_gather(rng, dtype):
    *batch, n, k = sizes(rng, int(rng.integers(2, 5)))
    return (values(rng, (*batch, n), dtype), integers(rng, n, (*batch, k))), {}


def draw_scatter(rng, dtype):
    n, d = sizes(rng, 2)
    index = jnp.asarray(rng.permutation(n)[: rng.integers(1, n + 1)], jnp.int32)
    return (values(rng, (n, d), dtype), index, values(rng, (index.size, d), dtype)), {}


def draw_segments(rng, dtype):
    n, m, d = sizes(rng, 3)
    return (values(rng, (n, d), dtype, "unit ten"), integers(rng, m, (n,)), m), {}


def draw_axis(rng, dtype):
    rank = int(rng.integers(1, 5))
    axis = int(rng.integers(-rank, rank))
    return (values(rng, sizes(rng, rank), dtype, "unit ties ten zeros"),), {"axis": axis}


def draw_top_k(rng, dtype):
    (x,), _ = arrays(1, (1, 3), "unit ties")(rng, dtype)
    return (x,), {"k": int(rng.integers(1, x.shape[-1] + 1))}


def draw_recurrence(rng, dtype):
    shape = sizes(rng, int(rng.integers(1, 4)), 7)
    a = jnp.asarray(rng.uniform(-1, 1, shape), dtype)
    return (a, values(rng, shape, dtype, "unit ties")), {}


def draw_rnn(rng, dtype):
    t, b, n, m = sizes(rng, 4, 4)
    params = {"w": (n, m), "u": (m, m), "b": (m,)}
    params = {name: values(rng, shape, dtype) / 2 for name, shape in params.items()}
    return (params, values(rng, (b, m), dtype), values(rng, (t, b, n), dtype)), {}


def draw_lstm(rng, dtype):
    *batch, n = sizes(rng, int(rng.integers(1, 3)))
    return (values(rng, (*batch, 4, n), dtype, "unit ties"), values(rng, (*batch, n), dtype)), {}


def draw_attention(rng, dtype):
    *batch, t, d = sizes(rng, int(rng.integers(2, 5)))
    mask = jnp.asarray((rng.random((t, t)) < 0.5) | np.eye(t, dtype=bool))
    return (*(values(rng, (*batch, t, d), dtype, "unit ties") for _ in "qkv"), mask), {}


def draw_rope(rng, dtype):
    *batch, t, d = sizes(rng, int(rng.integers(2, 4)))
    return (values(rng, (*batch, t, 2 * d), dtype, "unit ten"), integers(rng, 64, (t,))), {}


INDEXING = [
    Right("embedding of repeated ids", embed, draw_embed),
    Right("gather along the last axis", gather, draw_gather),
    Right("scatter of rows", scatter, draw_scatter),
    Right("segment sum", segment_sum, draw_segments),
    Right("maximum along an axis, ties shared", maximum_along, draw_axis),
    Right("sort", sort, arrays(1, (1, 3))),
    Right("top k and its integer indices", top_k, draw_top_k),
    Right("cumulative sum along an axis", cumulative_sum, draw_axis),
    Right("recurrence, a faster algorithm in fwd", linear_recurrence, draw_recurrence),
    Right("rnn by backpropagation through time", rnn, draw_rnn, WIDE),
    Right("lstm cell, a dict of outputs", lstm_cell, draw_lstm),
    Right("masked attention", attention, draw_attention, NO_HALF),
    Right("flash attention", flash_attention, arrays(3, (2, 2), "unit ties"), WIDE),
    Right("rotary embedding", rope, draw_rope),
]
