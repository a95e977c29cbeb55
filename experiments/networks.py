"""Training many networks in one compiled program, by `jax.vmap` over the settings that differ.

`train` is one training run. It is pure, so that `jax.vmap(lambda setting: train(…))(settings)`
under one `jax.jit` does many runs. A setting is any number from which the function builds its
model, its optimizer or its penalty, e.g. a learning rate or the scale of the initial weights. All
networks see the same minibatches, as in the book.
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
    """MNIST as the book uses it: images as rows of 784 numbers in [0, 1], and labels."""

    x: jax.Array  # float32 (n, 784)
    labels: jax.Array  # int32 (n,)
    x_test: jax.Array
    labels_test: jax.Array


def digits(train: int = 60000, test: int = 10000) -> Digits:
    """Loads the first `train` training images and the first `test` test images of MNIST.

    Raises:
      ValueError: If `train` or `test` is less than 1 or larger than the data set.
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
    """Draws minibatches as the book does: int32 indices below n, shape (steps, batch_size)."""
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
    """Trains one classifier with softmax cross entropy.

    Args:
      model: The network.
      optimizer: The optimizer.
      key: Random key for the initial weights and Dropout.
      x: Examples along the first axis.
      labels: Labels of the examples.
      batches: Indices of the examples of each step's minibatch, shape (steps, batch_size).
      every: Number of steps between measurements; must divide `steps`. 0 measures only at the end.
      measure: Pure function of the training state that returns the measurement.

    Returns:
      The final training state; the loss of each minibatch before its step, shape (steps,); the
      measurements, with a leading axis of length steps / every.
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
    """A measurement for `train`: the accuracy of the model on the examples `x`.

    An example with an output that is nan counts as wrong: the network has diverged.
    """

    def measure(state: TrainState) -> jax.Array:
        y, _ = model.apply(state.params, state.state, x)
        return jnp.nan_to_num(accuracy(y, labels)).mean()

    return measure


def smooth(losses: Any, width: int = 11) -> Any:
    """Moving average over the last axis, for plots of the loss of single minibatches.

    The weights are a Kaiser window with β = 2, as in the book. At both ends, the window is cut off
    and its weights are renormalised.
    """
    window = np.kaiser(width, 2)
    average = lambda row: (
        np.convolve(row, window, "same") / np.convolve(np.ones_like(row), window, "same")
    )
    return np.apply_along_axis(average, -1, np.asarray(losses))
