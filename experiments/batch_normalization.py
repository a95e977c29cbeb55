"""Does Batch Normalization make the initial weights matter less?

Question. A network learns only if its initial weights have the right scale. Batch Normalization
gives every layer inputs of mean 0 and variance 1, whatever the weights are. Does that help?

Method. Networks of 784-100×5-10 neurons with ReLU are trained on the first 1,000 training images
for 20 epochs by SGD with a learning rate of 0.01 and minibatches of 100. The initial weights are
Gaussian with 16 standard deviations from 1 to 10⁻⁴. Each network is trained with Batch
Normalization before every ReLU, and without. All 32 networks are trained in one vmapped program.

Expect. With Batch Normalization, networks learn at most scales, and faster. Without it, networks do
not learn at all at most scales.

Source. C 6.3 (the slide is empty: the figure is 6-19 of the book), A 4.2.1. Row X5.

Run time. 18 s on two cores of an AMD EPYC.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from experiments.networks import accuracy_on, digits, train, with_replacement
from funcnet import initializers, optim
from funcnet.layers import mlp

HIDDEN = (100,) * 5


@dataclass(frozen=True)
class Config:
    """Networks with and without Batch Normalization, over scales of the initial weights."""

    scales: int = 16
    """Number of standard deviations of the initial weights, from 1 to 1e-4."""
    images: int = 1000
    """Training images."""
    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 100
    """Images in a minibatch."""
    learning_rate: float = 0.01
    """Learning rate of SGD."""
    seed: int = 0
    """Seed of initial weights and minibatches."""


class Result(NamedTuple):
    """The results of `run`."""

    stds: jax.Array  # (scales,)
    with_bn: jax.Array  # accuracy on the training images after each epoch, (scales, epochs)
    without: jax.Array  # (scales, epochs)


def run(config: Config) -> Result:
    """Trains all networks in one vmapped program."""
    data = digits(config.images, 1)
    per_epoch = config.images // config.batch_size

    @jax.jit
    def train_all(key: Any, stds: jax.Array, x: jax.Array, labels: jax.Array) -> Any:
        key, order = jax.random.split(key)
        steps = config.epochs * per_epoch
        batches = with_replacement(order, len(x), steps, config.batch_size)

        def accuracies(std: jax.Array, batch_norm: bool) -> jax.Array:
            w_init = initializers.normal(std)
            model = mlp(*HIDDEN, 10, batch_norm=batch_norm, w_init=w_init)
            measure = accuracy_on(model, x, labels)
            sgd = optim.sgd(config.learning_rate)
            return train(model, sgd, key, x, labels, batches, every=per_epoch, measure=measure)[2]

        return jax.vmap(lambda std: (accuracies(std, True), accuracies(std, False)))(stds)

    stds = jnp.logspace(0, -4, config.scales, dtype=jnp.float32)
    return Result(stds, *train_all(jax.random.key(config.seed), stds, data.x, data.labels))


def plot(result: Result) -> Figure:
    """Plots one panel per scale, as in the book."""
    columns = 4
    rows = -(-len(result.stds) // columns)
    figure, axes = style.panels(rows, columns, sharex=True, sharey=True)
    for ax in axes.flat[len(result.stds) :]:
        ax.remove()
    for ax, std, on, off in zip(
        axes.flat, result.stds, result.with_bn, result.without, strict=False
    ):
        epochs = np.arange(1, len(on) + 1)
        ax.plot(epochs, 100 * on, label="Batch Normalization", **style.line(0))
        ax.plot(epochs, 100 * off, label="without", **style.line(1))
        style.label(ax, f"std {std:.2g}", ylim=(-4, 104))
    for ax in axes[-1]:
        ax.set_xlabel("epochs")
    figure.supylabel("accuracy on the training images (%)", fontsize=9)
    style.legend_below(figure, axes[0, 0])
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of the book about the figure."""
    on, off = np.asarray(result.with_bn), np.asarray(result.without)
    learns = lambda accuracies: (accuracies[:, -1] > 0.5).mean()
    faster = on.mean(1) > off.mean(1)
    return [
        claim(
            "With Batch Normalization the network learns at most scales, without it at few",
            learns(on) > 0.6 and learns(off) < 0.5,
            share_of_scales_with=learns(on),
            share_of_scales_without=learns(off),
        ),
        claim(
            "With Batch Normalization the network learns faster at most scales",
            faster.mean() > 0.7,
            share_of_scales=faster.mean(),
            mean_accuracy_with=on.mean(),
            mean_accuracy_without=off.mean(),
        ),
    ]
