"""Tests of the gates, and two proofs that no neuron computes XOR: by algebra and by search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import datasets
from funcnet.book.perceptron import and_gate, neuron, not_gate, or_gate, xor_gate

POINTS = [(0, 0), (0, 1), (1, 0), (1, 1)]
TABLES = {and_gate: [0, 0, 0, 1], or_gate: [0, 1, 1, 1], xor_gate: [0, 1, 1, 0]}


@pytest.mark.few
@pytest.mark.parametrize("gate", TABLES)
@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, jnp.bfloat16, np.float32, np.float64])
def test_truth_table(gate, dtype):
    z = gate(jnp.array(POINTS, dtype))
    assert z.dtype == (dtype if jnp.issubdtype(dtype, np.floating) else np.float64)
    np.testing.assert_array_equal(z, TABLES[gate])


@pytest.mark.few
@pytest.mark.parametrize("gate", TABLES)
def test_shapes_and_transformations(gate):
    x, z = jnp.array(POINTS), jnp.array(TABLES[gate], float)
    np.testing.assert_array_equal(gate(x.reshape(2, 2, 2)), z.reshape(2, 2))
    np.testing.assert_array_equal(jax.jit(jax.vmap(gate))(x), z)
    assert gate(x[0]).shape == ()
    assert gate(jnp.zeros((0, 2))).shape == (0,)


def test_not():
    np.testing.assert_array_equal(
        not_gate(jnp.array([[0, 1, 1], [1, 0, 0]])), [[1, 0, 0], [0, 1, 1]]
    )
    assert (not_gate(0), not_gate(1.0), not_gate(False)) == (1, 0, 1)


def test_the_bias_printed_for_not_never_fires():
    """This is why our bias is +0.5, as the docstring says."""
    fires = neuron(jnp.array([[0.0], [1.0]]), jnp.array([-1.0]), -0.5)
    np.testing.assert_array_equal(fires, [0, 0])


@pytest.mark.parametrize(
    ("w", "table", "inside", "outside"),
    [
        ([1, 1], TABLES[and_gate], [-2, -1.5, np.nextafter(-1, -2)], [np.nextafter(-2, -3), -1]),
        ([1, 1], TABLES[or_gate], [-1, -0.5, -5e-324], [np.nextafter(-1, -2), 0]),
        ([-1, 0], [1, 1, 0, 0], [0, 0.5, np.nextafter(1, 0)], [-5e-324, 1]),
    ],
)
def test_range_of_biases(w, table, inside, outside):
    """The docstrings give half-open ranges of biases; a number just outside a range fails.

    The sum is NumPy's, because XLA may flush −5e-324 to zero.
    """
    x, w = np.array(POINTS, float), np.array(w, float)
    for b in inside:
        np.testing.assert_array_equal(x @ w + b >= 0, table)
    for b in outside:
        assert not np.array_equal(x @ w + b >= 0, table)


@pytest.mark.parametrize(
    ("gate", "w", "b"),
    [(and_gate, [1, 1], -1.5), (or_gate, [1, 1], -0.5), (not_gate, [-1], 0.5)],
)
def test_decision_lines(gate, w, b):
    """On real inputs, a gate is the half-plane w·x + b ≥ 0, including its border."""
    w = np.array(w)
    border = np.array([-b / w[0], 0])[: len(w)]
    near = border + np.array([[-1e-9], [0], [1e-9]]) * w  # one outside, two inside
    grid = np.stack(np.meshgrid(*[np.arange(-2, 2.25, 0.25)] * len(w)), -1).reshape(-1, len(w))
    for x, expected in ((near, [0, 1, 1]), (grid, grid @ w + b >= 0)):
        np.testing.assert_array_equal(gate(x[:, 0] if gate is not_gate else x), expected)


def test_xor_is_the_printed_combination_of_gates():
    """The gates (x₁ OR x₂) AND NOT (x₁ AND x₂) equal the network of two layers."""
    x = jnp.array(POINTS)
    combined = and_gate(jnp.stack([or_gate(x), not_gate(and_gate(x))], -1))
    np.testing.assert_array_equal(combined, xor_gate(x))


def test_xor_data():
    x, labels = datasets.xor()
    np.testing.assert_array_equal(xor_gate(x), labels)


def test_neuron_layer_and_batch():
    """A layer of m neurons equals m separate neurons; a neuron fires at the threshold."""
    x, w = jnp.array([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]]), jnp.array([[1.0, -2], [1, 0], [-1, 1]])
    b = jnp.array([-4.0, 1.0])
    np.testing.assert_array_equal(neuron(x, w, b), [[1, 0], [0, 1]])
    for m in range(2):
        np.testing.assert_array_equal(neuron(x, w[:, m], b[m]), neuron(x, w, b)[:, m])


# No neuron computes XOR


def inequalities(table):
    """Rows s (x₁, x₂, 1), with s = 1 where w·x + b ≥ 0 is required and s = −1 where < 0 is."""
    signs = np.where(np.array(table) == 1, 1, -1)
    return signs[:, None] * np.array([(*x, 1) for x in POINTS])


def test_the_inequalities_of_xor_contradict_each_other():
    """Their sum is 0·w₁ + 0·w₂ + 0·b > 0, as in the docstring; AND and OR have no such sum."""
    np.testing.assert_array_equal(inequalities([0, 1, 1, 0]).sum(0), [0, 0, 0])
    for table in ([0, 0, 0, 1], [0, 1, 1, 1]):
        # Farkas: a combination with coefficients ≥ 0 vanishes only for XOR and its negation
        for c in itertools.product(range(4), repeat=4):
            assert not any(c) or np.any(np.array(c) @ inequalities(table))


def test_one_neuron_computes_14_of_the_16_functions():
    """Of all neurons with weights and bias in {−2, −1.5 … 2}, none computes XOR or XNOR."""
    numbers = jnp.arange(-2, 2.25, 0.5)
    w1, w2, b = (a.ravel() for a in jnp.meshgrid(numbers, numbers, numbers))
    z = neuron(jnp.array(POINTS, float), jnp.stack([w1, w2]), b)
    found = {tuple(column) for column in np.asarray(z, int).T.tolist()}
    everything = set(itertools.product([0, 1], repeat=4))
    assert everything - found == {(0, 1, 1, 0), (1, 0, 0, 1)}


# Bad input


@pytest.mark.parametrize("gate", TABLES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 0)])
def test_wrong_number_of_inputs(gate, shape):
    with pytest.raises(ValueError) as caught:
        gate(jnp.zeros(shape))
    assert str(caught.value) == f"{gate.__name__}: x must have shape (..., 2), got {shape}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: neuron(x, jnp.ones(3), 0.0),
            "neuron: w must have shape (n,) or (n, m) for x (..., n), got w (3,) and x (5, 2)",
        ),
        (
            lambda x: neuron(x, jnp.ones((2, 1)), jnp.ones(3)),
            "neuron: b must be a scalar or have shape (1,) for w (2, 1), got (3,)",
        ),
        (
            lambda x: neuron(x, jnp.ones(2), jnp.ones(5)),
            "neuron: b must be a scalar or have shape () for w (2,), got (5,)",
        ),
        (lambda x: neuron(x, jnp.ones(2), None), "neuron: b must be an array, got None"),
        (lambda x: neuron(x.tolist(), jnp.ones(2), 0.0), "neuron: x must be an array, got list"),
        (lambda x: and_gate("0 1"), "and_gate: x must be an array of numbers, got '0 1'"),
        (lambda x: or_gate(None), "or_gate: x must be an array of numbers, got None"),
        (lambda x: xor_gate(x.astype(complex)), "xor_gate: x must be real, got complex128"),
        (
            lambda x: not_gate([[1], [0, 1]]),
            "not_gate: x must be an array of numbers, got [[1], [0, 1]]",
        ),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        make(jnp.zeros((5, 2)))
    assert str(caught.value) == message


def test_no_implicit_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        assert xor_gate([[[0, 1], [1, 1]]]).tolist() == [[1.0, 0.0]]
