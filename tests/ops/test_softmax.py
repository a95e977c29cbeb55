"""Tests particular to softmax and logsumexp: the source's matrix form, limits, tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp

from funcnet import autodiff, ops

INF = np.inf


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


@pytest.mark.few
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("f", [ops.logsumexp, ops.log_softmax, ops.softmax])
@pytest.mark.parametrize("margin", [0.0, 5.0, 20.0, 40.0])
def test_second_derivative_of_one_sure_class(f, margin, dtype):
    """Each element of the Hessian is accurate in both modes, even where p rounds to 1."""
    mp.dps = 50
    x = np.asarray([margin, 0.0, -3.0], dtype)
    e = [mp.exp(float(v)) for v in x]
    p, n = [v / sum(e) for v in e], range(3)
    share = lambda q, r: p[q] * (p[0] + p[1] + p[2] - p[q] if q == r else -p[r])
    derived = {  # Hessians of logsumexp, and of the first output of the others
        ops.logsumexp: lambda q, r: (share(q, r),),
        ops.log_softmax: lambda q, r: (-share(q, r),),
        # y₀ (δ_0q − p_q), where 1 − p₀ = p₁ + p₂; the terms cancel where p₀ is near ½
        ops.softmax: lambda q, r: (share(0, r) * ((q == 0) - p[q]), -p[0] * share(q, r)),
    }[f]
    expected = np.array([[float(sum(derived(q, r))) for r in n] for q in n])
    terms = np.array([[float(sum(map(abs, derived(q, r)))) for r in n] for q in n])
    first = lambda x: f(x).ravel()[0]
    for hessian in (jax.hessian(first), jax.jacrev(jax.grad(first))):
        found = np.asarray(jax.jit(hessian)(x), np.float64)
        assert (np.abs(found - expected) <= 12 * np.finfo(dtype).eps * terms).all()


@pytest.mark.few
@pytest.mark.parametrize("f", [ops.logsumexp, autodiff(ops.logsumexp)], ids=["rule", "autodiff"])
def test_a_slice_of_minus_infinity_has_no_gradient(f):
    """The gradient of a fully masked row is 0; that of `jax.nn.logsumexp` is nan."""
    x = jnp.array([[-INF, -INF], [0.0, 0.0]])
    y, back = jax.vjp(f, x)
    assert y.tolist() == [-INF, np.log(2)]
    assert back(jnp.ones(2))[0].tolist() == [[0, 0], [0.5, 0.5]]
    peer = jax.vjp(lambda x: jax.nn.logsumexp(x, axis=-1), x)[1](jnp.ones(2))[0]
    assert jnp.isnan(peer[0]).all()


@pytest.mark.slow
def test_a_slice_of_minus_infinity_has_no_second_derivative():
    gradient = jax.grad(lambda x: ops.logsumexp(x).sum())
    curvature = jax.grad(lambda x: jnp.sin(gradient(x))[..., 0].sum())
    x = jnp.array([[-INF, -INF], [0.0, 1.0]])
    np.testing.assert_allclose(curvature(x), [[0, 0], curvature(x[1])], rtol=1e-14)


def test_a_sum_of_nothing():
    assert ops.logsumexp(jnp.zeros((2, 0))).tolist() == [-INF, -INF]


def test_nan_and_infinity_are_not_hidden():
    x = jnp.array([[0.0, jnp.nan], [-INF, INF], [0.0, 0.0]])
    y, back = jax.vjp(ops.logsumexp, x)
    assert jnp.isnan(y[0])
    assert y[1] == INF
    dx = back(jnp.ones(3))[0]
    assert jnp.isnan(dx[0]).all()
    assert jnp.isnan(dx[1, 1])
    assert dx[2].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4, 1e30])
def test_an_offset_costs_no_digit_of_the_gradient(offset):
    """Computed as exp(x − y), the gradient would have the error of y: 1e-3 at 1e4 in float32."""
    gaps = np.array([0.0, -1.0, -2.0, -16.0]) if offset < 1e30 else np.zeros(4)
    x = jnp.asarray(offset + gaps, jnp.float32)
    dx = jax.grad(ops.logsumexp)(x)
    np.testing.assert_allclose(dx, np.exp(gaps) / np.exp(gaps).sum(), rtol=5e-7)


def test_all_axes():
    """`axis=None` has the softmax over all elements as gradient."""
    x = jnp.arange(6.0).reshape(2, 3)
    for keepdims in (False, True):
        dx = jax.grad(lambda x, k=keepdims: ops.logsumexp(x, axis=None, keepdims=k).sum())(x)
        np.testing.assert_allclose(dx, np.exp(x) / np.exp(x).sum(), rtol=1e-14)


@pytest.mark.parametrize("f", [ops.logsumexp, ops.softmax, ops.log_softmax])
def test_an_axis_that_is_not_there(f):
    for axis, kind in ((2, ValueError), ((0, 0), ValueError), (0.5, TypeError)):
        with pytest.raises(kind, match=rf"^{f.__name__}: axis must .*got"):
            f(jnp.ones((2, 3)), axis=axis)
    with pytest.raises(ValueError, match=rf"^{f.__name__}: x must have an axis, got shape"):
        f(1.0)
