"""How much do the initial weights affect training on MNIST?

Question. Histograms of activations differ a lot between initial weights. Does training differ as
much? And why must the initial weights not all be equal?

Method. The network 784-100-100-100-100-10 with ReLU is trained with 2,000 minibatches of 128 images
by SGD with a learning rate of 0.01. The initial weights are Gaussian with a standard deviation of
0.01, Xavier or He, or they are all 0 or all 0.01. After training, the largest difference between
the weights of two neurons is measured in each hidden layer.

Expect. With a standard deviation of 0.01 the network learns hardly anything. With Xavier and He it
learns, and fastest with He. Equal weights get equal gradients, so all neurons of a layer remain
identical.

Source. C 6.2, figure 6-15 of the book, and "0??? No". Rows X4 and W1.

Run time. 17 s on two cores of an AMD EPYC.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from experiments.networks import accuracy_on, digits, smooth, train, with_replacement
from funcnet import initializers, optim
from funcnet.layers import mlp

HIDDEN = (100, 100, 100, 100)
INITIALIZERS = {
    "std = 0.01": initializers.normal(0.01),
    "Xavier": initializers.xavier,
    "He": initializers.he,
    "all 0": initializers.zeros,
    "all 0.01": initializers.constant(0.01),
}


@dataclass(frozen=True)
class Config:
    """Initial weights on MNIST."""

    learning_rate: float = 0.01
    """Learning rate of SGD."""
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
    """The results of `run` for each kind of initial weights."""

    losses: dict[str, jax.Array]  # (iterations,)
    accuracies: dict[str, jax.Array]  # final accuracy on the test images
    apart: dict[str, jax.Array]  # `neurons_apart` after training, (hidden layers,)


def neurons_apart(params: Any) -> jax.Array:
    """The largest difference between the weights of two neurons, for each hidden layer.

    It is relative to the largest weight of the layer; 0 if all neurons are identical.
    """
    weights = [p["w"] for p in params if p][:-1]
    of = lambda w: (w.max(1) - w.min(1)).max() / jnp.maximum(jnp.abs(w).max(), 1e-30)
    return jnp.stack([of(w) for w in weights])


def run(config: Config) -> Result:
    """Trains the five networks in one vmapped program."""
    models = [mlp(*HIDDEN, 10, w_init=init) for init in INITIALIZERS.values()]
    model = models[0]  # the models differ only in their initial weights

    @jax.jit
    def train_all(key: Any, data: Any) -> Any:
        key, order = jax.random.split(key)
        batches = with_replacement(order, len(data.x), config.iterations, config.batch_size)
        firsts = [m.init(key, data.x[:1])[0] for m in models]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *firsts)

        def one(params: Any) -> Any:
            from_here = model._replace(init=lambda *_: (params, model.init(key, data.x[:1])[1]))
            state, losses, accuracies = train(
                from_here,
                optim.sgd(config.learning_rate),
                key,
                data.x,
                data.labels,
                batches,
                measure=accuracy_on(model, data.x_test, data.labels_test),
            )
            return losses, accuracies[-1], neurons_apart(state.params)

        return jax.vmap(one)(stacked)

    found = train_all(jax.random.key(config.seed), digits(config.train, config.test))
    return Result(*(dict(zip(INITIALIZERS, values, strict=True)) for values in found))


def plot(result: Result) -> Figure:
    """Plots the losses, smoothed as in the book, and the differences between neurons."""
    figure, axes = style.panels(1, 2, height=4.4)
    curves, apart = axes.flat
    layers = np.arange(1, len(HIDDEN) + 1)
    for i, (name, losses) in enumerate(result.losses.items()):
        curves.plot(smooth(losses), label=name, linewidth=1, **style.line(i))
        shown = np.maximum(np.asarray(result.apart[name]), 1e-9)
        apart.semilogy(layers, shown, marker="o", **style.line(i))
    style.label(curves, "Loss", "iterations", "cross entropy (nats)", ylim=(0, 2.5))
    title = "Difference between neurons after training"
    style.label(apart, title, "hidden layer", "largest, relative (10⁻⁹: zero)", xticks=layers)
    style.legend_below(figure, curves, columns=5)
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of C 6.2."""
    tenth = len(result.losses["He"]) // 10
    ends = {name: float(np.mean(losses[-tenth:])) for name, losses in result.losses.items()}
    means = {name: float(np.mean(losses)) for name, losses in result.losses.items()}
    apart = {name: float(np.max(a)) for name, a in result.apart.items()}
    guess = np.log(10)
    return [
        claim(
            "With std 0.01 the network does not learn: its loss stays at chance, ln 10 = 2.303",
            abs(ends["std = 0.01"] - guess) < 0.05,
            **ends,
        ),
        claim(
            "With Xavier and He the network learns, and fastest with He",
            means["He"] < means["Xavier"] < means["std = 0.01"] and ends["Xavier"] < 1,
            **means,
        ),
        claim(
            "With equal weights the network does not learn either",
            min(ends["all 0"], ends["all 0.01"]) > guess - 0.3,
            **ends,
        ),
        claim(
            "Neurons that start equal stay equal; random ones differ",
            max(apart["all 0"], apart["all 0.01"]) < 1e-2 and apart["He"] > 0.5,
            **apart,
        ),
    ]
