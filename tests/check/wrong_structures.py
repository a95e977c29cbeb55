"""Wrong rules of pytrees of parameters, recurrence, indexing, dropout and pooling."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from check.wrong_entry import array, integers, normal, positive, pull, where, wrong
from jax import lax


class State(NamedTuple):
    h: jax.Array
    c: jax.Array


def mlp(params, x):
    """Two layers: a list of dicts."""
    first, second = params
    return jnp.tanh(x @ first["w"] + first["b"]) @ second["w"] + second["b"]


def mlp_bwd(params, x, dy):
    first, second = params
    h = jnp.tanh(x @ first["w"] + first["b"])
    dz = dy @ second["w"].T * (1 - h * h)
    dfirst = {"w": x.T @ dz, "b": dz.sum(0)}
    dsecond = {"w": (x @ first["w"] + first["b"]).T @ dy, "b": dy.sum(0)}  # tanh is forgotten
    return [dfirst, dsecond], dz @ first["w"].T


def dense(params, x):
    return x @ params["w"] + params["b"]


def nested(params, x):
    return x * params["norm"]["scale"] + params["norm"]["shift"]


def lstm_cell(state, gates):
    i, f, g, o = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return State(state.h + jax.nn.sigmoid(o) * jnp.tanh(c), c)


def lstm_cell_bwd(state, gates, dnew):
    i, _, _, o = jnp.split(gates, 4)
    c = lstm_cell(state, gates).c
    dc = dnew.c + dnew.h * jax.nn.sigmoid(o) * (1 - jnp.tanh(c) ** 2)
    _, dgates = pull(lstm_cell, state, gates, dnew)
    return State(dnew.h, dc * jax.nn.sigmoid(i)), dgates  # i for f


def rnn(x, h, w):
    """The last state of h ← tanh(x + h w)."""
    return lax.scan(lambda h, x: (jnp.tanh(x + h @ w), None), h, x)[0]


def rnn_bwd(x, h, w, dy, through="tanh"):
    _, hs = lax.scan(lambda h, x: (jnp.tanh(x + h @ w), h), h, x)

    def step(carry, xh):
        dh, dw = carry
        x, h = xh
        dz = dh * (1 - jnp.tanh(x + h @ w) ** 2)
        used = jnp.tanh(x + h @ w) if through == "new" else h
        return (w @ dz, dw + jnp.outer(used, dz)), dz

    (dh, dw), dx = lax.scan(step, (dy, jnp.zeros_like(w)), (x, hs), reverse=True)
    return dx, dh, dw


def rnn_truncated(x, h, w, dy):
    dx, dh, dw = rnn_bwd(x, h, w, dy)
    return dx.at[0].set(0), dh, dw


def moving_average(x, decay):
    """y_t = decay y_(t−1) + (1 − decay) x_t."""
    step = lambda y, x: (decay * y + (1 - decay) * x,) * 2
    return lax.scan(step, jnp.zeros_like(x[0]), x)[1]


def moving_average_bwd(x, decay, dy):
    _, ddecay = pull(moving_average, x, decay, dy)
    step = lambda d, dy: (decay * (d + dy), (1 - decay) * dy)  # d is not passed on
    return lax.scan(step, jnp.zeros_like(dy[0]), dy, reverse=True)[1], ddecay


def embedding(table, ids):
    return table[ids]


def dropout(x, key, rate):
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return where(keep, x) / (1 - rate)


def keep_of(key, rate, x):
    return jax.random.bernoulli(key, 1 - rate, x.shape)


def average_pool(x):
    return x.reshape(len(x), -1, 2).mean(-1)


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 2), "VALID")


def max_pool_bwd(x, dy):
    """Of overlapping windows the last wins."""
    dx = jnp.zeros_like(x)
    for j in range(dy.shape[1]):
        best = x[:, 2 * j : 2 * j + 3].argmax(1) + 2 * j
        dx = dx.at[jnp.arange(len(x)), best].set(dy[:, j])
    return (dx,)


def gather_rows(x, order):
    return x[order]


def sort(x):
    return jnp.sort(x)


def route(x, gates):
    """The two largest gates, and the rows they choose."""
    weights, chosen = lax.top_k(gates, 2)
    return weights @ x[chosen], chosen


def route_bwd(x, gates, dout):
    dy, _ = dout  # the second output has integers
    weights, chosen = lax.top_k(gates, 2)
    dx = jnp.zeros_like(x).at[chosen].set(jnp.outer(weights, dy))
    return dx, jnp.zeros_like(gates).at[chosen].set(x[chosen] @ dy * weights)


def pad(x, width):
    return jnp.pad(x, width)


def roll(x, shift):
    return jnp.roll(x, shift, 0)


def cumulative(x):
    return jnp.cumsum(x, 0)


def segment_mean(x, segments, count):
    n = jnp.zeros(count, x.dtype).at[segments].add(1.0)
    return jnp.zeros((count, *x.shape[1:]), x.dtype).at[segments].add(x) / n[:, None]


def interpolate(table, position):
    i = jnp.floor(position).astype(jnp.int32)
    t = position - i.astype(position.dtype)
    return table[i] * (1 - t) + table[i + 1] * t


def interpolate_bwd(table, position, dy):
    i = jnp.floor(position).astype(jnp.int32)
    t = position - i.astype(position.dtype)
    dtable = jnp.zeros_like(table).at[i].add(dy * (1 - t))  # the right neighbour is forgotten
    return dtable, dy * (table[i + 1] - table[i])


def rotary(x, angle):
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate(
        [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1
    )


def rotary_bwd(x, angle, dy):
    return rotary(dy, angle), pull(rotary, x, angle, dy)[1]  # to be rotated back


def sgd_step(params, grads, learning_rate):
    return jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)


def sgd_step_bwd(params, grads, learning_rate, dnew):
    d = jax.tree.map(lambda d: -learning_rate * d, dnew)
    return (
        dnew,
        {**d, "b": -d["b"]},
        pull(lambda r: sgd_step(params, grads, learning_rate=r), learning_rate, dnew)[0],
    )


LAYERS = [
    {"w": normal(3, 4), "b": normal(4)},
    {"w": normal(4, 2), "b": normal(2)},
]
DENSE = {"w": normal(3, 4), "b": normal(4)}
NORM = {"norm": {"scale": positive(5), "shift": normal(5)}}
X, KEY = normal(6, 3), jax.random.key(3)
SEQUENCE = (normal(5, 3), normal(3), normal(3, 3))

STRUCTURES = [
    # The second layer's input is taken before the activation.
    wrong("mlp_before_tanh", "gradient", "params[1]['w']", mlp, (LAYERS, X), mlp_bwd),
    # A mean in one leaf of a dict.
    wrong("dict_bias_mean", "gradient", "params['b']", dense, (DENSE, X),
          lambda params, x, dy: ({"w": x.T @ dy, "b": dy.mean(0)}, dy @ params["w"].T)),
    # A leaf two levels down.
    wrong("nested_scale", "gradient", "params['norm']['scale']", nested, (NORM, normal(4, 5)),
          lambda params, x, dy: (
              {"norm": {"scale": dy.sum(0), "shift": dy.sum(0)}}, dy * params["norm"]["scale"])),
    # The input gate for the forget gate.
    wrong("lstm_forget_gate", "gradient", "state.c", lstm_cell,
          (State(normal(3), normal(3, seed=1)), normal(12)), lstm_cell_bwd),
    # The new state for the old one.
    wrong("rnn_dw_shifted", "gradient", "w", rnn, SEQUENCE,
          lambda x, h, w, dy: rnn_bwd(x, h, w, dy, through="new")),
    # The gradient stops one step before the start.
    wrong("rnn_truncated", "gradient", "x", rnn, SEQUENCE, rnn_truncated),
    # The carry is not passed on.
    wrong("moving_average_carry", "gradient", "x", moving_average, (normal(6, 2), array(0.8)),
          moving_average_bwd),
    # Repeated ids: the last one wins.
    wrong("embedding_repeated", "gradient", "table", embedding,
          (normal(5, 3), array([[1, 4, 1], [0, 1, 4]], jnp.int32)),
          lambda table, ids, dy: (jnp.zeros_like(table).at[ids].set(dy), None)),
    # The padding row gets no gradient, of which the plain forward knows nothing.
    wrong("embedding_padding", "gradient", "table", embedding, (normal(5, 3), integers(3, 8)),
          lambda table, ids, dy: (jnp.zeros_like(table).at[ids].add(dy).at[0].set(0), None)),
    # Negative ids count from the end; here they are clipped.
    wrong("embedding_negative", "gradient", "table", embedding,
          (normal(5, 3), array([1, -1, 2, -2], jnp.int32)),
          lambda table, ids, dy: (jnp.zeros_like(table).at[ids.clip(0)].add(dy), None)),
    # The scale 1 / (1 − rate) is missing.
    wrong("dropout_scale", "gradient", "x", dropout, (normal(6, 4), KEY, 0.3),
          lambda rate, x, key, dy: (where(keep_of(key, rate, x), dy), None), nondiff=(2,)),
    # The mask is drawn with the probability to drop, not to keep.
    wrong("dropout_mask", "gradient", "x", dropout, (normal(6, 4), KEY, 0.3),
          lambda rate, x, key, dy: (where(keep_of(key, 1 - rate, x), dy) / (1 - rate), None),
          nondiff=(2,)),
    # Another key.
    wrong("dropout_key", "gradient", "x", dropout, (normal(6, 4), KEY, 0.3),
          lambda rate, x, key, dy: (
              where(keep_of(jax.random.fold_in(key, 1), rate, x), dy) / (1 - rate), None),
          nondiff=(2,)),
    # 1 / 2 is missing.
    wrong("average_pool_factor", "gradient", "x", average_pool, (normal(3, 6),),
          lambda x, dy: (jnp.repeat(dy, 2, 1),)),
    # The windows in the wrong order.
    wrong("average_pool_order", "gradient", "x", average_pool, (normal(3, 6),),
          lambda x, dy: (jnp.tile(dy, 2) / 2,)),
    # An element that is the maximum of two windows gets one of the cotangents.
    wrong("max_pool_overlap", "gradient", "x", max_pool, (normal(3, 9),), max_pool_bwd),
    # The permutation for its inverse.
    wrong("permutation_inverse", "gradient", "x", gather_rows,
          (normal(5, 2), array([1, 2, 0, 4, 3], jnp.int32)),
          lambda x, order, dy: (dy[order], None)),
    # Sorted by the permutation itself, not by its inverse.
    wrong("sort_inverse", "gradient", "x", sort, (normal(7),),
          lambda x, dy: (dy[jnp.argsort(x)],)),
    # The gate's weight is a factor once too often.
    wrong("top_k_gates", "gradient", "gates", route, (normal(5, 3), normal(5)), route_bwd),
    # Both sides are padded; here the slice starts at 0.
    wrong("pad_offset", "gradient", "x", pad, (normal(3, 4), 1),
          lambda width, x, dy: (dy[: x.shape[0], : x.shape[1]],), nondiff=(1,)),
    # Rolled on, not back.
    wrong("roll_direction", "gradient", "x", roll, (normal(5, 2), 1),
          lambda shift, x, dy: (jnp.roll(dy, shift, 0),), nondiff=(1,)),
    # The sum from the start, not from the end.
    wrong("cumsum_direction", "gradient", "x", cumulative, (normal(5, 2),),
          lambda x, dy: (jnp.cumsum(dy, 0),)),
    # The sum without the element itself.
    wrong("cumsum_exclusive", "gradient", "x", cumulative, (normal(5, 2),),
          lambda x, dy: (jnp.cumsum(dy[::-1], 0)[::-1] - dy,)),
    # The size of the segment is missing.
    wrong("segment_mean_size", "gradient", "x", segment_mean,
          (normal(6, 2), array([0, 1, 1, 2, 0, 1], jnp.int32), 3),
          lambda count, x, segments, dy: (dy[segments], None), nondiff=(2,)),
    # The right neighbour is forgotten.
    wrong("interpolate_neighbour", "gradient", "table", interpolate,
          (normal(6), array([0.3, 2.6, 2.1, 4.9])), interpolate_bwd),
    # The inverse of a rotation turns the other way.
    wrong("rotary_direction", "gradient", "x", rotary, (normal(3, 8), normal(3, 4)), rotary_bwd),
    # Keyword arguments with a dict: the sign of one leaf.
    wrong("sgd_sign", "gradient", "grads['b']", sgd_step, (DENSE,), sgd_step_bwd,
          grads={"w": normal(3, 4, seed=1), "b": normal(4, seed=1)}, learning_rate=array(0.1)),
    # The axes are moved there, and not back.
    wrong("transpose_inverse", "gradient", "x", lambda x: x.transpose(1, 2, 0), (normal(3, 3, 3),),
          lambda x, dy: (dy.transpose(1, 2, 0),)),
    # Two reshapes of the same shape: rows for columns.
    wrong("fold_heads", "gradient", "x", lambda x: x.reshape(4, 2, 3).swapaxes(0, 1),
          (normal(4, 6),), lambda x, dy: (dy.reshape(4, 6),)),
    # One of three equal parts gets the cotangent of the next.
    wrong("split_heads", "gradient", "x", lambda x: jnp.split(x, 3), (normal(6),),
          lambda x, dout: (jnp.concatenate([dout[0], dout[2], dout[1]]),)),
    # The product of all elements: the quotient is by the element after.
    wrong("product_shift", "gradient", "x", lambda x: x.prod(), (positive(5),),
          lambda x, dy: (dy * x.prod() / jnp.roll(x, 1),)),
]  # fmt: skip
