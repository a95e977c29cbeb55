"""What is particular to softmax: the source's matrix form, and rows without an answer."""

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import ops


def test_matrix_form_of_the_source():
    """Source A 3.3.6: dx = dy · (diag(y) − yᵀ·y)."""
    random = np.random.default_rng(0)
    x, dy = random.standard_normal(7), random.standard_normal(7)
    y, back = jax.vjp(ops.softmax, x)
    y = np.asarray(y)[None]
    expected = dy[None] @ (np.diag(y[0]) - y.T @ y)
    np.testing.assert_allclose(back(dy)[0], expected[0], atol=1e-16)


def test_large_inputs_do_not_overflow():
    y = ops.softmax(jnp.array([1e4, 1e4 - 1], jnp.float32))
    np.testing.assert_allclose(y, [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], rtol=1e-6)
    assert jnp.isfinite(ops.log_softmax(jnp.array([1e4, -1e4], jnp.float32))).all()


def test_a_row_without_finite_entry_is_nan_and_spoils_no_other():
    x = jnp.array([[-jnp.inf, -jnp.inf], [0.0, 0.0]])
    for f in (ops.softmax, ops.log_softmax):
        y = f(x)
        assert jnp.isnan(y[0]).all()
        assert jnp.isfinite(y[1]).all()


def test_probability_of_a_masked_entry():
    x = jnp.array([0.0, -jnp.inf])
    assert ops.softmax(x).tolist() == [1.0, 0.0]
    assert ops.log_softmax(x).tolist() == [0.0, -np.inf]
    dx = jax.vjp(ops.softmax, x)[1](jnp.array([1.0, 2.0]))[0]
    assert dx.tolist() == [0.0, 0.0]
