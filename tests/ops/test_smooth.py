"""What is particular to the smooth rectifiers: tails against 50 digits, infinities, order 3."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from funcnet import ops

EPS = 2.0**-23
EXACT_GELU = functools.partial(ops.gelu, approximate=False)

TRUTH = {  # rule, function, and the range in which value and slope are normal numbers in float32
    "silu": (ops.silu, lambda x: x / (1 + mp.exp(-x)), (-80, 80)),
    "gelu": (
        ops.gelu,
        lambda x: x / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3))),
        (-9.5, 40),
    ),
    "gelu, exact": (EXACT_GELU, lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2, (-12.5, 40)),
    "mish": (ops.mish, lambda x: x * mp.tanh(mp.log1p(mp.exp(x))), (-80, 80)),
    "softplus": (ops.softplus, lambda x: mp.log1p(mp.exp(x)), (-80, 80)),
    "log_sigmoid": (ops.log_sigmoid, lambda x: -mp.log1p(mp.exp(-x)), (-80, 80)),
}


@pytest.mark.parametrize("name", TRUTH)
def test_value_and_derivative_over_the_range(name):
    """Errors of each element: 6 roundings, and 3 of the argument of the exponential."""
    mp.dps = 50
    f, truth, (low, high) = TRUTH[name]
    x = np.concatenate([np.linspace(low, high, 61), [-1e-6, 1e-30, -17.5]]).astype(np.float32)
    y, back = jax.vjp(f, jnp.asarray(x))
    dx = back(jnp.ones_like(y))[0]
    for i, at in enumerate(x):
        taylor = mp.taylor(truth, mpf(float(at)), 2)
        t, slope, curvature = taylor[0], taylor[1], 2 * taylor[2]
        allowed = lambda v, rise, at=at: EPS * (6 * abs(v) + 3 * abs(mpf(float(at)) * rise))
        assert abs(mpf(float(y[i])) - t) <= allowed(t, slope), at
        assert abs(mpf(float(dx[i])) - slope) <= allowed(slope, curvature), at


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("f", [ops.silu, ops.gelu, EXACT_GELU, ops.mish, ops.softplus])
def test_limits(f, dtype):
    """Value and slope at ±∞, and at the largest numbers, where x³ overflows."""
    largest = float(jnp.finfo(dtype).max)
    x = jnp.asarray([-np.inf, -largest, largest, np.inf, np.nan], dtype)
    y, back = jax.vjp(f, x)
    assert y[:4].tolist() == [0, 0, largest, np.inf]
    assert back(jnp.ones_like(y))[0][:4].tolist() == [0, 0, 1, 1]
    assert jnp.isnan(y[4])


def test_limits_of_log_sigmoid():
    y, back = jax.vjp(ops.log_sigmoid, jnp.asarray([-np.inf, np.inf]))
    assert y.tolist() == [-np.inf, 0]
    assert back(jnp.ones_like(y))[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("f", "peer"),
    [
        (ops.silu, jax.nn.silu),
        (ops.gelu, jax.nn.gelu),
        (EXACT_GELU, functools.partial(jax.nn.gelu, approximate=False)),
        (ops.mish, jax.nn.mish),
        (ops.softplus, jax.nn.softplus),
    ],
)
def test_higher_derivatives_at_zero(f, peer):
    """The sides of 0 have formulas of their own; each must be right for the derivatives at 0."""
    second = lambda g: jax.grad(jax.grad(g))
    both = jax.jit(lambda x: [(second(g)(x), jax.grad(second(g))(x)) for g in (f, peer)])
    actual, expected = both(0.0)
    np.testing.assert_allclose(actual, expected, atol=1e-14)


@pytest.mark.parametrize(("f", "peer"), [(ops.gelu, jax.nn.gelu), (ops.mish, jax.nn.mish)])
def test_narrow_values_are_rounded_once(f, peer):
    x = jnp.linspace(-8, 8, 101).astype(jnp.bfloat16)
    expected = peer(x.astype(jnp.float32))
    at_most = np.abs(expected) * 2.0**-8 + 1e-6
    assert (np.abs(f(x).astype(jnp.float32) - expected) <= at_most).all()
    assert (np.abs(peer(x).astype(jnp.float32) - expected) > at_most).any()
