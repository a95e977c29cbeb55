"""Correct rules of elementwise functions."""

from functools import partial

import jax
import jax.numpy as jnp
from check.right_entry import WIDE, Right, arrays, booleans, sizes, values
from jax import lax


@jax.custom_vjp
def sigmoid(x):
    return jax.nn.sigmoid(x)


def sigmoid_fwd(x):
    y = jax.nn.sigmoid(x)
    return y, y


def sigmoid_bwd(y, dy):
    return (dy * y * (1 - y),)


sigmoid.defvjp(sigmoid_fwd, sigmoid_bwd)


@jax.custom_vjp
def stable_sigmoid(x):
    return jax.nn.sigmoid(x)


stable_sigmoid.defvjp(
    lambda x: (jax.nn.sigmoid(x), x),
    lambda x, dy: (dy * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),),
)


@jax.custom_vjp
def tanh(x):
    return jnp.tanh(x)


def tanh_fwd(x):
    y = jnp.tanh(x)
    return y, (y,)


def tanh_bwd(residuals, dy):
    (y,) = residuals
    return (dy * (1 - y * y),)


tanh.defvjp(tanh_fwd, tanh_bwd)


@jax.custom_vjp
def stable_tanh(x):
    return jnp.tanh(x)


def stable_tanh_bwd(x, dy):
    e = jnp.exp(-2 * jnp.abs(x))
    return (dy * 4 * e / (1 + e) ** 2,)


stable_tanh.defvjp(lambda x: (jnp.tanh(x), x), stable_tanh_bwd)


@jax.custom_vjp
def relu(x):
    return jnp.maximum(x, 0)


def relu_bwd(x, dy):
    # jnp.maximum shares the gradient between the two sides of a tie.
    return (jnp.where(x > 0, dy, jnp.where(x == 0, dy / 2, 0)),)


relu.defvjp(lambda x: (relu(x), x), relu_bwd)


@jax.custom_vjp
def relu_mask(x):
    return jnp.where(x >= 0, x, 0)


def relu_mask_fwd(x):
    mask = x >= 0
    return jnp.where(mask, x, 0), mask


relu_mask.defvjp(relu_mask_fwd, lambda mask, dy: (jnp.where(mask, dy, 0),))


@jax.custom_vjp
def squared_relu(x):
    return jnp.square(jax.nn.relu(x))


squared_relu.defvjp(lambda x: (squared_relu(x), x), lambda x, dy: (2 * jax.nn.relu(x) * dy,))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x, slope=0.01):
    return jnp.where(x >= 0, x, slope * x)


def leaky_relu_fwd(x, slope):
    return leaky_relu(x, slope), x >= 0


def leaky_relu_bwd(slope, positive, dy):
    return (jnp.where(positive, dy, slope * dy),)


leaky_relu.defvjp(leaky_relu_fwd, leaky_relu_bwd)


@jax.custom_vjp
def prelu(x, slope):
    return jnp.where(x > 0, x, slope * x)


def prelu_bwd(residuals, dy):
    x, slope = residuals
    dslope = jnp.where(x > 0, 0, x * dy)
    return jnp.where(x > 0, dy, slope * dy), dslope.sum(tuple(range(x.ndim - 1)))


prelu.defvjp(lambda x, slope: (prelu(x, slope), (x, slope)), prelu_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def elu(x, alpha=1.0):
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x)))


def elu_fwd(x, alpha):
    y = elu(x, alpha)
    return y, (x > 0, y)


def elu_bwd(alpha, residuals, dy):
    positive, y = residuals
    return (jnp.where(positive, dy, dy * (y + alpha)),)


elu.defvjp(elu_fwd, elu_bwd)


@jax.custom_vjp
def softplus(x):
    return jnp.logaddexp(x, 0)


softplus.defvjp(lambda x: (softplus(x), x), lambda x, dy: (dy * jax.nn.sigmoid(x),))


@jax.custom_vjp
def log1pexp(x):
    return jnp.log(1 + jnp.exp(x))


def log1pexp_fwd(x):
    return log1pexp(x), x


def log1pexp_bwd(x, dy):
    return (dy * jax.nn.sigmoid(x),)  # autodiff gives NaN where exp overflows


log1pexp.defvjp(log1pexp_fwd, log1pexp_bwd)


@jax.custom_vjp
def log_sigmoid(x):
    return -jax.nn.softplus(-x)


log_sigmoid.defvjp(lambda x: (log_sigmoid(x), x), lambda x, dy: (dy * jax.nn.sigmoid(-x),))


@jax.custom_vjp
def gelu(x):
    return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))


def gelu_bwd(x, dy):
    cdf = 0.5 * (1 + lax.erf(x * 0.5**0.5))
    pdf = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
    return (dy * (cdf + x * pdf),)


gelu.defvjp(lambda x: (gelu(x), x), gelu_bwd)


@jax.custom_vjp
def gelu_tanh(x):
    return 0.5 * x * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3)))


def gelu_tanh_fwd(x):
    t = jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), (x, t)


def gelu_tanh_bwd(residuals, dy):
    x, t = residuals
    du = (2 / jnp.pi) ** 0.5 * (1 + 3 * 0.044715 * x * x)
    return (dy * (0.5 * (1 + t) + 0.5 * x * (1 + t) * (1 - t) * du),)


gelu_tanh.defvjp(gelu_tanh_fwd, gelu_tanh_bwd)


@jax.custom_vjp
def silu(x):
    return x * jax.nn.sigmoid(x)


def silu_bwd(x, dy):
    s = jax.nn.sigmoid(x)
    return (dy * s * (1 + x * (1 - s)),)


silu.defvjp(lambda x: (silu(x), x), silu_bwd)


@jax.custom_vjp
def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


def mish_bwd(x, dy):
    t = jnp.tanh(jax.nn.softplus(x))
    return (dy * (t + x * (1 - t * t) * jax.nn.sigmoid(x)),)


mish.defvjp(lambda x: (mish(x), x), mish_bwd)


@jax.custom_vjp
def softsign(x):
    return x / (1 + jnp.abs(x))


softsign.defvjp(lambda x: (softsign(x), 1 + jnp.abs(x)), lambda d, dy: (dy / (d * d),))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def clip(x, low, high):
    return jnp.clip(x, low, high)


def clip_bwd(low, high, x, dy):
    inside = (x > low) & (x < high)
    edge = (x == low) | (x == high)
    return (jnp.where(inside, dy, jnp.where(edge, dy / 2, 0)),)


clip.defvjp(lambda x, low, high: (jnp.clip(x, low, high), x), clip_bwd)


@jax.custom_vjp
def snake(x, a):
    """x + sin²(a x) / a, with one frequency per channel (Ziyin et al., 2020)."""
    return x + jnp.sin(a * x) ** 2 / a


def snake_bwd(residuals, dy):
    x, a = residuals
    s, c = jnp.sin(a * x), jnp.cos(a * x)
    da = (2 * a * x * s * c - s * s) / (a * a) * dy
    return dy * (1 + 2 * s * c), da.sum(tuple(range(x.ndim - 1)))


snake.defvjp(lambda x, a: (snake(x, a), (x, a)), snake_bwd)


@jax.custom_vjp
def rsqrt(x):
    return 1 / jnp.sqrt(x)


def rsqrt_fwd(x):
    y = lax.rsqrt(x)
    return y, y


rsqrt.defvjp(rsqrt_fwd, lambda y, dy: (-0.5 * dy * y * y * y,))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def integer_power(x, n):
    return lax.integer_pow(x, n)


integer_power.defvjp(
    lambda x, n: (lax.integer_pow(x, n), x),
    lambda n, x, dy: (n * lax.integer_pow(x, n - 1) * dy,),
)


@jax.custom_vjp
def safe_divide(a, b):
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def safe_divide_fwd(a, b):
    q = safe_divide(a, b)
    return q, (q, b)


def safe_divide_bwd(residuals, dy):
    q, b = residuals
    da = jnp.where(b == 0, 0, dy / jnp.where(b == 0, 1, b))
    return da, -q * da


safe_divide.defvjp(safe_divide_fwd, safe_divide_bwd)


@jax.custom_vjp
def select(mask, x, y):
    return jnp.where(mask, x, y)


def select_bwd(mask, dy):
    return None, jnp.where(mask, dy, 0), jnp.where(mask, 0, dy)


select.defvjp(lambda mask, x, y: (jnp.where(mask, x, y), mask), select_bwd)


def draw_channels(rng, dtype):
    *batch, c = sizes(rng, int(rng.integers(1, 4)))
    return (values(rng, (*batch, c), dtype, "unit ties"), values(rng, (c,), dtype, "positive")), {}


def draw_select(rng, dtype):
    shape = sizes(rng, int(rng.integers(0, 4)))
    return (booleans(rng, shape), *(values(rng, shape, dtype) for _ in "xy")), {}


def draw_power(rng, dtype):
    return (values(rng, sizes(rng, 2), dtype, "unit ties"), int(rng.integers(2, 5))), {}


ALL = "unit ten hundred ties tails offset"

ACTIVATIONS = [
    Right("sigmoid saving y", sigmoid, arrays(regimes=ALL)),
    Right("sigmoid exact in the tails", stable_sigmoid, arrays(regimes=ALL)),
    Right("tanh saving y", tanh, arrays(regimes=ALL)),
    Right("tanh exact in the tails", stable_tanh, arrays(regimes=ALL)),
    Right("relu by maximum, half at 0", relu, arrays(regimes=ALL)),
    Right("relu saving its mask, one at 0", relu_mask, arrays(regimes=ALL)),
    Right("squared relu", squared_relu, arrays(regimes="unit ten ties")),
    Right("leaky relu", leaky_relu, arrays(regimes=ALL)),
    Right("leaky relu with another slope", leaky_relu, arrays(regimes=ALL, slope=0.2)),
    Right("prelu", prelu, draw_channels),
    Right("elu", elu, arrays(regimes=ALL, alpha=0.7)),
    Right("softplus", softplus, arrays(regimes=ALL)),
    Right("log1pexp where exp overflows", log1pexp, arrays(regimes="unit ten hundred tails")),
    Right("log sigmoid", log_sigmoid, arrays(regimes=ALL)),
    Right("gelu", gelu, arrays(regimes="unit ten ties tails")),
    Right("gelu by tanh", gelu_tanh, arrays(regimes="unit ten ties")),
    Right("silu", silu, arrays(regimes=ALL)),
    Right("mish", mish, arrays(regimes="unit ten ties tails")),
    Right("softsign", softsign, arrays(regimes="unit ten ties")),
    Right("clip with ties at both ends", clip, arrays(regimes=ALL, low=-1.0, high=2.0)),
    Right("snake", snake, draw_channels),
    Right("rsqrt saving y", rsqrt, arrays(regimes="positive")),
    Right("integer power", integer_power, draw_power),
    Right("division that is 0 at 0", safe_divide, arrays(2, regimes="unit ties"), WIDE),
    Right("where", select, draw_select),
]
