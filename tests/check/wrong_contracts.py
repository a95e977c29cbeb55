"""Wrong rules that break another law: values, types, linearity, finiteness, accuracy, order 2."""

import jax
import jax.numpy as jnp
from check.wrong_entry import array, integers, normal, one_hot, positive, pull, vjp, where, wrong
from jax import lax
from jax.nn import log_softmax, sigmoid, softmax
from jax.scipy.special import logsumexp


def affine(x, w, b):
    return x @ w + b


def dense(params, x):
    return x @ params["w"] + params["b"]


def scale(x, gamma):
    return x * gamma


def matmul(a, b):
    return a @ b


def tempered(x, temperature):
    return softmax(x / temperature)


def layer_norm(x, eps):
    d = x - x.mean(-1, keepdims=True)
    return d * lax.rsqrt((d * d).mean(-1, keepdims=True) + eps)


def layer_norm_by(x, dy, mean, rate):
    y = (x - mean) * rate
    return (rate * (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True)),)


def layer_norm_one_pass(eps, x, dy):
    m = x.mean(-1, keepdims=True)
    return layer_norm_by(x, dy, m, lax.rsqrt((x * x).mean(-1, keepdims=True) - m * m + eps))


def moments(x):
    return x.mean(0), x.var(0)


def moments_bwd(x, dout):
    return ((dout[0] + 2 * dout[1] * (x - x.mean(0))) / len(x),)


def norm(x):
    return jnp.sqrt((x * x).sum(-1))


def safe_norm(x):
    """‖x‖, with gradient 0 at 0."""
    s = (x * x).sum(-1)
    return jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1)), 0)


def softmax_bwd(x, dy):
    y = softmax(x)
    return (y * (dy - (y * dy).sum(-1, keepdims=True)),)


def softplus(x):
    return jnp.logaddexp(x, 0)


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(log_softmax(logits), labels[:, None], 1).sum()


def gelu(x):
    return 0.5 * x * lax.erfc(-x * 0.5**0.5)


def gelu_bwd(x, dy):
    cdf = 0.5 * (1 + lax.erf(x * 0.5**0.5))
    return (dy * (cdf + x * jnp.exp(-x * x / 2) * 0.3989422804014327),)


def rms_norm_half(x):
    """The sum is in float32."""
    wide = x.astype(jnp.float32) if x.dtype == jnp.float16 else x
    return (wide * lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-3)).astype(x.dtype)


def rms_norm_half_bwd(x, dy):
    r = lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-3)
    return (r * dy - r**3 * x * (dy * x).mean(-1, keepdims=True),)


def plogp(p):
    return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0).sum()


def masked_softmax(x, mask):
    return jnp.where(mask, softmax(jnp.where(mask, x, -jnp.inf)), 0)


def masked_softmax_bwd(x, mask, dy):
    z = jnp.where(mask, x, -jnp.inf)
    y = softmax(z)
    d = y * (dy - (y * dy).sum(-1, keepdims=True))
    return d + 0 * z, None  # 0 · ∞


@jax.custom_jvp
def table_of_cosines(x):
    return jnp.cos(x)


# A constant as far as JAX knows.
table_of_cosines.defjvp(lambda x, dx: (table_of_cosines(*x), jnp.zeros_like(*dx)))


# Right as long as nobody differentiates it.
SIGMOID = vjp(lambda x: sigmoid(x), lambda x, dy: (dy * sigmoid(x),))

X, W, B = normal(5, 3), normal(3, 4), normal(4)
DENSE = {"w": W, "b": B}
HALF = jnp.bfloat16

CONTRACTS = [
    # Another ε in fwd.
    wrong("value_eps", "value", "out", layer_norm, (X, 1e-3),
          lambda eps, x, dy: pull(lambda x: layer_norm(x, eps), x, dy),
          lambda x, eps: (layer_norm(x, 1e-5), (x,)), nondiff=(1,)),
    # The unbiased variance in fwd.
    wrong("value_second_output", "value", "out[1]", moments, (X,), moments_bwd,
          lambda x: ((x.mean(0), x.var(0, ddof=1)), (x,))),
    # fwd returns the logarithm.
    wrong("value_log_softmax", "value", "out", lambda x: softmax(x), (X,), softmax_bwd,
          lambda x: (log_softmax(x), (x,))),
    # fwd forgets the bias.
    wrong("value_bias", "value", "out", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy.sum(0)),
          lambda x, w, b: (x @ w, (x, w, b))),
    # fwd is in bfloat16.
    wrong("value_bf16", "value|accuracy", "out", matmul, (X, W),
          lambda a, b, dy: (dy @ b.T, a.T @ dy),
          lambda a, b: ((a.astype(HALF) @ b.astype(HALF)).astype(a.dtype), (a, b))),
    # One cotangent for three arguments.
    wrong("structure_one_of_three", "structure", "", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T,)),
    # The cotangent is not in a tuple.
    wrong("structure_no_tuple", "structure", "", lambda x: jnp.sin(x), (X,),
          lambda x, dy: dy * jnp.cos(x)),
    # A cotangent for the static argument too.
    wrong("structure_static", "structure", "", lambda x, n: x**n, (X, 3),
          lambda n, x, dy: (n * dy * x ** (n - 1), None), nondiff=(1,)),
    # The dict lacks a key.
    wrong("structure_missing_key", "structure", "params['b']", dense, (DENSE, X),
          lambda params, x, dy: ({"w": x.T @ dy}, dy @ params["w"].T)),
    # A tuple for a dict.
    wrong("structure_tuple_for_dict", "structure", "params", dense, (DENSE, X),
          lambda params, x, dy: ((x.T @ dy, dy.sum(0)), dy @ params["w"].T)),
    # The sum over the batch is forgotten.
    wrong("shape_bias", "shape", "b", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy)),
    # (out, in) for (in, out).
    wrong("shape_transposed", "shape", "w", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, dy.T @ x, dy.sum(0))),
    # The scalar's cotangent is not summed.
    wrong("shape_scalar", "shape", "temperature", tempered, (X, array(1.7)),
          lambda x, t, dy: (pull(tempered, x, t, dy)[0],
                            -softmax_bwd(x / t, dy)[0] * x / t**2)),
    # The axis of size 1 is lost.
    wrong("shape_keepdims", "shape", "gamma", scale, (X, normal(1, 3)),
          lambda x, gamma, dy: (dy * gamma, (dy * x).sum(0))),
    # A leaf in a dict.
    wrong("shape_leaf", "shape", "params['b']", dense, (DENSE, X),
          lambda params, x, dy: (
              {"w": x.T @ dy, "b": dy.sum(0, keepdims=True)}, dy @ params["w"].T)),
    # float32 for a bfloat16 argument.
    wrong("dtype_wide", "dtype", "gamma", scale, (normal(5, 3, dtype=HALF), normal(3, dtype=HALF)),
          lambda x, gamma, dy: (dy * gamma, (dy * x).astype(jnp.float32).sum(0))),
    # bfloat16 weights over float32 data: the cotangent has the dtype of the data.
    wrong("dtype_mixed", "dtype", "w", lambda x, w: x @ w.astype(x.dtype),
          (X, normal(3, 4, dtype=HALF)),
          lambda x, w, dy: (dy @ w.astype(dy.dtype).T, x.T @ dy)),
    # float16 for a float32 argument.
    wrong("dtype_narrow", "dtype|gradient|accuracy", "x", lambda x: jnp.sin(x), (X,),
          lambda x, dy: ((dy * jnp.cos(x)).astype(jnp.float16),)),
    # No gradient for γ.
    wrong("none_gamma", "none", "gamma", scale, (X, normal(3)),
          lambda x, gamma, dy: (dy * gamma, None)),
    # No gradient for the soft labels.
    wrong("none_labels", "none", "q", lambda x, q: -(q * log_softmax(x)).sum(-1),
          (X, positive(5, 3)),
          lambda x, q, dy: (dy[:, None] * (softmax(x) * q.sum(-1, keepdims=True) - q), None)),
    # No gradient for a leaf in a dict.
    wrong("none_leaf", "none", "params['b']", dense, (DENSE, X),
          lambda params, x, dy: ({"w": x.T @ dy, "b": None}, dy @ params["w"].T)),
    # The cotangent is clipped.
    wrong("linearity_clip", "linearity", "x", lambda x: jnp.sin(x), (X,),
          lambda x, dy: (jnp.clip(dy, -0.1, 0.1) * jnp.cos(x),)),
    # Clipped by the global norm.
    wrong("linearity_global_norm", "linearity", "x", lambda x: jnp.sin(x), (X,),
          lambda x, dy: (dy * jnp.cos(x) / jnp.maximum(1, jnp.sqrt((dy * dy).sum())),)),
    # The square of the cotangent.
    wrong("linearity_square", "linearity", "b", affine, (X, W, B),
          lambda x, w, b, dy: (dy @ w.T, x.T @ dy, (dy * dy).sum(0))),
    # The absolute value of the cotangent.
    wrong("linearity_abs", "linearity", "gamma", scale, (X, normal(3)),
          lambda x, gamma, dy: (dy * gamma, (jnp.abs(dy) * x).sum(0))),
    # Weight decay within the rule.
    wrong("linearity_weight_decay", "linearity", "w", lambda x, w: x @ w, (X, W),
          lambda x, w, dy: (dy @ w.T, x.T @ dy + 1e-4 * w)),
    # Guided backpropagation: only positive cotangents pass.
    wrong("linearity_guided_relu", "linearity", "x", lambda x: jax.nn.relu(x), (X,),
          lambda x, dy: (where((x > 0) & (dy > 0), dy),)),
    # Small cotangents are dropped.
    wrong("linearity_threshold", "linearity", "x", lambda x: jnp.tanh(x), (X,),
          lambda x, dy: (where(jnp.abs(dy) > 0.1, dy) * (1 - jnp.tanh(x) ** 2),)),
    # 0 / 0 at 0.
    wrong("nonfinite_norm", "nonfinite", "x", safe_norm, (X.at[2].set(0),),
          lambda x, dy: (dy[:, None] * x / norm(x)[:, None],)),
    # ∞ / ∞.
    wrong("nonfinite_softplus", "nonfinite", "x", softplus, (array([-2000, -3, 0.5, 2000]),),
          lambda x, dy: (dy * jnp.exp(x) / (1 + jnp.exp(x)),)),
    # The exponential without its maximum taken off.
    wrong("nonfinite_logsumexp", "nonfinite", "x", lambda x: logsumexp(x, -1), (X + 1000,),
          lambda x, dy: (dy[:, None] * jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),)),
    # y / x for the product of the others.
    wrong("nonfinite_product", "nonfinite", "x", lambda x: x.prod(-1), (X.at[1, 2].set(0),),
          lambda x, dy: ((dy * x.prod(-1))[:, None] / x,)),
    # log 0, where the plain forward has a second `where`.
    wrong("nonfinite_plogp", "nonfinite", "p", plogp, (positive(5).at[3].set(0),),
          lambda p, dy: (dy * jnp.where(p > 0, 1, 0) * (jnp.log(p) + 1),)),
    # 0 · ∞ for masked logits.
    wrong("nonfinite_mask", "nonfinite", "x", masked_softmax,
          (X, array([[1, 1, 0]] * 5, bool)), masked_softmax_bwd),
    # x² overflows in float16, and its reciprocal is 0.
    wrong("accuracy_float16", "accuracy", "x", rms_norm_half,
          (300 * normal(4, 8, dtype=jnp.float16),), rms_norm_half_bwd),
    # The logsumexp has the rounding of numbers near 1000.
    wrong("accuracy_logsumexp", "accuracy", "x", lambda x: logsumexp(x, -1), (X + 1000,),
          lambda x, dy: (dy[:, None] * jnp.exp(x - logsumexp(x, -1, keepdims=True)),)),
    # The same in the cross entropy.
    wrong("accuracy_cross_entropy", "accuracy", "logits", cross_entropy,
          (normal(5, 4) - 3000, integers(4, 5)),
          lambda x, labels, dy: (
              dy * (jnp.exp(x - logsumexp(x, -1, keepdims=True)) - one_hot(labels, x)), None)),
    # 1 + erf cancels in the tail.
    wrong("accuracy_gelu", "accuracy", "x", gelu, (array([-5.4, -5.0, -4.5, -4.0]),), gelu_bwd),
    # 1 − 1 / (1 + eˣ) cancels for negative x.
    wrong("accuracy_softplus", "accuracy", "x", softplus, (array([-14.0, -12.0, -9.0, -16.0]),),
          lambda x, dy: (dy * (1 - 1 / (1 + jnp.exp(x))),)),
    # E x² − (E x)² cancels for a large mean.
    wrong("accuracy_variance", "accuracy", "x", layer_norm, (X + 100, 1e-5), layer_norm_one_pass,
          nondiff=(1,)),
    # The residual is saved in bfloat16.
    wrong("accuracy_residual", "accuracy|gradient", "x", lambda x: jnp.sin(x), (X,),
          lambda x, dy: (dy * jnp.cos(x.astype(dy.dtype)),),
          lambda x: (jnp.sin(x), (x.astype(HALF),))),
    # The residual is a constant.
    wrong("order2_stop_gradient", "second derivative", "x", lambda x: x**3, (X,),
          lambda x, dy: (3 * dy * lax.stop_gradient(x) ** 2,)),
    # The norm in the residuals is a constant.
    wrong("order2_norm", "second derivative", "x", norm, (X,),
          lambda x, dy: (dy[:, None] * x / lax.stop_gradient(norm(x))[:, None],)),
    # bwd calls a function whose own rule is wrong.
    wrong("order2_inner_rule", "second derivative", "x", softplus, (X,),
          lambda x, dy: (dy * SIGMOID(x),)),
    # The saved softmax is a constant.
    wrong("order2_residual", "second derivative", "x", lambda x: softmax(x), (X,),
          lambda y, dy: (y * (dy - (y * dy).sum(-1, keepdims=True)),),
          lambda x: (softmax(x), (lax.stop_gradient(softmax(x)),))),
    # The derivative is from a table without a derivative.
    wrong("order2_table", "second derivative", "x", lambda x: jnp.sin(x), (X,),
          lambda x, dy: (dy * table_of_cosines(x),)),
]  # fmt: skip
