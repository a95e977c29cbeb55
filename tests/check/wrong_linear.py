"""Wrong rules of linear maps: dense layers, products, convolutions, complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from check.wrong_entry import array, normal, positive, pull, where, wrong
from jax import lax


def affine(x, w, b):
    return x @ w + b


def matmul(a, b):
    return a @ b


def dense_relu(x, w, b):
    return jnp.maximum(x @ w + b, 0)


def gated(x, u, v):
    return (x @ u) * jax.nn.sigmoid(x @ v)


def gated_bwd(x, u, v, dy):
    h, s = x @ u, jax.nn.sigmoid(x @ v)
    dv = dy * h * s * (1 - s)
    return (dy * s) @ u.T + dv @ v.T, x.T @ dy, x.T @ dv


def lora(x, w, a, b, scale):
    return x @ w + scale * (x @ a) @ b


def weight_norm(x, v, g):
    return x @ (g * v / jnp.linalg.norm(v, axis=0))


def weight_norm_bwd(x, v, g, dy):
    n = jnp.linalg.norm(v, axis=0)
    dw = x.T @ dy
    return dy @ (g * v / n).T, g * dw / n, (dw * v / n).sum(0)


def bilinear(x, a, y):
    return jnp.einsum("ni,ij,nj->n", x, a, y)


def bilinear_bwd(x, a, y, dz):
    da = jnp.einsum("ni,nj,n->ji", x, y, dz)
    return dz[:, None] * (y @ a.T), da, dz[:, None] * (x @ a)


def quadratic(x, a):
    return x @ a @ x


def conv(x, k, b, stride=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, k, (stride, stride), "SAME", dimension_numbers=dims) + b


def conv_unflipped(stride, x, k, b, dy):
    _, dk, db = pull(lambda *a: conv(*a, stride), x, k, b, dy)
    return conv(dy, k.swapaxes(2, 3), 0.0), dk, db


def conv_bias_mean(stride, x, k, b, dy):
    dx, dk, _ = pull(lambda *a: conv(*a, stride), x, k, b, dy)
    return dx, dk, dy.mean((0, 1, 2))


def conv1d(x, k):
    return jnp.stack([jnp.convolve(row, k, mode="full") for row in x])


def conv1d_bwd(x, k, dy):
    n, m = x.shape[1], k.shape[0]
    dx = jnp.stack([jnp.correlate(row, k, mode="valid") for row in dy])
    return dx, jnp.stack([(x * dy[:, m - 1 - i : m - 1 - i + n]).sum() for i in range(m)])


def scaled_sum(*xs):
    return sum((i + 1) * x for i, x in enumerate(xs))


def multiply(z, w):
    return z * w


def power_of(z):
    return jnp.real(z) ** 2 + jnp.imag(z) ** 2


def solve(a, b):
    return jnp.linalg.solve(a, b)


def solve_bwd(a, b, dx):
    x = jnp.linalg.solve(a, b)
    db = jnp.linalg.solve(a.T, dx)
    return -x @ db.T, db


def inverse_bwd(a, dy):
    y = jnp.linalg.inv(a)
    return (-(y @ dy @ y).T,)


def trace_of(a, b):
    return jnp.trace(a @ b)


X, W, B = normal(5, 3), normal(3, 4), normal(4)
SQUARE = normal(4, 4)
REGULAR = array(np.asarray(normal(4, 4)) + 4 * np.eye(4))
Z, C = (array(np.asarray(normal(6, 2, seed=s)) @ np.array([1, 1j]), jnp.complex64) for s in (1, 3))

LINEAR = [
    # The mean over the batch belongs into the loss.
    wrong("dense_bias_mean", "gradient", "b", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy.mean(0))),
    # The sign.
    wrong("dense_dx_sign", "gradient", "x", affine, (X, W, B),
          lambda x, w, b, dy: (-dy @ w.T, x.T @ dy, dy.sum(0))),
    # 0.1 % too much.
    wrong("dense_dw_per_mille", "gradient", "w", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, 1.001 * (x.T @ dy), dy.sum(0))),
    # One element by 1 %.
    wrong("dense_dw_one_element", "gradient", "w", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, (x.T @ dy).at[2, 1].multiply(1.01), dy.sum(0))),
    # The last example does not count.
    wrong("dense_bias_last_row", "gradient", "b", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy[:-1].sum(0))),
    # Only one of the axes in front is summed over, of the other the first.
    wrong("dense_rank3_bias", "gradient", "b", affine, (normal(2, 5, 3), W, B),
          lambda x, w, b, dy: (
              dy @ w.T, jnp.einsum("bti,bto->io", x, dy), dy.sum(1)[0])),
    # The mean over the sequences.
    wrong("dense_rank3_dw_mean", "gradient", "w", affine, (normal(2, 5, 3), W, B),
          lambda x, w, b, dy: (
              dy @ w.T, jnp.einsum("bti,bto->bio", x, dy).mean(0), dy.sum((0, 1)))),
    # w for w.T, which a square matrix hides.
    wrong("matmul_dx_transpose", "gradient", "a", matmul, (normal(5, 4), SQUARE),
          lambda a, b, dy: (dy @ b, a.T @ dy)),
    # The transpose of the cotangent.
    wrong("matmul_dw_transpose", "gradient", "b", matmul, (normal(5, 4), SQUARE),
          lambda a, b, dy: (dy @ b.T, dy.T @ a)),
    # A batched right factor: the cotangent of a shared left one takes the first batch only.
    wrong("matmul_shared_left", "gradient", "a", matmul, (normal(5, 4), normal(3, 4, 2)),
          lambda a, b, dy: (dy[0] @ b[0].T, a.T @ dy)),
    # The residual is saved in bfloat16.
    wrong("dense_bf16_residual", "gradient|accuracy", "b", matmul, (X, W),
          lambda a, b, dy: (dy @ b.T, a.astype(dy.dtype).T @ dy),
          lambda a, b: (a @ b, (a.astype(jnp.bfloat16), b))),
    # The mask of the relu is forgotten in dx.
    wrong("dense_relu_dx_unmasked", "gradient", "x", dense_relu, (X, W, B),
          lambda x, w, b, dy: (
              dy @ w.T, x.T @ where(x @ w + b > 0, dy), where(x @ w + b > 0, dy).sum(0))),
    # The mask of the relu is taken before the bias.
    wrong("dense_relu_db_mask", "gradient", "b", dense_relu, (X, W, B),
          lambda x, w, b, dy: (
              where(x @ w + b > 0, dy) @ w.T, x.T @ where(x @ w + b > 0, dy),
              where(x @ w > 0, dy).sum(0))),
    # The gate is missing in du.
    wrong("gated_du", "gradient", "u", gated, (X, W, normal(3, 4, seed=1)), gated_bwd),
    # The scale is missing in da.
    wrong("lora_scale", "gradient", "a", lora, (X, W, normal(3, 2), normal(2, 4), 0.5),
          lambda scale, x, w, a, b, dy: (
              dy @ w.T + scale * dy @ b.T @ a.T, x.T @ dy,
              x.T @ dy @ b.T, scale * (x @ a).T @ dy),
          nondiff=(4,)),
    # dv is not projected to be orthogonal to v.
    wrong("weight_norm_projection", "gradient", "v", weight_norm, (X, W, positive(4)),
          weight_norm_bwd),
    # The outer product the other way round.
    wrong("bilinear_outer", "gradient", "a", bilinear,
          (normal(5, 4), SQUARE, normal(5, 4, seed=1)),
          bilinear_bwd),
    # x stands in the form twice; (a + aᵀ) x holds for every a, 2 a x for symmetric ones only.
    wrong("quadratic_form", "gradient", "x", quadratic, (normal(4), SQUARE),
          lambda x, a, dy: (2 * dy * (a @ x), dy * jnp.outer(x, x))),
    # The kernel is not flipped.
    wrong("conv_flip", "gradient", "x", conv,
          (normal(2, 5, 4, 3), normal(3, 3, 3, 2), normal(2), 1), conv_unflipped, nondiff=(3,)),
    # The mean over the positions.
    wrong("conv_bias_mean", "gradient", "b", conv,
          (normal(2, 5, 4, 3), normal(3, 3, 3, 2), normal(2), 2), conv_bias_mean, nondiff=(3,)),
    # The taps in reverse order.
    wrong("conv1d_taps", "gradient", "k", conv1d, (normal(2, 7), normal(3)), conv1d_bwd),
    # The weight of the third argument of *xs is that of the second.
    wrong("varargs_weight", "gradient", "xs[2]", scaled_sum, tuple(normal(4, 3, seed=s) for s in
          range(3)), lambda *a: (a[-1], 2 * a[-1], 2 * a[-1])),
    # The convention of PyTorch: JAX does not conjugate.
    wrong("complex_product_conjugate", "gradient", "w", multiply, (Z, C),
          lambda z, w, dy: (dy * w, dy * jnp.conj(z))),
    # As above; in JAX the gradient of |z|² is 2 z̄.
    wrong("complex_power_conjugate", "gradient", "z", power_of, (Z,),
          lambda z, dy: (2 * lax.complex(dy * jnp.real(z), dy * jnp.imag(z)),)),
    # −db xᵀ, not −x dbᵀ.
    wrong("solve_da_transpose", "gradient", "a", solve,
          (REGULAR, normal(4, 4, seed=1)), solve_bwd),
    # y dy y is transposed as a whole; each factor must be: yᵀ dy yᵀ.
    wrong("inverse_transpose", "gradient", "a", jnp.linalg.inv,
          (REGULAR,), inverse_bwd),
    # b for bᵀ.
    wrong("trace_transpose", "gradient", "a", trace_of, (SQUARE, normal(4, 4, seed=1)),
          lambda a, b, dy: (dy * b, dy * a.T)),
    # Broadcasting along an axis of size 1: the sum over the other axis too.
    wrong("scale_column_mean", "gradient", "s", lambda x, s: x * s, (X, normal(5, 1)),
          lambda x, s, dy: (dy * s, (dy * x).mean(1, keepdims=True))),
    # The scalar gets the cotangent of the first row.
    wrong("scalar_gain", "gradient", "gain", lambda x, gain: gain * x, (X, array(0.7)),
          lambda x, gain, dy: (gain * dy, (dy[0] * x[0]).sum())),
]  # fmt: skip
