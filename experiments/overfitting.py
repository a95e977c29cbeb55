"""What keeps a large network from memorising 300 images?

Question. A network with many parameters and few examples overfits: it fits the training examples
but does not generalise. How much do weight decay, Dropout and an L1 penalty narrow the gap between
the accuracies on training and test images?

Method. The network 784-100×6-10 with ReLU and He's initial weights is trained on the first 300
training images by SGD with a learning rate of 0.01 and minibatches of 100. It is trained without
regularization, with an L2 penalty of λ = 0.1, with Dropout of 0.2 after each hidden layer, and with
an L1 penalty. The penalties apply to the weights, not to the biases. Networks that differ only in
the values of λ are vmapped.

Expect. Without regularization, all training images are classified correctly after 100 epochs, and
the accuracy on the test images stays far behind. With weight decay and Dropout, the mean gap over
the run is narrower, and the training accuracy does not reach 100 %. Dropout mostly delays
overfitting: at epoch 300 its gap is close to that without regularization. L1 makes most weights
nearly 0.

Source. C 6.4 (figures 6-20 to 6-23 of the book), A 4.2.2 and 4.3.1 to 4.3.3. Row X6.

Run time. 20 s on two cores of an AMD EPYC.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from experiments.networks import accuracy_on, digits, train, with_replacement
from funcnet import initializers, optim
from funcnet.layers import mlp
from funcnet.training import TrainState

HIDDEN = (100,) * 6
NAMES: tuple[str, ...] = ("none", "weight decay", "L1", "Dropout")
NEAR_0 = 1e-3  # weights with |w| of at most this count as 0


@dataclass(frozen=True)
class Config:
    """Overfitting, and three ways to reduce it."""

    images: int = 300
    """Training images."""
    test: int = 10000
    """Test images."""
    epochs: int = 300
    """Passes over the training images."""
    every: int = 5
    """Epochs between measurements."""
    batch_size: int = 100
    """Images in a minibatch."""
    learning_rate: float = 0.01
    """Learning rate of SGD."""
    weight_decay: float = 0.1
    """λ of the L2 penalty ½λ‖W‖²."""
    l1: float = 0.01
    """λ of the L1 penalty λ‖W‖₁."""
    dropout: float = 0.2
    """Probability of dropping the output of a hidden neuron."""
    seed: int = 0
    """Seed of initial weights, minibatches and Dropout."""


class Result(NamedTuple):
    """The results of `run` for each kind of regularization."""

    epochs: np.ndarray  # epochs of the measurements
    train: dict[str, jax.Array]  # accuracy on the training images at the measurements
    test: dict[str, jax.Array]  # accuracy on the test images at the measurements
    weights: dict[str, jax.Array]  # all weights at the end, (n,)


def of_weights(params: Any) -> Any:
    """Mask of the penalties: True for weights, False for biases."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "w", params)


def run(config: Config) -> Result:
    """Trains the four networks in one compiled program."""
    per_epoch = config.images // config.batch_size

    @jax.jit
    def train_all(key: Any, data: Any) -> Any:
        key, order = jax.random.split(key)
        steps = config.epochs * per_epoch
        batches = with_replacement(order, len(data.x), steps, config.batch_size)

        def one(l1: Any, l2: Any, dropout: float = 0.0) -> Any:
            model = mlp(*HIDDEN, 10, dropout=dropout, w_init=initializers.he)
            optimizer = optax.chain(
                optax.masked(optim.elastic_net(l1, l2), of_weights), optim.sgd(config.learning_rate)
            )
            on_train = accuracy_on(model, data.x, data.labels)
            on_test = accuracy_on(model, data.x_test, data.labels_test)

            def measure(state: TrainState) -> Any:
                return on_train(state), on_test(state)

            state, _, measured = train(
                model, optimizer, key, data.x, data.labels, batches,
                every=config.every * per_epoch, measure=measure,
            )  # fmt: skip
            weights = [p["w"].ravel() for p in state.params if p]
            return *measured, jnp.concatenate(weights)

        l1 = jnp.array([0, 0, config.l1], jnp.float32)
        l2 = jnp.array([0, config.weight_decay, 0], jnp.float32)
        append = lambda many, last: jnp.concatenate([many, last[None]])
        return jax.tree.map(append, jax.vmap(one)(l1, l2), one(0.0, 0.0, config.dropout))

    found = train_all(jax.random.key(config.seed), digits(config.images, config.test))
    epochs = np.arange(config.every, config.epochs + 1, config.every)
    return Result(epochs, *(dict(zip(NAMES, values, strict=True)) for values in found))


def plot(result: Result) -> Figure:
    """Plots the accuracies as in the book, and the distribution of the sizes of the weights."""
    figure, axes = style.panels(2, 3, height=5.2)
    weights = axes[0, 2]
    axes[1, 2].axis("off")
    for ax, name in zip((*axes[0, :2], *axes[1, :2]), NAMES, strict=True):
        ax.plot(result.epochs, 100 * result.train[name], label="training images", **style.line(0))
        ax.plot(result.epochs, 100 * result.test[name], label="test images", **style.line(1))
        style.label(ax, name, "epochs", "accuracy (%)", ylim=(0, 101))
    bins = np.logspace(-7, 0, 71)
    for i, name in enumerate(NAMES):
        sizes = np.abs(np.asarray(result.weights[name]))
        counts, edges = np.histogram(np.clip(sizes, bins[0], None), bins)
        weights.stairs(counts / len(sizes), edges, label=name, **style.line(i))
    weights.axvline(NEAR_0, color="gray", linewidth=0.8)
    style.label(weights, "Sizes of the weights", "|w|", "share", xscale="log")
    axes[1, 2].legend(*weights.get_legend_handles_labels(), loc="upper center")
    style.legend_below(figure, axes[0, 0])
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of C 6.4 and A 4.3."""
    train_at_end = {n: float(a[-1]) for n, a in result.train.items()}
    gaps = {n: np.asarray(result.train[n]) - np.asarray(result.test[n]) for n in NAMES}
    mean_gap = {n: float(gap.mean()) for n, gap in gaps.items()}
    last_gap = {n: float(gap[-1]) for n, gap in gaps.items()}
    near_0 = {n: float((np.abs(np.asarray(w)) <= NEAR_0).mean()) for n, w in result.weights.items()}
    norm = {n: float(np.linalg.norm(w)) for n, w in result.weights.items()}
    return [
        claim(
            "With weight decay and Dropout, the training accuracy stays below 100 %",
            max(train_at_end["weight decay"], train_at_end["Dropout"]) < 1,
            **train_at_end,
        ),
        claim(
            "Without regularization all training images are classified correctly, and the test "
            "accuracy is far lower",
            train_at_end["none"] > 0.99 and last_gap["none"] > 0.15,
            training=train_at_end["none"],
            test=float(result.test["none"][-1]),
        ),
        claim(
            "On average over the run, weight decay and Dropout narrow the gap",
            max(mean_gap["weight decay"], mean_gap["Dropout"]) < 0.9 * mean_gap["none"],
            **{f"mean_gap,_{n}": g for n, g in mean_gap.items()},
            **{f"last_gap,_{n}": g for n, g in last_gap.items()},
        ),
        claim(
            "Weight decay makes the weights smaller", norm["weight decay"] < norm["none"], **norm
        ),
        claim(
            "L1 makes most weights nearly 0; the other methods do not",
            near_0["L1"] > 0.5 > max(near_0["none"], near_0["weight decay"], near_0["Dropout"]),
            **{f"share_of_|w|_≤_{NEAR_0},_{n}": s for n, s in near_0.items()},
        ),
    ]
