"""Tests particular to activations: conventions at 0 and at infinity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from funcnet import ops


def derivative(f, x, dtype="float64"):
    x = jnp.asarray(x, dtype)
    return jax.vjp(f, x)[1](jnp.ones_like(x))[0]


def test_relu_at_zero():
    """Source A 3.3.5: the derivative is 1 for x ≥ 0. The derivative of jax.nn.relu at 0 is 0."""
    assert derivative(ops.relu, [-1e-300, -0.0, 0.0, 1e-300]).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert jax.grad(jax.nn.relu)(0.0) == 0.0


def test_relu_blocks_an_infinite_cotangent():
    dx = jax.vjp(ops.relu, jnp.array([-1.0, 1.0]))[1](jnp.array([jnp.inf, jnp.inf]))[0]
    assert dx.tolist() == [0.0, np.inf]


def test_step_fires_at_zero_and_has_no_slope():
    assert ops.step(jnp.array([-1e-300, -0.0, 0.0])).tolist() == [0.0, 1.0, 1.0]
    assert derivative(ops.step, [-1.0, 0.0, 1.0]).tolist() == [0.0, 0.0, 0.0]


def test_relu_passes_nan_on():
    """At nan the derivative is 1, as in the plain forward, so dx is nan if dy is nan."""
    assert ops.relu(jnp.array([jnp.nan, 1.0])).tolist() == [pytest.approx(np.nan, nan_ok=True), 1]
    assert derivative(ops.relu, [jnp.nan]).tolist() == [1]


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.sigmoid, ops.tanh])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_infinities_have_slope_zero(f, dtype):
    assert derivative(f, [-jnp.inf, jnp.inf], dtype).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("f", [ops.sigmoid, ops.tanh])
def test_odd_derivatives_at_zero(f):
    """|x| in the rule must not make higher derivatives wrong at 0."""
    third = jax.grad(jax.grad(jax.grad(f)))(0.0)
    np.testing.assert_allclose(third, {ops.sigmoid: -1 / 8, ops.tanh: -2.0}[f], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("f", "k"), [(ops.sigmoid, 1), (ops.tanh, 2)])
def test_second_derivative_over_the_range(f, k, dtype):
    """The error of each element is at most 8 ε, in forward and in reverse mode.

    s″ = −t (1 − t²) / 4 with t = tanh(x/2), and tanh x = 2 s(2x) − 1.
    """
    mp.dps = 100
    x = np.concatenate([np.linspace(-40, 40, 81), [-1e-6, 1e-30]]).astype(dtype)
    slope = lambda x: jax.vjp(f, x)[1](jnp.ones_like(x))[0]
    forward, reverse = jax.jit(
        lambda x: (jax.jvp(slope, (x,), (jnp.ones_like(x),))[1], derivative(slope, x, dtype))
    )(x)
    for i, at in enumerate(x):
        t = mp.tanh(k * mpf(float(at)) / 2)
        curvature = -(t - t**3) * (1 if k == 1 else 8) / 4
        for computed in (forward, reverse):
            error = abs(mpf(float(computed[i])) - curvature)
            assert error <= 8 * np.finfo(dtype).eps * abs(curvature), at


@pytest.mark.parametrize("re", [-40.0, 40.0])
def test_complex_derivative_in_the_tails(re):
    """The derivative decays as e^(−|Re z|) on both sides, where 1 − y² and y (1 − y) round to 0."""
    z = re + 1.0j
    decay = np.exp(-abs(re) - 1.0j * np.sign(re))
    for f, expected in ((ops.sigmoid, decay), (ops.tanh, 4 * decay**2)):
        np.testing.assert_allclose(jax.grad(f, holomorphic=True)(z), expected, rtol=1e-14)


@pytest.mark.parametrize("f", [ops.relu, ops.step, ops.hard_tanh, ops.silu, ops.leaky_relu])
def test_what_needs_an_order_refuses_complex_numbers(f):
    with pytest.raises(TypeError) as e:
        f(jnp.ones(2, jnp.complex64))
    assert str(e.value) == f"{f.__name__}: x must be real, got complex64[2]"
