"""What is particular to the logarithm of a sum of exponentials: slices without a finite entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import autodiff, ops

INF = np.inf


@pytest.mark.parametrize("f", [ops.logsumexp, autodiff(ops.logsumexp)], ids=["rule", "autodiff"])
def test_a_slice_of_minus_infinity_has_no_gradient(f):
    """Where `jax.nn.logsumexp` has nan: a masked row must not spoil the others' gradient."""
    x = jnp.array([[-INF, -INF], [0.0, 0.0]])
    y, back = jax.vjp(f, x)
    assert y.tolist() == [-INF, np.log(2)]
    assert back(jnp.ones(2))[0].tolist() == [[0, 0], [0.5, 0.5]]
    peer = jax.vjp(lambda x: jax.nn.logsumexp(x, axis=-1), x)[1](jnp.ones(2))[0]
    assert jnp.isnan(peer[0]).all()


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
    """From y alone, as exp(x − y), its error would be that of y: 1e-3 at 1e4 in float32."""
    gaps = np.array([0.0, -1.0, -2.0, -16.0]) if offset < 1e30 else np.zeros(4)
    x = jnp.asarray(offset + gaps, jnp.float32)
    dx = jax.grad(ops.logsumexp)(x)
    np.testing.assert_allclose(dx, np.exp(gaps) / np.exp(gaps).sum(), rtol=5e-7)


def test_all_axes():
    """`axis=None` has a gradient too: the shares of one sum."""
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
