"""Wrong rules of elementwise functions, and of maxima and their ties."""

import jax
import jax.numpy as jnp
from check.wrong_entry import array, normal, positive, where, wrong
from jax import lax

ROOT = 0.7978845608028654  # √(2/π)


def gelu_tanh(x):
    return 0.5 * x * (1 + jnp.tanh(ROOT * (x + 0.044715 * x**3)))


def gelu_tanh_bwd(x, dy):
    t = jnp.tanh(ROOT * (x + 0.0447 * x**3))
    return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * ROOT * (1 + 3 * 0.0447 * x * x)),)


def gelu_tanh_inner(x, dy):
    t = jnp.tanh(ROOT * (x + 0.044715 * x**3))
    return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * ROOT * (1 + 0.044715 * x * x)),)


def gelu(x):
    return 0.5 * x * lax.erfc(-x * 0.5**0.5)


def silu(x):
    return x * jax.nn.sigmoid(x)


def silu_bwd(x, dy):
    s = jax.nn.sigmoid(x)
    return (dy * (s + s * (1 - s)),)


def swish(x, beta):
    return x * jax.nn.sigmoid(beta * x)


def swish_bwd(x, beta, dy):
    s = jax.nn.sigmoid(beta * x)
    return dy * (s + beta * x * s * (1 - s)), (dy * x * s * (1 - s)).sum()


def elu(x, alpha):
    return jnp.where(x > 0, x, alpha * jnp.expm1(x))


def prelu(x, alpha):
    return jnp.where(x > 0, x, alpha * x)


def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


def mish_bwd(x, dy):
    t = jnp.tanh(jax.nn.softplus(x))
    return (dy * (t + x * (1 - t * t)),)


def power(x, p):
    return x**p


def apply(x, f, df):
    return f(x)


def activate(x, kind="tanh"):
    return {"tanh": jnp.tanh, "sin": jnp.sin, "exp": jnp.exp}[kind](x)


def activate_bwd(kind, x, dy):
    return (dy * (jnp.exp(x) if kind == "exp" else 1 - activate(x, kind) ** 2),)


def lerp(a, b, t):
    return a + t * (b - a)


def select(mask, x, y):
    return jnp.where(mask, x, y)


def polar(r, angle):
    return r * jnp.cos(angle), r * jnp.sin(angle)


def polar_bwd(r, angle, dout):
    dx, dy = dout
    return jnp.cos(angle) * dx + jnp.sin(angle) * dy, r * (-jnp.sin(angle) * dx + dy)


def affine_power(x, exponent, shift):
    return (x + shift) ** exponent


def max_pool(x):
    return x.reshape(*x.shape[:-1], -1, 2).max(-1)


def max_pool_bwd(x, dy):
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    first = jax.nn.one_hot(pairs.argmax(-1), 2, dtype=dy.dtype)
    return ((first * dy[..., None]).reshape(x.shape),)


def maximum(a, b):
    return jnp.maximum(a, b)


X = normal(4, 5)
TIES = array([[1, 2, 2, 0, -1, -1], [0, 0, 3, 1, 1, 1]])

POINTWISE = [
    # A constant of four digits.
    wrong("gelu_constant", "gradient", "x", gelu_tanh, (X,), gelu_tanh_bwd),
    # The derivative of the cube without its 3.
    wrong("gelu_inner_derivative", "gradient", "x", gelu_tanh, (X,), gelu_tanh_inner),
    # The density is dropped.
    wrong("gelu_density", "gradient", "x", gelu, (X,),
          lambda x, dy: (dy * 0.5 * lax.erfc(-x * 0.5**0.5),)),
    # x is missing in the second term.
    wrong("silu_term", "gradient", "x", silu, (X,), silu_bwd),
    # x² for x.
    wrong("swish_beta", "gradient", "beta", swish, (X, array(1.3)), swish_bwd),
    # The square is missing.
    wrong("tanh_square", "gradient", "x", jnp.tanh, (X,), lambda x, dy: (dy * (1 - jnp.tanh(x)),)),
    # The derivative is that at the output, not at the input: sigmoid is applied twice.
    wrong("sigmoid_twice", "gradient", "x", jax.nn.sigmoid, (X,),
          lambda y, dy: (dy * jax.nn.sigmoid(y) * (1 - jax.nn.sigmoid(y)),),
          lambda x: (jax.nn.sigmoid(x), (jax.nn.sigmoid(x),))),
    # 1 for α.
    wrong("elu_alpha", "gradient", "x", elu, (X, 1.5),
          lambda alpha, x, dy: (dy * jnp.where(x > 0, 1.0, alpha * jnp.expm1(x) + 1),),
          nondiff=(1,)),
    # The mask of the negative part is forgotten.
    wrong("prelu_alpha", "gradient", "alpha", prelu, (X, array(0.2)),
          lambda x, alpha, dy: (dy * jnp.where(x > 0, 1.0, alpha), (dy * x).sum())),
    # The slope for positive x, 1 for negative x.
    wrong("prelu_inverted", "gradient", "x", prelu, (X, array(0.2)),
          lambda x, alpha, dy: (
              dy * jnp.where(x > 0, alpha, 1.0), where(x <= 0, dy * x).sum())),
    # The derivative of softplus is forgotten in the chain.
    wrong("mish_chain", "gradient", "x", mish, (X,), mish_bwd),
    # The square is missing.
    wrong("softsign_square", "gradient", "x", lambda x: x / (1 + jnp.abs(x)), (X,),
          lambda x, dy: (dy / (1 + jnp.abs(x)),)),
    # The logarithm to base 2.
    wrong("power_exponent", "gradient", "p", power, (positive(3, 4), normal(3, 4)),
          lambda x, p, dy: (dy * p * x ** (p - 1), dy * x**p * jnp.log2(x))),
    # The exponent is not lowered.
    wrong("power_base", "gradient", "x", power, (positive(3, 4), normal(3, 4)),
          lambda x, p, dy: (dy * p * x**p, dy * x**p * jnp.log(x))),
    # The function where its derivative should be called.
    wrong("callable_option", "gradient", "x", apply, (X, jnp.sin, jnp.cos),
          lambda f, df, x, dy: (dy * f(x),), nondiff=(1, 2)),
    # A string option: the formula of tanh serves for sin too.
    wrong("string_option", "gradient", "x", activate, (X, "sin"), activate_bwd, nondiff=(1,)),
    # The static options arrive in the order of the signature, and are taken in the other one.
    wrong("static_order", "gradient", "x", affine_power, (positive(4, 3), 3, 2),
          lambda shift, exponent, x, dy: (dy * exponent * (x + shift) ** (exponent - 1),),
          nondiff=(1, 2)),
    # The sign of da: 1 − t, not t − 1.
    wrong("lerp_sign", "gradient", "a", lerp, (normal(4), normal(4, seed=1), positive(4)),
          lambda a, b, t, dy: ((t - 1) * dy, t * dy, (b - a) * dy)),
    # The difference the wrong way round.
    wrong("lerp_difference", "gradient", "t", lerp, (normal(4), normal(4, seed=1), positive(4)),
          lambda a, b, t, dy: ((1 - t) * dy, t * dy, (a - b) * dy)),
    # The mask is not applied to the other branch.
    wrong("select_mask", "gradient", "y", select,
          (array([1, 0, 0, 1], bool), normal(4), normal(4, seed=1)),
          lambda mask, x, y, dy: (None, where(mask, dy), dy)),
    # The cosine is missing in the second output's part.
    wrong("polar_angle", "gradient", "angle", polar, (positive(5), normal(5)), polar_bwd),
    # A keyword argument: the sum over the batch is a mean.
    wrong("keyword_scale", "gradient", "scale", lambda x, scale: x * scale, (X,),
          lambda x, scale, dy: (dy * scale, (dy * x).mean(0)), scale=normal(5)),
    # The numerator instead of the quotient.
    wrong("divide_square", "gradient", "b", lambda a, b: a / b, (normal(4, 3), positive(4, 3)),
          lambda a, b, dy: (dy / b, -dy * a / b)),
    # The lower bound is ignored.
    wrong("clip_lower", "gradient", "x", lambda x, low, high: jnp.clip(x, low, high),
          (X, -0.5, 0.5),
          lambda low, high, x, dy: (where(x < high, dy),), nondiff=(1, 2)),
    # A straight-through gradient where the plain forward has none.
    wrong("straight_through_round", "gradient", "x", lambda x: jnp.round(x), (3 * X,),
          lambda x, dy: (dy,)),
    # A gradient reversal, of which the plain forward knows nothing.
    wrong("gradient_reversal", "gradient", "x", lambda x: 1.0 * x, (X,),
          lambda x, dy: (-0.1 * dy,)),
    # A difference quotient is exact to its step only.
    wrong("sin_table", "gradient", "x", jnp.sin, (X,),
          lambda x, dy: (dy * (jnp.sin(x + 1e-3) - jnp.sin(x)) / 1e-3,)),
    # Right for positive numbers only.
    wrong("cube_abs", "gradient", "x", lambda x: jnp.abs(x) * x, (X,), lambda x, dy: (dy * 2 * x,)),
    # The slope at 0 is 1, autodiff takes 0.
    wrong("relu_at_zero", "kink", "x", jax.nn.relu, (TIES,), lambda x, dy: (where(x >= 0, dy),)),
    # At 0 the slope is −1, autodiff takes 1.
    wrong("abs_at_zero", "kink", "x", jnp.abs, (TIES,),
          lambda x, dy: (jnp.where(x > 0, dy, -dy),)),
    # In a tie both get all of it.
    wrong("maximum_tie", "kink", "b", maximum,
          (array([1.0, 2, 2, 0, -1]), array([0.5, 2, 3, 0, -1.5])),
          lambda a, b, dy: (
              dy * jnp.where(a == b, 0.5, (a > b).astype(dy.dtype)), where(b >= a, dy))),
    # Every maximum gets all of the cotangent.
    wrong("max_ties_all", "kink", "x", lambda x: x.max(-1), (TIES,),
          lambda x, dy: (where(x == x.max(-1, keepdims=True), dy[:, None]),)),
    # The first maximum gets all of the cotangent.
    wrong("max_pool_first", "kink", "x", max_pool, (TIES,), max_pool_bwd),
    # The bounds count as outside; with autodiff they count as half.
    wrong("clip_bounds", "kink", "x", lambda x: jnp.minimum(jnp.maximum(x, -1.0), 1.0), (TIES,),
          lambda x, dy: (where((x > -1) & (x < 1), dy),)),
    # At a margin of exactly 1 the hinge counts as violated.
    wrong("hinge_at_margin", "kink", "score", lambda score: jax.nn.relu(1 - score), (TIES,),
          lambda score, dy: (where(score <= 1, -dy),)),
]  # fmt: skip
