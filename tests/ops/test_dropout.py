"""Tests particular to Dropout: the mask, its statistics, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

from funcnet import ops

N = 400_000


def mask(rate, shape, seed=0):
    return np.asarray(ops.dropout(jnp.ones(shape), jax.random.key(seed), rate=rate)) > 0


@pytest.mark.few
@pytest.mark.parametrize("rate", [0.01, *slow(0.2, 0.5), 0.9])
@pytest.mark.parametrize("shape", [(N,), (N // 10, 10), (N // 5, 5), (N, 1)])
def test_each_element_is_dropped_with_the_rate(rate, shape):
    """The rate over all elements and in each column is within 6 binomial standard errors."""
    r = mask(rate, shape)
    error = lambda n: 6 * np.sqrt(rate * (1 - rate) / n)
    assert abs(r.mean() - (1 - rate)) < error(r.size)
    if r.ndim == 2:
        assert (abs(r.mean(0) - (1 - rate)) < error(len(r))).all()


def test_neighbours_are_independent():
    """Pairs of elements share a random word, but along no axis are elements correlated."""
    r = mask(0.5, (632, 632)) - 0.5
    for axis in (0, 1):
        for lag in (1, 2, 3):
            a, b = np.take(r, range(lag, 632), axis), np.take(r, range(632 - lag), axis)
            assert abs((a * b).mean() * 4) < 6 / np.sqrt(a.size)


def test_the_scale_is_exact_and_the_mean_is_kept():
    y = np.asarray(ops.dropout(jnp.full(N, 3.0), jax.random.key(1), rate=0.2))
    assert set(np.unique(y)) == {0.0, 3.0 / 0.8}
    assert abs(y.mean() - 3.0) < 6 * 3.0 * np.sqrt(0.25 / N)


def test_rate_zero_keeps_everything():
    assert mask(0.0, (1_000_000,)).all()


def test_a_key_decides_the_mask():
    assert (mask(0.5, (100,), 0) == mask(0.5, (100,), 0)).all()
    assert (mask(0.5, (100,), 0) != mask(0.5, (100,), 1)).any()


def test_forward_and_backward_drop_the_same():
    x = jnp.arange(1.0, 101.0)
    y, back = jax.vjp(lambda x: ops.dropout(x, jax.random.key(0), rate=0.5), x)
    assert ((y == 0) == (back(x)[0] == 0)).all()
    assert (back(x)[0] == y).all()  # dropout is linear, so y and dx agree for dy = x


def test_examples_drop_independently_under_vmap():
    keys = jax.random.split(jax.random.key(0), 4)
    y = jax.vmap(lambda k: ops.dropout(jnp.ones(64), k, rate=0.5))(keys)
    assert len({tuple(row) for row in np.asarray(y).tolist()}) == 4


@pytest.mark.parametrize("rate", [1.0, -0.1, 1.5, float("nan")])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError) as e:
        ops.dropout(jnp.ones(3), jax.random.key(0), rate=rate)
    assert str(e.value) == f"dropout: rate must be a number in [0, 1), got {rate}"


@pytest.mark.parametrize(
    ("key", "got"),
    [
        (42, "int64[]"),
        (None, "None"),
        (jax.random.split(jax.random.key(0), 2), "key[2]"),
        (np.zeros(2, np.int32), "int32[2]"),
    ],
)
def test_what_is_no_key(key, got):
    with pytest.raises(TypeError) as e:
        ops.dropout(jnp.ones(3), key, rate=0.5)
    line = str(e.value).splitlines()[0]
    assert line.startswith("dropout: key must be ")
    assert line.endswith(got)
