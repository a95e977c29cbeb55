"""Tests of the example of source B against autodiff, finite differences and the rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import numerical, ops
from funcnet.book.delta import error, forward, gradients


def problem(l, m, n, batch=(), scale=1.0):
    shapes = {"w_ij": (l, m), "b_j": (m,), "w_jk": (m, n), "b_k": (n,)}
    keys = jax.random.split(jax.random.key(l + 10 * m + 100 * n), 6)
    arrays = [scale * jax.random.normal(k, s) for k, s in zip(keys, shapes.values(), strict=False)]
    y_i, t_k = jax.random.normal(keys[4], (*batch, l)), jax.random.normal(keys[5], (*batch, n))
    return dict(zip(shapes, arrays, strict=True)), y_i, t_k


def network(params, y_i, t_k):
    """An independent implementation of E for autodiff."""
    y_j = jax.nn.sigmoid(jnp.einsum("...i,ij->...j", y_i, params["w_ij"]) + params["b_j"])
    y_k = jnp.einsum("...j,jk->...k", y_j, params["w_jk"]) + params["b_k"]
    return jnp.sum(jnp.square(y_k - t_k)) / 2


def network_of_rules(params, y_i, t_k):
    y_j = ops.sigmoid(ops.affine(y_i, params["w_ij"], params["b_j"]))
    y_k = ops.identity(ops.affine(y_j, params["w_jk"], params["b_k"]))
    return jnp.sum(ops.sum_squared_error(y_k, t_k))


def assert_close(found, expected, rtol=1e-10):
    """Asserts that errors are within rtol of the largest entry of each array.

    The project requires 1e-10; sums of up to 100 terms in float64 stay below 1e-13.
    """
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert float(jnp.max(jnp.abs(b))) > 0
        np.testing.assert_allclose(a, b, atol=rtol * float(jnp.max(jnp.abs(b))), rtol=0)


PROBLEMS = [
    problem(3, 4, 2),
    problem(2, 5, 3, (6,)),
    problem(3, 2, 4, (2, 5)),
    problem(5, 4, 3, (7,), scale=5.0),  # neurons near 0 and 1
]


@pytest.mark.few
@pytest.mark.parametrize(
    "args", [*(pytest.param(p, marks=pytest.mark.slow) for p in PROBLEMS[:-1]), PROBLEMS[-1]]
)
@pytest.mark.parametrize("reference", [network, network_of_rules])
def test_agrees_with_autodiff_and_with_the_rules(reference, args):
    dparams, dy_i, _ = jax.jit(jax.grad(reference, (0, 1, 2)))(*args)
    assert_close(jax.jit(gradients)(*args), (dparams, dy_i))
    np.testing.assert_allclose(error(*args), reference(*args), rtol=1e-12)


@pytest.mark.few
@pytest.mark.parametrize("args", PROBLEMS[:2])
def test_agrees_with_numerical_differentiation(args):
    """five_point has errors of about 1e-12 of E ≤ 100; the largest entries are above 0.1."""
    params, y_i, t_k = args
    f = lambda params_and_input: network(*params_and_input, t_k)
    expected = numerical.gradient(f, (params, y_i), method="five_point")
    assert_close(gradients(*args), expected, rtol=1e-9)


def test_by_hand():
    """With one neuron per layer and u_j = 0, every number can be checked on paper."""
    params = {
        "w_ij": jnp.array([[2.0]]),
        "b_j": jnp.array([-6.0]),
        "w_jk": jnp.array([[4.0]]),
        "b_k": jnp.array([1.0]),
    }
    y_i, t_k = jnp.array([3.0]), jnp.array([5.0])
    y_j, y_k = forward(params, y_i)
    assert (y_j.item(), y_k.item(), error(params, y_i, t_k).item()) == (0.5, 3.0, 2.0)
    # δ_k = 3 − 5 = −2, ∂y_j = −2 · 4 = −8, δ_j = −8 · ½ · ½ = −2
    dparams, dy_i = gradients(params, y_i, t_k)
    expected = {"w_ij": -6.0, "b_j": -2.0, "w_jk": -1.0, "b_k": -2.0}
    assert {name: d.item() for name, d in dparams.items()} == expected
    assert dy_i.item() == -4.0


def test_a_batch_is_the_sum_of_its_examples():
    params, y_i, t_k = problem(2, 5, 3, (6,))
    dparams, dy_i = gradients(params, y_i, t_k)
    of_each, dy_of_each = jax.vmap(lambda y, t: gradients(params, y, t))(y_i, t_k)
    assert_close(dparams, jax.tree.map(lambda d: jnp.sum(d, 0), of_each), rtol=1e-14)
    np.testing.assert_array_equal(dy_i, dy_of_each)


def test_gradient_descent_reduces_the_error():
    params, y_i, t_k = problem(2, 5, 3, (6,))

    def descend(params, _):
        dparams, _ = gradients(params, y_i, t_k)
        return jax.tree.map(lambda p, d: p - 0.05 * d, params, dparams), error(params, y_i, t_k)

    _, errors = jax.lax.scan(descend, params, length=100)
    assert jnp.all(jnp.diff(errors) < 0)


@pytest.mark.parametrize(
    ("y_shape", "t_shape", "message"),
    [
        ((3,), (3,), "must have shape (2,), got (3,) with y_i of shape (3,)"),
        ((5, 3), (2,), "must have shape (5, 2), got (2,) with y_i of shape (5, 3)"),
        ((5, 3), (5, 1), "must have shape (5, 2), got (5, 1) with y_i of shape (5, 3)"),
        ((3,), (5, 2), "must have shape (2,), got (5, 2) with y_i of shape (3,)"),
    ],
)
def test_target_of_another_shape(y_shape, t_shape, message):
    params, _, _ = problem(3, 4, 2)
    with pytest.raises(ValueError) as caught:
        gradients(params, jnp.zeros(y_shape), jnp.zeros(t_shape))
    message = f"t_k {message}, b_j (4,) and b_k (2,)"
    assert str(caught.value) == f"gradients: {message}"
    with pytest.raises(ValueError) as caught:
        error(params, jnp.zeros(y_shape), jnp.zeros(t_shape))
    assert str(caught.value) == f"error: {message}"


@pytest.mark.parametrize(
    ("change", "y_i", "message"),
    [
        (
            {"b_j": jnp.ones(1)},
            jnp.ones(3),
            "w_ij must have shape (3, 1), got (3, 4) with y_i of shape (3,), b_j (1,) and b_k (2,)",
        ),
        (
            {},
            jnp.ones((5, 1)),
            "w_ij must have shape (1, 4), got (3, 4) with y_i of shape (5, 1), b_j (4,) and "
            "b_k (2,)",
        ),
        ({}, [1.0, 2.0, 3.0], "y_i must be an array, got list"),
        ({"b_k": [0.0, 0.0]}, jnp.ones(3), "b_k must be an array, got list"),
        (
            {"c": 1.0},
            jnp.ones(3),
            "params must be a dict of w_ij, b_j, w_jk and b_k, got w_ij, b_j, w_jk, b_k, c",
        ),
    ],
)
def test_parameters_that_do_not_fit(change, y_i, message):
    params, _, _ = problem(3, 4, 2)
    with pytest.raises((TypeError, ValueError)) as caught:
        forward(params | change, y_i)
    assert str(caught.value) == f"forward: {message}"


@pytest.mark.slow
def test_no_implicit_rank_promotion():
    params, y_i, t_k = problem(3, 4, 2, (5, 2))
    with jax.numpy_rank_promotion("raise"):
        gradients(params, y_i, t_k), error(params, y_i, t_k)
