"""Which optimizer learns MNIST fastest?

Question. In a long valley the four optimizers differ a lot. Do they also differ on a real problem?

Method. A network of 784-100-100-100-100-10 neurons with ReLU and He's initial weights is trained
with 2,000 minibatches of 128 images and the learning rates of the book: SGD 0.01, Momentum 0.01
(α = 0.9), AdaGrad 0.01, Adam 0.001. All optimizers see the same minibatches and start from the same
weights.

Expect. SGD is the slowest; the other three are close together. Which of them is best depends on the
learning rates, the network and the problem, as the source says.

Source. C 6.1, "How to choose". Row X2.

Run time. 17 s on two cores of an AMD EPYC.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from experiments.networks import accuracy_on, digits, smooth, train, with_replacement
from funcnet import initializers, optim
from funcnet.layers import mlp

HIDDEN = (100, 100, 100, 100)


@dataclass(frozen=True)
class Config:
    """Four optimizers on MNIST."""

    sgd: float = 0.01
    """Learning rate of SGD."""
    momentum: float = 0.01
    """Learning rate of Momentum, whose α is 0.9."""
    adagrad: float = 0.01
    """Learning rate of AdaGrad."""
    adam: float = 0.001
    """Learning rate of Adam."""
    iterations: int = 2000
    """Number of minibatches."""
    batch_size: int = 128
    """Images in a minibatch."""
    train: int = 60000
    """Training images."""
    test: int = 10000
    """Test images."""
    seed: int = 0
    """Seed of initial weights and minibatches."""


class Result(NamedTuple):
    """The results of `run` for each optimizer."""

    losses: dict[str, jax.Array]  # (iterations,)
    accuracies: dict[str, jax.Array]  # final accuracy on the test images


def run(config: Config) -> Result:
    """Trains the four networks in one compiled program."""
    optimizers = {
        "SGD": optim.sgd(config.sgd),
        "Momentum": optim.momentum(config.momentum),
        "AdaGrad": optim.adagrad(config.adagrad),
        "Adam": optim.adam(config.adam),
    }
    model = mlp(*HIDDEN, 10, w_init=initializers.he)

    @jax.jit
    def train_all(key: Any, data: Any) -> list[Any]:
        key, order = jax.random.split(key)
        batches = with_replacement(order, len(data.x), config.iterations, config.batch_size)
        measure = accuracy_on(model, data.x_test, data.labels_test)
        return [
            train(model, o, key, data.x, data.labels, batches, measure=measure)[1:]
            for o in optimizers.values()
        ]

    found = train_all(jax.random.key(config.seed), digits(config.train, config.test))
    losses, accuracies = zip(*found, strict=True)
    by_name = lambda values: dict(zip(optimizers, values, strict=True))
    return Result(by_name(losses), by_name([a[-1] for a in accuracies]))


def plot(result: Result) -> Figure:
    """Plots the losses, smoothed as in the book."""
    figure, axes = style.panels(1, 1, width=7, height=4.6)
    ax = axes[0, 0]
    for i, (name, losses) in enumerate(result.losses.items()):
        ax.plot(smooth(losses), label=name, linewidth=1, **style.line(i))
    style.label(ax, "", "iterations", "cross entropy (nats)", ylim=(0, 1))
    style.legend_below(figure, ax)
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of C 6.1 about the figure."""
    means = {name: float(np.mean(losses)) for name, losses in result.losses.items()}
    ends = {
        name: float(np.mean(losses[-len(losses) // 10 :])) for name, losses in result.losses.items()
    }
    others = [v for name, v in means.items() if name != "SGD"]
    return [
        claim(
            "SGD learns slowest: its loss is the largest over the whole run",
            max(others) < means["SGD"],
            **means,
        ),
        claim(
            "The other three end with a lower loss than SGD",
            max(v for n, v in ends.items() if n != "SGD") < ends["SGD"],
            **ends,
        ),
        claim(
            "All four networks learn", min(result.accuracies.values()) > 0.5, **result.accuracies
        ),
    ]
