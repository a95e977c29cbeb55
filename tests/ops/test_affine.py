"""Tests particular to the affine layer: scalars, a batch, and shapes that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import ops


def test_one_number():
    """Source A 3.3.3: y = wx + b, so dx = w dy, dw = x dy, db = dy."""
    x, w, b = jnp.array([3.0]), jnp.array([[2.0]]), jnp.array([1.0])
    y, back = jax.vjp(ops.affine, x, w, b)
    dx, dw, db = back(jnp.array([5.0]))
    assert (y[0], dx[0], dw[0, 0], db[0]) == (7.0, 10.0, 15.0, 5.0)


def test_a_batch():
    """Source A 3.3.4: dW = Xᵀ·dY, dX = dY·Wᵀ, db = the sum of the rows of dY."""
    random = np.random.default_rng(0)
    x, w, b, dy = (random.standard_normal(s) for s in ((6, 3), (3, 2), (2,), (6, 2)))
    dx, dw, db = jax.vjp(ops.affine, x, w, b)[1](dy)
    np.testing.assert_allclose(dw, x.T @ dy, atol=1e-14)
    np.testing.assert_allclose(dx, dy @ w.T, atol=1e-14)
    np.testing.assert_allclose(db, dy.sum(0), atol=1e-14)


@pytest.mark.parametrize(
    ("x", "w", "b", "message"),
    [
        ((2, 3), (4, 5), (5,), "affine: x must have shape (..., 4) for w (4, 5), got (2, 3)"),
        ((), (4, 5), (5,), "affine: x must have shape (..., 4) for w (4, 5), got ()"),
        ((2, 3), (3,), (5,), "affine: w must have shape (n, m), got (3,)"),
        ((2, 3), (3, 5), (1,), "affine: b must have shape (5,) for w (3, 5), got (1,)"),
        ((2, 3), (3, 5), (), "affine: b must have shape (5,) for w (3, 5), got ()"),
    ],
)
def test_shapes_that_do_not_fit(x, w, b, message):
    with pytest.raises(ValueError) as e:
        ops.affine(jnp.ones(x), jnp.ones(w), jnp.ones(b))
    assert str(e.value) == message


def test_mixed_dtypes_where_jax_allows_them():
    with jax.numpy_dtype_promotion("standard"):
        x = jnp.ones((2, 3), jnp.bfloat16)
        w, b = jnp.ones((3, 4), jnp.float32), jnp.ones(4, jnp.float32)
        y, back = jax.vjp(ops.affine, x, w, b)
        assert y.dtype == jnp.float32
        assert [d.dtype for d in back(y)] == [jnp.bfloat16, jnp.float32, jnp.float32]
