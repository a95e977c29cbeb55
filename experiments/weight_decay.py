"""Why is an L2 penalty in Adam not weight decay, and what does AdamW do instead?

Question. For SGD, an L2 penalty λ/2 ‖w‖² is the same as shrinking the weights by 1 − ηλ at every
step. Adam divides the gradient by its own size. What does that do to the gradient of the penalty?

Method. A network 784-100-10 is trained on 2,000 images of MNIST with Adam: without penalty, with an
L2 penalty of λ and of λ/10 in the gradient, and with the decay of AdamW. All four runs are one
vmapped program. Some pixels are blank in all images, so the only gradient of their weights is that
of the penalty, which isolates its effect. The other weights decay per step by a fraction of ηλ/√Ĝ
in Adam and of ηλ in AdamW.

Expect. With L2, the weights of blank pixels go to 0 at a speed of η for any λ, because Adam scales
λ away. The other weights decay by fractions that differ by orders of magnitude and are smallest
where the gradients are large. With AdamW all weights decay by the same factor, (1 − ηλ)ᵗ.

Source. A 4.3.4; Loshchilov & Hutter, Decoupled weight decay regularization, 2019. Row X9.

Run time. 14 s on two cores of an AMD EPYC.
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

NAMES: tuple[str, ...] = ("Adam", "Adam + L2, λ", "Adam + L2, λ/10", "AdamW")
B2, EPS = 0.999, 1e-8  # hyper-parameters β₂ and ε of Adam


@dataclass(frozen=True)
class Config:
    """L2 in Adam compared with AdamW."""

    l2: float = 0.01
    """λ of the L2 penalty."""
    weight_decay: float = 1.0
    """λ of AdamW, which is multiplied only by the learning rate."""
    learning_rate: float = 0.001
    """Learning rate of Adam and AdamW."""
    hidden: int = 100
    """Neurons of the hidden layer."""
    images: int = 2000
    """Training images."""
    test: int = 10000
    """Test images."""
    iterations: int = 1000
    """Number of minibatches."""
    every: int = 10
    """Minibatches between measurements."""
    batch_size: int = 100
    """Images in a minibatch."""
    seed: int = 0
    """Seed of initial weights and minibatches."""


class Result(NamedTuple):
    """The results of `run` for each method; measurements have an axis of iterations / every."""

    config: Config
    steps: np.ndarray  # steps of the measurements
    first: jax.Array  # initial weights of the first layer, (784, hidden)
    blank: np.ndarray  # True for pixels that are blank in all images, (784,)
    of_blank: dict[str, jax.Array]  # mean |w| of the weights of blank pixels
    of_others: dict[str, jax.Array]  # mean |w| of the other weights
    test: dict[str, jax.Array]  # accuracy on the test images
    last: dict[str, jax.Array]  # final weights of the first layer
    root: dict[str, jax.Array]  # final √Ĝ + ε of the weights of the first layer


def run(config: Config) -> Result:
    """Trains the four networks in one vmapped program."""
    data = digits(config.images, config.test)
    blank = np.asarray(data.x.max(0) == 0)
    model = mlp(config.hidden, 10, w_init=initializers.he)

    @jax.jit
    def train_all(key: Any, data: Any, l2: jax.Array, decay: jax.Array) -> Any:
        key, order = jax.random.split(key)
        batches = with_replacement(order, len(data.x), config.iterations, config.batch_size)
        on_test = accuracy_on(model, data.x_test, data.labels_test)

        def measure(state: TrainState) -> Any:
            size = jnp.abs(state.params[0]["w"]).mean(1)
            return size[blank].mean(), size[~blank].mean(), on_test(state)

        def one(l2: jax.Array, decay: jax.Array) -> Any:
            adamw = optim.adamw(config.learning_rate, b2=B2, eps=EPS, weight_decay=decay)
            state, _, measured = train(
                model, optax.chain(optim.l2(l2), adamw), key, data.x, data.labels, batches,
                every=config.every, measure=measure,
            )  # fmt: skip
            G = state.opt_state[1].G[0]["w"]
            G_hat = G / (1 - B2**config.iterations)
            return *measured, state.params[0]["w"], jnp.sqrt(G_hat) + EPS

        first, _ = TrainState.create(model, optim.adam(0.0), key, data.x[:1])[:2]
        return first[0]["w"], jax.vmap(one)(l2, decay)

    l2 = jnp.array([0, config.l2, config.l2 / 10, 0], jnp.float32)
    decay = jnp.array([0, 0, 0, config.weight_decay], jnp.float32)
    first, found = train_all(jax.random.key(config.seed), data, l2, decay)
    steps = np.arange(config.every, config.iterations + 1, config.every)
    by_name = [dict(zip(NAMES, values, strict=True)) for values in found]
    return Result(config, steps, first, blank, *by_name)


def decays(result: Result) -> dict[str, np.ndarray]:
    """Decay over ηλ, at the last step, of the first-layer weights of pixels that are not blank."""
    others = ~result.blank
    return {
        name: np.ones_like(root[others]) if name == "AdamW" else 1 / np.asarray(root)[others]
        for name, root in result.root.items()
        if name != "Adam"
    }


def plot(result: Result) -> Figure:
    """Plots the weights of blank and of other pixels, the decay of weights, and the accuracy."""
    figure, axes = style.panels(2, 2, height=5.8)
    blank, others, decay, test = axes.flat
    for i, name in enumerate(NAMES):
        blank.plot(result.steps, result.of_blank[name], label=name, **style.line(i))
        others.plot(result.steps, result.of_others[name], **style.line(i))
        test.plot(result.steps, 100 * result.test[name], **style.line(i))
        if name == "AdamW":
            decay.axvline(1, **style.line(i))
        elif name != "Adam":
            sizes = decays(result)[name]
            bins = np.geomspace(sizes.min(), np.quantile(sizes, 0.999), 60)
            decay.stairs(np.histogram(sizes, bins)[0] / sizes.size, bins, **style.line(i))
    style.label(blank, "Weights of blank pixels", "minibatches", "mean |w|", ylim=(0, None))
    style.label(others, "Weights of other pixels", "minibatches", "mean |w|", ylim=(0, None))
    style.label(decay, "Decay of a weight in a step", "over ηλ", "share", xscale="log")
    style.label(test, "Test images", "minibatches", "accuracy (%)", ylim=(80, 100))
    style.legend_below(figure, blank)
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of A 4.3.4."""
    c = result.config
    blank = {name: np.asarray(sizes) for name, sizes in result.of_blank.items()}
    start = float(np.abs(np.asarray(result.first)[result.blank]).mean())
    lam, tenth = blank["Adam + L2, λ"], blank["Adam + L2, λ/10"]
    factor = (1 - c.learning_rate * c.weight_decay) ** result.steps
    first, last = (np.asarray(w)[result.blank] for w in (result.first, result.last["AdamW"]))
    error = np.abs(last / first / factor[-1] - 1).max()
    quantiles = {n: np.quantile(d, [0.05, 0.95]) for n, d in decays(result).items()}
    ratio = {n: high / low for n, (low, high) in quantiles.items()}
    return [
        claim(
            "In Adam the decay of a weight depends on its gradients; in AdamW it does not",
            ratio["Adam + L2, λ"] > 3 and ratio["AdamW"] == 1,
            **{"95_%_over_5_%_quantile_with_λ": ratio["Adam + L2, λ"]},
            **{"with_λ/10": ratio["Adam + L2, λ/10"], "in_AdamW": ratio["AdamW"]},
        ),
        claim(
            "In Adam, λ and λ/10 drive weights without other gradients to 0 at the same speed",
            np.abs(lam - tenth).max() < 0.02 * start and lam[-1] < 0.05 * start,
            first_mean=start,
            last_mean_with_λ=lam[-1],
            last_mean_with_a_tenth=tenth[-1],
            largest_difference=np.abs(lam - tenth).max(),
        ),
        claim(
            "In AdamW these weights decay by (1 − ηλ)ᵗ",
            error < 1e-4,
            largest_relative_error=error,
            factor_at_the_end=factor[-1],
        ),
    ]
