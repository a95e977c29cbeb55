"""Training many networks at once: one compiled program, with `jax.vmap` over what they differ in.

`train` is one training run. It is pure, so many are `jax.vmap(lambda setting: train(…))(settings)`
under one `jax.jit`, where a setting (a learning rate, a scale of the initial weights) may be any
number that the function builds its model, its optimizer or its penalty from. All networks see the
same minibatches, as in the book.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcnet import ops
from funcnet.datasets import mnist
from funcnet.layers import Layer
from funcnet.training import TrainState, accuracy, make_step


class Digits(NamedTuple):
    """MNIST as the book uses it: rows of 784 numbers in [0, 1], and labels."""

    x: jax.Array  # float32 (n, 784)
    labels: jax.Array  # int32 (n,)
    x_test: jax.Array
    labels_test: jax.Array


def digits(train: int = 60000, test: int = 10000) -> Digits:
    """The first images of the training set and of the test set.

    Raises:
      ValueError: If more are asked for than there are.
    """
    data = mnist()
    for name, n, images in (
        ("train", train, data.train_images),
        ("test", test, data.test_images),
    ):
        if not 1 <= n <= len(images):
            raise ValueError(f"digits: {name} must be 1 to {len(images)} images, got {n}")
    rows = lambda images: jnp.asarray(images.reshape(len(images), -1), jnp.float32) / 255
    return Digits(
        rows(data.train_images[:train]),
        jnp.asarray(data.train_labels[:train]),
        rows(data.test_images[:test]),
        jnp.asarray(data.test_labels[:test]),
    )


def with_replacement(key: Any, n: int, steps: int, batch_size: int) -> jax.Array:
    """Minibatches as the book draws them: int32 (steps, batch_size), each an index below n."""
    return jax.random.randint(key, (steps, batch_size), 0, n, jnp.int32)


def train(
    model: Layer,
    optimizer: optax.GradientTransformation,
    key: Any,
    x: jax.Array,
    labels: jax.Array,
    batches: jax.Array,
    *,
    every: int = 0,
    measure: Callable[[TrainState], Any] = lambda _: (),
) -> tuple[TrainState, jax.Array, Any]:
    """Trains one network to classify, by the cross entropy of its softmax.

    Args:
      model: The network.
      optimizer: Its optimizer.
      key: Decides initial weights and dropout.
      x: Examples, on the first axis.
      labels: Their labels.
      batches: Of shape (steps, batch_size): which examples each step sees.
      every: Measure after so many steps, which must divide their number; 0: only at the end.
      measure: What to measure, a pure function of the state of training.

    Returns:
      The state at the end, the loss of each step's minibatch before the step, shape (steps,), and
      what was measured, with a leading axis of steps / every.
    """
    step = make_step(model, ops.softmax_cross_entropy, optimizer)
    steps = len(batches)
    batches = batches.reshape(steps // (every or steps), every or steps, -1)

    def one(state: TrainState, batch: jax.Array) -> tuple[TrainState, jax.Array]:
        state, metrics = step(state, x[batch], labels[batch])
        return state, metrics["loss"]

    def some(state: TrainState, batches: jax.Array) -> tuple[TrainState, tuple[jax.Array, Any]]:
        state, losses = jax.lax.scan(one, state, batches)
        return state, (losses, measure(state))

    state, (losses, measured) = jax.lax.scan(
        some, TrainState.create(model, optimizer, key, x[:1]), batches
    )
    return state, losses.reshape(steps), measured


def accuracy_on(model: Layer, x: jax.Array, labels: jax.Array) -> Callable[[TrainState], jax.Array]:
    """A measurement for `train`: the share of the examples whose label has the largest output."""

    def measure(state: TrainState) -> jax.Array:
        y, _ = model.apply(state.params, state.state, x)
        return accuracy(y, labels).mean()

    return measure


def smooth(losses: Any, width: int = 11) -> Any:
    """A moving average over the last axis, for plots of the loss of single minibatches.

    Weighted by a Kaiser window of shape 2, as in the book; at the ends over what there is of it.
    """
    window = np.kaiser(width, 2)
    average = lambda row: (
        np.convolve(row, window, "same") / np.convolve(np.ones_like(row), window, "same")
    )
    return np.apply_along_axis(average, -1, np.asarray(losses))
