"""Correct rules of products, convolutions and pooling."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from check.right_entry import NO_HALF, WIDE, Right, sizes, values
from jax import lax


@jax.custom_vjp
def affine(x, w, b):
    return x @ w + b


def affine_fwd(x, w, b):
    return x @ w + b, (x, w)


def affine_bwd(residuals, dy):
    x, w = residuals
    batch = tuple(range(dy.ndim - 1))
    return dy @ w.T, jnp.tensordot(x, dy, (batch, batch)), dy.sum(batch)


affine.defvjp(affine_fwd, affine_bwd)


@jax.custom_vjp
def dense(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def dense_fwd(params, x):
    y = dense.__wrapped__(params, x)
    return y, (params["w"], x, y)


def dense_bwd(residuals, dy):
    w, x, y = residuals
    dz = dy * (1 - y * y)
    return {"w": x.T @ dz, "b": dz.sum(0)}, dz @ w.T


dense.defvjp(dense_fwd, dense_bwd)


class Gated(NamedTuple):
    gate: Any
    up: Any
    down: Any


@jax.custom_vjp
def swiglu(params, x):
    return (jax.nn.silu(x @ params.gate) * (x @ params.up)) @ params.down


def swiglu_fwd(params, x):
    return swiglu.__wrapped__(params, x), (params, x)


def swiglu_bwd(residuals, dy):
    # Without the barrier XLA would merge the recomputation with the forward, and keep its results.
    params, x, dy = lax.optimization_barrier((*residuals, dy))
    a, u = x @ params.gate, x @ params.up
    s = jax.nn.sigmoid(a)
    dh = dy @ params.down.T
    du = dh * a * s
    da = dh * u * s * (1 + a * (1 - s))
    dparams = Gated(x.T @ da, x.T @ du, (a * s * u).T @ dy)
    return dparams, da @ params.gate.T + du @ params.up.T


swiglu.defvjp(swiglu_fwd, swiglu_bwd)


@jax.custom_vjp
def two_layers(layers, x):
    (w1, b1), (w2, b2) = layers
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def two_layers_fwd(layers, x):
    (w1, b1), (w2, b2) = layers
    h = jax.nn.relu(x @ w1 + b1)
    return h @ w2 + b2, (w1, w2, x, h)


def two_layers_bwd(residuals, dy):
    w1, w2, x, h = residuals
    dz = jnp.where(h > 0, dy @ w2.T, 0)
    return ((x.T @ dz, dz.sum(0)), (h.T @ dy, dy.sum(0))), dz @ w1.T


two_layers.defvjp(two_layers_fwd, two_layers_bwd)


@jax.custom_vjp
def matmul(a, b):
    return a @ b


matmul.defvjp(lambda a, b: (a @ b, (a, b)), lambda res, dy: (dy @ res[1].T, res[0].T @ dy))


@jax.custom_vjp
def batched_matmul(a, b):
    """(n or 1, i, k) @ (n or 1, k, j), where an axis of 1 is shared."""
    return jnp.matmul(a, b)


def batched_matmul_bwd(residuals, dy):
    a, b = residuals
    da, db = dy @ b.mT, a.mT @ dy
    if a.shape[0] != da.shape[0]:
        da = da.sum(0, keepdims=True)
    if b.shape[0] != db.shape[0]:
        db = db.sum(0, keepdims=True)
    return da, db


batched_matmul.defvjp(lambda a, b: (a @ b, (a, b)), batched_matmul_bwd)


@jax.custom_vjp
def bilinear(x, a, y):
    return jnp.einsum("ni,ij,nj->n", x, a, y)


def bilinear_bwd(residuals, dz):
    x, a, y = residuals
    g = dz[:, None]
    return g * (y @ a.T), (g * x).T @ y, g * (x @ a)


bilinear.defvjp(lambda x, a, y: (bilinear(x, a, y), (x, a, y)), bilinear_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(spec, a, b):
    return jnp.einsum(spec, a, b)


def contract_bwd(spec, residuals, dy):
    a, b = residuals
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    da = jnp.einsum(f"{out},{right}->{left}", dy, b)
    return da, jnp.einsum(f"{left},{out}->{right}", a, dy)


contract.defvjp(lambda spec, a, b: (contract(spec, a, b), (a, b)), contract_bwd)


@jax.custom_vjp
def conv1d(x, w):
    return lax.conv_general_dilated(x, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


def conv1d_bwd(residuals, dy):
    x, w = residuals
    n, taps = dy.shape[1], w.shape[0]
    dw = jnp.stack([jnp.einsum("nlc,nlo->co", x[:, k : k + n], dy) for k in range(taps)])
    padded = jnp.pad(dy, ((0, 0), (taps - 1, taps - 1), (0, 0)))
    return conv1d.__wrapped__(padded, w[::-1].swapaxes(1, 2)), dw


conv1d.defvjp(lambda x, w: (conv1d(x, w), (x, w)), conv1d_bwd)

NHWC = ("NHWC", "HWIO", "NHWC")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x, w, stride=1):
    return lax.conv_general_dilated(x, w, (stride, stride), "VALID", dimension_numbers=NHWC)


def conv2d_fwd(x, w, stride):
    return conv2d.__wrapped__(x, w, stride), (x, w)


def conv2d_bwd(stride, residuals, dy):
    x, w = residuals
    (_, height, width, _), (rows, cols, _, _) = dy.shape, w.shape
    pad = [
        (k - 1, n - (stride * (m - 1) + 1))
        for k, n, m in zip((rows, cols), x.shape[1:3], (height, width), strict=True)
    ]
    flipped = w[::-1, ::-1].swapaxes(2, 3)
    dx = lax.conv_general_dilated(
        dy, flipped, (1, 1), pad, lhs_dilation=(stride, stride), dimension_numbers=NHWC
    )
    down, across = stride * (height - 1) + 1, stride * (width - 1) + 1
    patch = lambda i, j: x[:, i : i + down : stride, j : j + across : stride]
    taps = [[patch(i, j) for j in range(cols)] for i in range(rows)]
    return dx, jnp.stack(
        [jnp.stack([jnp.einsum("nhwc,nhwo->co", t, dy) for t in row]) for row in taps]
    )


conv2d.defvjp(conv2d_fwd, conv2d_bwd)


@jax.custom_vjp
def causal_depthwise_conv(x, w):
    taps, n = w.shape[0], x.shape[-2]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(taps - 1, 0), (0, 0)])
    return sum(padded[..., k : k + n, :] * w[k] for k in range(taps))


def causal_depthwise_conv_bwd(residuals, dy):
    x, w = residuals
    taps, n = w.shape[0], x.shape[-2]
    lead = [(0, 0)] * (x.ndim - 2)
    ahead = jnp.pad(dy, [*lead, (0, taps - 1), (0, 0)])
    behind = jnp.pad(x, [*lead, (taps - 1, 0), (0, 0)])
    dx = sum(ahead[..., taps - 1 - k : taps - 1 - k + n, :] * w[k] for k in range(taps))
    batch = tuple(range(x.ndim - 1))
    return dx, jnp.stack([(behind[..., k : k + n, :] * dy).sum(batch) for k in range(taps)])


causal_depthwise_conv.defvjp(
    lambda x, w: (causal_depthwise_conv(x, w), (x, w)), causal_depthwise_conv_bwd
)


@jax.custom_vjp
def max_pool(x):
    """The maximum of each 2 by 2 patch of (n, 2h, 2w, c); ties share the gradient."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def max_pool_bwd(residuals, dy):
    x, y = residuals
    n, h, w, c = x.shape
    patches = x.reshape(n, h // 2, 2, w // 2, 2, c)
    chosen = (patches == y[:, :, None, :, None]).astype(dy.dtype)
    share = dy[:, :, None, :, None] / chosen.sum((2, 4), keepdims=True)
    return ((chosen * share).reshape(x.shape),)


def max_pool_fwd(x):
    y = max_pool.__wrapped__(x)
    return y, (x, y)


max_pool.defvjp(max_pool_fwd, max_pool_bwd)


@jax.custom_vjp
def max_pool_window(x):
    """The maximum of each pair of neighbours of (n, 2l, c); the first of a tie takes all."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID")


def max_pool_window_fwd(x):
    pairs = x.reshape(x.shape[0], -1, 2, x.shape[2])
    return pairs.max(2), pairs.argmax(2)


def max_pool_window_bwd(first, dy):
    chosen = jax.nn.one_hot(first, 2, axis=2, dtype=dy.dtype)
    return ((chosen * dy[:, :, None]).reshape(dy.shape[0], -1, dy.shape[2]),)


max_pool_window.defvjp(max_pool_window_fwd, max_pool_window_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def average_pool(x, size):
    return x.reshape(x.shape[0], -1, size, x.shape[2]).mean(2)


average_pool.defvjp(
    lambda x, size: (average_pool(x, size), None),
    lambda size, _, dy: (jnp.repeat(dy / size, size, axis=1),),
)


@jax.custom_vjp
def solve(a, b):
    return jnp.linalg.solve(a, b[..., None])[..., 0]


def solve_fwd(a, b):
    x = solve.__wrapped__(a, b)
    return x, (a, x)


def solve_bwd(residuals, dx):
    a, x = residuals
    db = solve.__wrapped__(a.mT, dx)
    return -db[..., None] * x[..., None, :], db


solve.defvjp(solve_fwd, solve_bwd)


def draw_affine(rng, dtype):
    *batch, n, m = sizes(rng, int(rng.integers(2, 5)))
    xs = values(rng, (*batch, n), dtype, "unit ten ties"), values(rng, (n, m), dtype, "unit ties")
    return (*xs, values(rng, (m,), dtype)), {}


def draw_dense(rng, dtype):
    b, n, m = sizes(rng, 3)
    params = {"w": values(rng, (n, m), dtype), "b": values(rng, (m,), dtype)}
    return (params, values(rng, (b, n), dtype)), {}


def draw_swiglu(rng, dtype):
    b, n, m = sizes(rng, 3)
    shapes = (n, m), (n, m), (m, n)
    return (Gated(*(values(rng, s, dtype) for s in shapes)), values(rng, (b, n), dtype)), {}


def draw_layers(rng, dtype):
    b, n, m, k = sizes(rng, 4)
    layer = lambda i, o: (values(rng, (i, o), dtype), values(rng, (o,), dtype))
    return ((layer(n, m), layer(m, k)), values(rng, (b, n), dtype)), {}


def draw_shapes(shapes, regimes="unit ten ties", high=5, **kwargs):
    """Arrays whose axes are the letters of `shapes`, as in an einsum."""

    def draw(rng, dtype):
        letters = sorted(set(shapes) - {" "})
        size = dict(zip(letters, sizes(rng, len(letters), high), strict=True))
        axes = [tuple(size[letter] for letter in s) for s in shapes.split()]
        return tuple(values(rng, s, dtype, regimes) for s in axes), dict(kwargs)

    return draw


def draw_batched(rng, dtype):
    n, i, k, j = sizes(rng, 4)
    a, b = [(n, n), (1, n), (n, 1)][rng.integers(3)]
    return (values(rng, (a, i, k), dtype), values(rng, (b, k, j), dtype)), {}


def draw_contract(rng, dtype):
    (a, b), _ = draw_shapes("bij bjk")(rng, dtype)
    return ("bij,bjk->bik", a, b), {}


def draw_conv(spatial, **kwargs):
    def draw(rng, dtype):
        (taps, n), (b, i, o) = sizes(rng, 2, 3), sizes(rng, 3, 3)
        x = values(rng, (b, *(taps + n + k for k in range(spatial)), i), dtype, "unit ten ties")
        return (x, values(rng, (*[taps] * spatial, i, o), dtype)), dict(kwargs)

    return draw


def draw_depthwise(rng, dtype):
    *batch, n, c, taps = sizes(rng, int(rng.integers(3, 5)), 4)
    return (values(rng, (*batch, n, c), dtype), values(rng, (taps, c), dtype)), {}


def draw_pool(rank, window=2, **kwargs):
    def draw(rng, dtype):
        n, *spatial, c = sizes(rng, rank, 3)
        shape = (n, *(window * s for s in spatial), c)
        return (values(rng, shape, dtype, "unit ten ties"),), dict(kwargs)

    return draw


def draw_system(rng, dtype):
    batch, n = sizes(rng, 2, 4)
    a = values(rng, (batch, n, n), dtype) + 4 * n * jnp.eye(n, dtype=dtype)
    return (a, values(rng, (batch, n), dtype)), {}


LINEAR = [
    Right("affine", affine, draw_affine),
    Right("dense, params in a dict", dense, draw_dense),
    Right("swiglu recomputed behind a barrier, params in a NamedTuple", swiglu, draw_swiglu, WIDE),
    Right("two layers, params in tuples", two_layers, draw_layers, NO_HALF),
    Right("matmul", matmul, draw_shapes("ik kj")),
    Right("batched matmul with a shared side", batched_matmul, draw_batched),
    Right("bilinear form", bilinear, draw_shapes("ni ij nj", "unit ties")),
    Right("einsum of a static string", contract, draw_contract),
    Right("1-d convolution", conv1d, draw_conv(1)),
    Right("2-d convolution", conv2d, draw_conv(2)),
    Right("2-d convolution with a stride", conv2d, draw_conv(2, stride=2)),
    Right("causal depthwise convolution", causal_depthwise_conv, draw_depthwise),
    Right("max pool, ties shared", max_pool, draw_pool(4)),
    Right("max pool, first of a tie", max_pool_window, draw_pool(3)),
    Right("average pool", average_pool, draw_pool(3, 3, size=3)),
    Right("linear solve", solve, draw_system, WIDE),
]
