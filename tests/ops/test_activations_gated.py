"""Tests particular to gated linear units: shapes, dtypes, and gates that are shut or open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import ops


@pytest.mark.parametrize("f", ["swiglu", "geglu"])
@pytest.mark.parametrize("up", [(3,), (2, 1), (), (3, 2)])
def test_shapes_that_differ(f, up):
    """Shapes must be equal; NumPy would broadcast the first three."""
    with pytest.raises(ValueError) as e:
        getattr(ops, f)(jnp.ones((2, 3)), jnp.ones(up))
    assert str(e.value) == f"{f}: up must have the shape (2, 3) of gate, got {up}"


@pytest.mark.parametrize("f", [ops.swiglu, ops.geglu])
def test_each_cotangent_has_the_dtype_of_its_argument(f):
    gate, up = jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        y, back = jax.vjp(f, gate, up)
        assert y.dtype == jnp.float32
        assert [d.dtype for d in back(y)] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("approximate", [True, False])
def test_gates_shut_and_open(approximate):
    """At −∞ the gate is shut and nothing passes; at ∞ it is open and y = gate · up."""
    gate, up = jnp.array([-jnp.inf, jnp.inf]), jnp.array([3.0, -2.0])
    for f in (ops.swiglu, lambda a, b: ops.geglu(a, b, approximate=approximate)):
        y, back = jax.vjp(f, gate, up)
        dgate, dup = back(jnp.ones(2))
        assert y.tolist() == [0, -np.inf]
        assert dgate.tolist() == [0, -2]
        assert dup.tolist() == [0, np.inf]


def test_they_are_products_with_their_activations():
    gate, up = jax.random.normal(jax.random.key(0), (2, 4, 5), jnp.float64)
    np.testing.assert_allclose(ops.swiglu(gate, up), jax.nn.silu(gate) * up, atol=1e-15)
    for approximate in (True, False):
        expected = jax.nn.gelu(gate, approximate=approximate) * up
        actual = ops.geglu(gate, up, approximate=approximate)
        np.testing.assert_allclose(actual, expected, atol=1e-15)


@pytest.mark.parametrize("f", [ops.swiglu, ops.geglu])
def test_nan_integers_and_complex_numbers(f):
    nan, one = jnp.array([jnp.nan]), jnp.ones(1)
    assert jnp.isnan(f(nan, one)).all()
    assert jnp.isnan(f(one, nan)).all()
    ints = jnp.array([1], jnp.uint8)
    assert f(ints, ints).tolist() == f(one, one).tolist()
    with pytest.raises(TypeError, match=f"^{f.__name__}: up must be real, got complex128"):
        f(one, jnp.ones(1, jnp.complex128))
