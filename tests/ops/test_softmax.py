"""What is particular to softmax: the source's matrix form, and rows without an answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp

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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("f", [ops.logsumexp, ops.log_softmax, ops.softmax])
@pytest.mark.parametrize("margin", [0.0, 5.0, 20.0, 40.0])
def test_second_derivative_of_one_sure_class(f, margin, dtype):
    """Each element of the Hessian, in both modes: p (1 − p) has its digits where p rounds to 1."""
    mp.dps = 50
    x = np.asarray([margin, 0.0, -3.0], dtype)
    e = [mp.exp(float(v)) for v in x]
    p, n = [v / sum(e) for v in e], range(3)
    share = lambda q, r: p[q] * (p[0] + p[1] + p[2] - p[q] if q == r else -p[r])
    derived = {  # of logsumexp, and of the first output of the others
        ops.logsumexp: share,
        ops.log_softmax: lambda q, r: -share(q, r),
        # y₀ (δ_0q − p_q), where 1 − p₀ = p₁ + p₂
        ops.softmax: lambda q, r: share(0, r) * ((q == 0) - p[q]) - p[0] * share(q, r),
    }[f]
    expected = np.array([[float(derived(q, r)) for r in n] for q in n])
    first = lambda x: f(x).ravel()[0]
    for hessian in (jax.hessian(first), jax.jacrev(jax.grad(first))):
        np.testing.assert_allclose(jax.jit(hessian)(x), expected, rtol=12 * np.finfo(dtype).eps)
