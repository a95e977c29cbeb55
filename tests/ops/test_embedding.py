"""Tests particular to embedding: repeated, negative and invalid ids; explicit meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow

from funcnet import ops

W = np.random.default_rng(0).standard_normal((5, 3))


def test_repeated_ids_add_up():
    ids = jnp.array([2, 2, 0, -3, 2])
    dw = jax.grad(lambda w: ops.embedding(ids, w).sum())(W)
    assert dw.tolist() == [[1] * 3, [0] * 3, [4] * 3, [0] * 3, [0] * 3]


def test_ids_out_of_range_are_nan_and_have_no_gradient():
    y, back = jax.vjp(lambda w: ops.embedding(jnp.array([5, -6, 1]), w), W)
    assert np.isnan(y).all(1).tolist() == [True, True, False]
    (dw,) = back(jnp.ones_like(y))
    assert dw.sum(1).tolist() == [0, 3, 0, 0, 0]


@pytest.mark.few
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16, jnp.uint8, jnp.uint32, jnp.int64])
def test_any_integers(dtype):
    """V = 300 does not fit in one byte, but negative ids still count from the end."""
    w = jnp.arange(300.0)[:, None]
    ids = jnp.array([0, 100, -1] if jnp.issubdtype(dtype, jnp.signedinteger) else [0, 100], dtype)
    expected = [0, 100, 299][: len(ids)]
    assert ops.embedding(ids, w).ravel().tolist() == expected
    dw = jax.grad(lambda w: ops.embedding(ids, w).sum())(w)
    assert np.flatnonzero(dw).tolist() == expected
    dw = jax.grad(lambda w: ops.embedding(ids, w, padding=-200).sum())(w)
    assert np.flatnonzero(dw).tolist() == [0, *expected[2:]]


def test_padding_has_a_value_and_no_gradient():
    """As in PyTorch; by both names of the id, and in the narrow sum of a long table."""
    ids, w = jnp.array([1, -4, 0, 4]), jnp.asarray(W, jnp.bfloat16)
    for padding in (1, -4):
        y, back = jax.vjp(lambda w, p=padding: ops.embedding(ids, w, padding=p), w)
        assert (y == w[ids]).all()
        assert back(jnp.ones_like(y))[0][:, 0].tolist() == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_sums_are_float32(dtype):
    ids, w = jnp.zeros(5000, jnp.int32), jnp.ones((2, 1), dtype)
    dw = jax.grad(lambda w: ops.embedding(ids, w).astype(jnp.float32).sum())(w)
    assert dw.dtype == dtype
    assert dw.ravel().tolist() == [float(dtype(5000)), 0]  # a narrow sum stops at 256 or 2048


@pytest.mark.few
@pytest.mark.parametrize("padding", [None, *slow(3)])
@pytest.mark.parametrize(
    ("of_ids", "of_w"),
    [(P(), P()), (P(), P("d")), (P(), P(None, "d")), (P("d"), P()), (P("d"), P("d"))],
)
def test_explicit_meshes(of_ids, of_w, padding):
    """The output rows are sharded like ids, and the gradient like w."""
    ids, w = np.array([[0, 1], [3, 3]]), W[:4, :2]
    loss = lambda ids, w: (ops.embedding(ids, w, padding=padding) ** 2).sum()
    expected = jax.grad(loss, 1)(ids, w)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
        placed = put(ids, of_ids), put(w, of_w)
        dw = jax.jit(jax.grad(loss, 1))(*placed)
        assert dw.sharding.is_equivalent_to(placed[1].sharding, 2)
    np.testing.assert_allclose(dw, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("ids", "w", "message"),
    [
        (np.ones(3), (5, 2), "ids must be integers, got float64"),
        (np.ones(3, bool), (5, 2), "ids must be integers, got bool"),
        (np.ones(3, int), (5,), "w must have shape (V, d) with V > 0, got (5,)"),
        (np.ones(3, int), (0, 2), "w must have shape (V, d) with V > 0, got (0, 2)"),
    ],
)
def test_arguments_that_do_not_fit(ids, w, message):
    with pytest.raises(ValueError) as e:
        ops.embedding(jnp.asarray(ids), jnp.ones(w))
    assert str(e.value) == f"embedding: {message}"


@pytest.mark.parametrize("padding", [5, -6])
def test_padding_out_of_range(padding):
    with pytest.raises(ValueError) as e:
        ops.embedding(jnp.array([1]), W, padding=padding)
    message = f"embedding: padding must be from -5 to 4 for w (5, 3), got {padding}"
    assert str(e.value) == message
