"""The accuracy table of the README against 50-digit arithmetic, and element-wise tails."""

import accuracy_table
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import readme
from accuracy_table import cross_entropy_truth, exact, exponential, sigmoid_truth, tanh_truth
from mpmath import mp

from funcnet import ops

ROWS = accuracy_table.rows()
EPS = 2.0**-23


@pytest.mark.few
@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.rule}, {r.regime}")
def test_row(row):
    """The hand-written rule has only rounding error; autodiff's is `gain` times larger."""
    errors = accuracy_table.measure(row)
    assert errors.hand <= 2 * EPS
    assert errors.textbook >= row.gain * errors.hand


def test_table_is_in_the_readme():
    text = readme.page("accuracy").read_text(encoding="utf-8")
    for row in ROWS:
        assert f"| `{row.rule}` | {row.regime} |" in text


@pytest.mark.parametrize(("f", "truth"), [(ops.sigmoid, sigmoid_truth), (ops.tanh, tanh_truth)])
def test_derivative_over_the_range(f, truth):
    """The relative error of each element is at most 4 ε."""
    x = np.concatenate([np.linspace(-40, 40, 201), [-1e-6, 1e-30]]).astype(np.float32)
    dy = np.float32(1) + 0 * x
    dx = jax.vjp(f, jnp.asarray(x))[1](jnp.asarray(dy))[0]
    t = truth(x, dy)
    errors = np.abs((exact(dx) - t) / t).astype(float)
    assert errors.max() <= 4 * EPS


@pytest.mark.few
@pytest.mark.parametrize("margin", [0, 1e-3, 1, 5, 10, 20, 40, 80])
@pytest.mark.parametrize("offset", [0, 1000, -1000])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("kind", ["index", "one-hot"])
def test_softmax_cross_entropy(kind, label, offset, margin):
    """Loss and gradient are accurate element by element, for likely and unlikely labels."""
    x = np.asarray([[margin, 0, -3]], np.float32) + np.float32(offset)
    x = np.roll(x, label, axis=-1) if label == 0 else x
    labels = np.asarray([label], np.int32) if kind == "index" else np.eye(3, dtype="f4")[[label]]
    loss, back = jax.vjp(lambda x: ops.softmax_cross_entropy(x, labels), jnp.asarray(x))
    dx = back(jnp.ones(1, jnp.float32))[0]

    order = [label, *(i for i in range(3) if i != label)]
    e = exponential(exact(x))[:, order]
    expected_loss = mp.log1p(e[0, 1:].sum() / e[0, 0])
    expected = cross_entropy_truth(x[:, order], np.ones(1))
    assert abs(exact(loss)[0] - expected_loss) <= 4 * EPS * expected_loss
    errors = np.abs((exact(dx)[:, order] - expected) / expected).astype(float)
    assert errors.max() <= 4 * EPS
