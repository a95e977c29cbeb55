"""Tests particular to exponential linear units: the tail, the kink, and the fixed point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from funcnet import ops

EPS = 2.0**-23
ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805


@pytest.mark.parametrize(("f", "factor"), [(ops.elu, 1.0), (ops.selu, ALPHA * SCALE)])
def test_tail(f, factor):
    """Value and derivative are correct to 4 ε, where autodiff's derivative y + α has no digit."""
    mp.dps = 50
    x = np.concatenate([np.linspace(-80, -0.25, 81), [-17.5, -1e-6, -1e-30]]).astype(np.float32)
    y, back = jax.vjp(f, jnp.asarray(x))
    dx = back(jnp.ones_like(y))[0]
    for i, at in enumerate(x):
        value, slope = mp.expm1(mpf(float(at))) * factor, mp.exp(mpf(float(at))) * factor
        assert abs(mpf(float(y[i])) - value) <= 4 * EPS * abs(value), at
        assert abs(mpf(float(dx[i])) - slope) <= 4 * EPS * slope, at


def test_autodiff_of_the_usual_forward_is_zero_in_the_tail():
    at = jnp.asarray(-17.5, jnp.float32)
    assert jax.grad(jax.nn.elu)(at) == 0
    assert jax.grad(ops.elu)(at) > 2e-8


@pytest.mark.parametrize("x", [-1e-300, -0.0, 0.0, 1e-300])
def test_slope_at_zero(x):
    assert jax.grad(lambda x: ops.elu(x, alpha=0.5))(x) == (0.5 if x <= 0 else 1.0)
    np.testing.assert_allclose(jax.grad(ops.selu)(x), jax.grad(jax.nn.selu)(x), rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_limits(dtype):
    """Value and slope at ±∞ and at the largest numbers, whose exponential overflows."""
    largest = float(jnp.finfo(dtype).max)
    y, back = jax.vjp(ops.elu, jnp.asarray([-np.inf, -largest, largest, np.inf], dtype))
    assert y.tolist() == [-1, -1, largest, np.inf]
    assert back(jnp.ones_like(y))[0].tolist() == [0, 0, 1, 1]


def test_selu_keeps_mean_and_variance_of_a_normal():
    """By the trapezoidal rule, ∫ selu(x)ᵏ φ(x) dx is 0 for k = 1 and 1 for k = 2."""
    x = jnp.concatenate([jnp.linspace(-12, 0, 60_001), jnp.linspace(0, 12, 60_001)])
    density = jnp.exp(-(x**2) / 2) / jnp.sqrt(2 * jnp.pi)
    y = ops.selu(x)
    moments = [float(jnp.trapezoid(y**k * density, x)) for k in (1, 2)]
    np.testing.assert_allclose(moments, [0, 1], atol=1e-7)
