"""Tests of the distributions of initial weights and of their purpose. Source C 6.2."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import initializers, ops, optim
from funcnet.initializers import constant, he, lecun_normal, normal, xavier, zeros
from funcnet.layers import GRU, LSTM, RNN, Dense, GatedMLP, MultiHeadAttention, chain
from funcnet.training import TrainState, make_step

KEY = jax.random.key(0)
SHAPE = (400, 300)
GAUSSIAN = {  # and their standard deviations for SHAPE
    "normal(1)": (normal(1.0), 1.0),
    "normal(0.01)": (normal(), 0.01),
    "xavier": (xavier, np.sqrt(1 / 400)),
    "he": (he, np.sqrt(2 / 400)),
}
gaussian = pytest.mark.parametrize(("init", "std"), GAUSSIAN.values(), ids=GAUSSIAN)


@gaussian
def test_moments(init, std):
    """Mean 0, the expected standard deviation and kurtosis 3, within 5 standard errors."""
    w = np.asarray(init(KEY, SHAPE, jnp.float64)) / std
    root = np.sqrt(w.size)
    assert abs(w.mean()) < 5 / root
    assert abs(w.std() - 1) < 5 * np.sqrt(1 / 2) / root
    assert abs((w**4).mean() - 3) < 5 * np.sqrt(96) / root


@pytest.mark.parametrize(("init", "factor"), [(xavier, 1.0), (he, 2.0)])
def test_the_number_of_inputs_is_the_product_of_all_axes_but_the_last(init, factor):
    w = init(KEY, (5, 5, 8, 400), jnp.float64)
    assert abs(w.std() / np.sqrt(factor / 200) - 1) < 5 / np.sqrt(2 * w.size)


FIELD = [
    "lecun_normal",
    "lecun_uniform",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
]


@pytest.mark.few
@pytest.mark.parametrize("name", FIELD)
@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (3, 5, 60, 100), (7, 200, 80)])
def test_variance_is_that_of_jax_under_the_same_name(name, shape):
    """Mean 0 and the standard deviation of JAX's initializer, within 5 standard errors of both."""
    w, expected = (
        np.asarray(init(KEY, shape, jnp.float64))
        for init in (getattr(initializers, name), getattr(jax.nn.initializers, name)())
    )
    std = expected.std()
    assert abs(w.mean()) < 5 * std / np.sqrt(w.size)
    assert abs(w.std() / std - 1) < 5 / np.sqrt(w.size)  # its standard error is 1/√(2 size)
    if name.endswith("uniform"):
        np.testing.assert_allclose(abs(w).max(), abs(expected).max(), rtol=1e-3)


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (4, 3), (3, 3, 2, 4)])
def test_any_shape_and_the_names_of_the_book(shape):
    for name in FIELD:
        w = getattr(initializers, name)(KEY, list(shape))
        assert (w.shape, w.dtype) == (shape, jnp.float32)
        assert np.isfinite(w).all()
    for book, field in ((xavier, lecun_normal), (he, initializers.he_normal)):
        np.testing.assert_array_equal(book(KEY, shape), field(KEY, shape))


def test_layers_say_which_they_take():
    for default in (Dense, RNN, LSTM, GRU, MultiHeadAttention, GatedMLP):
        assert inspect.signature(default).parameters["w_init"].default is lecun_normal


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("init", [zeros, constant(0.5), normal(), xavier, he])
def test_shape_and_dtype(init, dtype):
    w = init(KEY, (4, 3), dtype)
    assert (w.shape, w.dtype) == ((4, 3), dtype)
    assert init(KEY, (4, 3)).dtype == jnp.float32


@gaussian
def test_a_key_decides(init, std):
    np.testing.assert_array_equal(init(KEY, SHAPE), init(KEY, SHAPE))
    assert (init(KEY, SHAPE) != init(jax.random.key(1), SHAPE)).mean() > 0.99


def test_constants():
    np.testing.assert_array_equal(zeros(KEY, (4, 3)), np.zeros((4, 3)))
    np.testing.assert_array_equal(constant(0.5)(KEY, (4, 3)), np.full((4, 3), 0.5))
    np.testing.assert_array_equal(normal(0.0)(KEY, (4, 3)), np.zeros((4, 3)))


ERRORS = {
    "normal: std must be a finite number of at least 0, got -1.0": lambda: normal(-1.0),
    "normal: std must be a finite number of at least 0, got nan": lambda: normal(np.nan),
    "normal: std must be a number, got '1'": lambda: normal("1"),
    "constant: value must be a finite number, got inf": lambda: constant(np.inf),
    "constant: value must be a number, got None": lambda: constant(None),
    "normal: key must be one key of jax.random.key, got 42": lambda: normal()(42, (2, 3)),
    **{
        f"{name}: key must be one key of jax.random.key, got key[2]": (
            lambda name=name: getattr(initializers, name)(jax.random.split(KEY), (2, 3))
        )
        for name in ["xavier", "he", *FIELD]
    },
    "xavier: shape must be a tuple of integers, got 3": lambda: xavier(KEY, 3),
    "he: shape[1] must be an integer of at least 0, got 2.5": lambda: he(KEY, (3, 2.5)),
    "constant: shape[0] must be an integer of at least 0, got -1": lambda: zeros(KEY, (-1, 2)),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        ERRORS[message]()


def test_std_may_be_traced():
    init = lambda std: normal(std)(KEY, (4, 3), jnp.float32)
    stds = jnp.array([0.0, 0.5, 2.0], jnp.float32)
    for std, w in zip(stds, jax.jit(jax.vmap(init))(stds), strict=True):
        np.testing.assert_allclose(w, init(float(std)), 1e-6)


def trained(init):
    """Weights of the hidden layer before and after 20 steps of gradient descent."""
    x = jax.random.normal(KEY, (12, 5), jnp.float64)
    net = chain(Dense(4, w_init=init), ops.tanh, Dense(3, w_init=init))
    start = TrainState.create(net, optim.sgd(0.5), KEY, x)
    step = jax.jit(make_step(net, ops.softmax_cross_entropy, optim.sgd(0.5)))
    train_state = start
    for _ in range(20):
        train_state, _ = step(train_state, x, jnp.arange(12) % 3)
    return start.params[0]["w"], train_state.params[0]["w"]


@pytest.mark.slow
def test_equal_neurons_stay_equal_and_random_ones_do_not():
    """With constant weights all neurons have the same gradient, so the symmetry is never broken.

    The columns may differ by rounding, although the weights have changed.
    """
    before, after = trained(constant(0.1))
    assert abs(after - before).max() > 1e-2
    assert (after.max(1) - after.min(1)).max() < 1e-14
    _, after = trained(xavier)
    assert (after.max(1) - after.min(1)).min() > 1e-2


@pytest.mark.few
@pytest.mark.parametrize(
    ("init", "activation", "gain"),
    [(xavier, ops.identity, 1.0), (he, ops.relu, 1.0), (xavier, ops.relu, 0.5)],
    ids=["xavier and identity", "he and relu", "xavier and relu"],
)
def test_what_each_is_for(init, activation, gain):
    """Five layers preserve ⟨y²⟩; with ReLU and without He's factor 2, each layer halves it.

    In a layer of n neurons, ⟨y²⟩ of an example fluctuates by a fraction of about √(5/n). Over five
    layers with n = 1000 this is 0.16, and in the worst case it is common to all examples.
    """
    x = jax.random.normal(KEY, (20, 1000), jnp.float32)
    net = chain(*[chain(Dense(1000, w_init=init), activation)] * 5)
    params, state = net.init(jax.random.key(1), x)
    y, _ = jax.jit(net.apply)(params, state, x)
    assert abs((y**2).mean() / (x**2).mean() / gain**5 - 1) < 5 * 0.16
