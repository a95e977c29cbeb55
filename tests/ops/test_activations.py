"""What is particular to activations: the conventions at 0 and at infinity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import ops


def derivative(f, x, dtype="float64"):
    x = jnp.asarray(x, dtype)
    return jax.vjp(f, x)[1](jnp.ones_like(x))[0]


def test_relu_at_zero():
    """Source A 3.3.5: the derivative is 1 for x ≥ 0. That of jax.nn.relu is 0 at 0."""
    assert derivative(ops.relu, [-1e-300, -0.0, 0.0, 1e-300]).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert jax.grad(jax.nn.relu)(0.0) == 0.0


def test_relu_blocks_an_infinite_cotangent():
    dx = jax.vjp(ops.relu, jnp.array([-1.0, 1.0]))[1](jnp.array([jnp.inf, jnp.inf]))[0]
    assert dx.tolist() == [0.0, np.inf]


def test_step_fires_at_zero_and_has_no_slope():
    assert ops.step(jnp.array([-1e-300, -0.0, 0.0])).tolist() == [0.0, 1.0, 1.0]
    assert derivative(ops.step, [-1.0, 0.0, 1.0]).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("f", [ops.sigmoid, ops.tanh, ops.relu, ops.step, ops.identity])
def test_nan_passes(f):
    x = jnp.array([jnp.nan])
    assert f is ops.step or f is ops.relu or jnp.isnan(f(x))[0]


@pytest.mark.parametrize("f", [ops.sigmoid, ops.tanh])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_infinities_have_slope_zero(f, dtype):
    assert derivative(f, [-jnp.inf, jnp.inf], dtype).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("f", [ops.sigmoid, ops.tanh])
def test_odd_derivatives_at_zero(f):
    """|x| in the rule must not cost the higher derivatives their value at 0."""
    third = jax.grad(jax.grad(jax.grad(f)))(0.0)
    np.testing.assert_allclose(third, {ops.sigmoid: -1 / 8, ops.tanh: -2.0}[f], rtol=1e-14)
