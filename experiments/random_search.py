"""Which learning rate and which weight decay work best?

Question. Hyper-parameters are found by trial. How much do 100 random trials tell, and how much
faster are they in one vmapped program than one after another?

Method. The network 784-100×6-10 with ReLU and He's initial weights is trained on 400 images by SGD
with minibatches of 100 for 50 epochs and validated on 100 other images. The learning rate is
10^U(−6, −2), the weight decay 10^U(−8, −4). All 100 trials are one vmapped program, compiled once.
To compare run times, a few trials also run one after another: each as one compiled program, and as
a Python loop of compiled steps.

Expect. The learning rate decides nearly everything: good trials have one near the upper end of its
range. The weight decays of good trials are spread over their whole range.

Source. C 6.5 (figure 6-24 of the book). Row X7.

Run time. 51 s on two cores of an AMD EPYC.
"""

import time
from collections.abc import Callable
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
from funcnet import initializers, ops, optim
from funcnet.layers import mlp
from funcnet.training import TrainState, make_step

HIDDEN = (100,) * 6


@dataclass(frozen=True)
class Config:
    """Random search of learning rate and weight decay."""

    trials: int = 100
    """Number of trials, i.e. pairs of learning rate and weight decay."""
    images: int = 400
    """Training images."""
    validation: int = 100
    """Validation images: those after the training images in the training set."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 100
    """Images in a minibatch."""
    learning_rates: tuple[float, float] = (-6.0, -2.0)
    """Exponents, base 10, of the smallest and the largest learning rate."""
    weight_decays: tuple[float, float] = (-8.0, -4.0)
    """Exponents, base 10, of the smallest and the largest weight decay."""
    timed: int = 3
    """Trials to run one after another to measure their time; 0: none."""
    seed: int = 0
    """Seed of the trials, initial weights and minibatches."""


class Result(NamedTuple):
    """The results of `run`."""

    learning_rates: jax.Array  # (trials,)
    weight_decays: jax.Array  # (trials,)
    validation: jax.Array  # accuracy after each epoch, (trials, epochs)
    training: jax.Array  # accuracy after each epoch, (trials, epochs)
    seconds: dict[str, float]  # time per trial without compilation, for the three ways to run them


def run(config: Config) -> Result:
    """Runs all trials in one vmapped program, and some of them one after another."""
    data = digits(config.images + config.validation, 1)
    x, labels = data.x[: config.images], data.labels[: config.images]
    x_other, labels_other = data.x[config.images :], data.labels[config.images :]
    per_epoch = config.images // config.batch_size
    key, order, draw = jax.random.split(jax.random.key(config.seed), 3)
    batches = with_replacement(order, len(x), config.epochs * per_epoch, config.batch_size)
    model = mlp(*HIDDEN, 10, w_init=initializers.he)
    on_train, on_others = accuracy_on(model, x, labels), accuracy_on(model, x_other, labels_other)
    measure = lambda state: (on_others(state), on_train(state))

    def optimizer(rate: Any, decay: Any) -> optax.GradientTransformation:
        return optax.chain(optim.l2(decay), optim.sgd(rate))

    def trial(rate: Any, decay: Any) -> Any:
        how = {"every": per_epoch, "measure": measure}
        return train(model, optimizer(rate, decay), key, x, labels, batches, **how)[2]

    @jax.jit
    def step(state: TrainState, batch: Any, rate: Any, decay: Any) -> TrainState:
        of = make_step(model, ops.softmax_cross_entropy, optimizer(rate, decay))
        return of(state, x[batch], labels[batch])[0]

    measure_alone = jax.jit(measure)

    def in_a_python_loop(rate: Any, decay: Any) -> None:
        state = TrainState.create(model, optimizer(rate, decay), key, x[:1])
        for epoch in batches.reshape(config.epochs, per_epoch, -1):
            for batch in epoch:
                state = step(state, batch, rate, decay)
            jax.block_until_ready(measure_alone(state))

    low, high = (
        jnp.array(r, jnp.float32)
        for r in zip(config.learning_rates, config.weight_decays, strict=True)
    )
    pairs = 10 ** jax.random.uniform(draw, (config.trials, 2), jnp.float32, low, high)
    together = jax.jit(jax.vmap(trial)).lower(pairs[:, 0], pairs[:, 1]).compile()
    alone = jax.jit(trial)
    (validation, training), seconds = timed(lambda: together(pairs[:, 0], pairs[:, 1]))
    times = {"all at once": seconds / config.trials}
    ways = {"one after another": alone, "a Python loop of steps": in_a_python_loop}
    for name, way in ways.items() if config.timed else ():
        way(*pairs[0])  # compiles
        runs = [timed(lambda i=i, way=way: way(*pairs[i]))[1] for i in range(config.timed)]
        times[name] = float(np.median(runs))
    return Result(pairs[:, 0], pairs[:, 1], validation, training, times)


def timed(f: Callable[[], Any]) -> tuple[Any, float]:
    """Returns the result of f and the seconds that it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(f())
    return result, time.perf_counter() - start


def best_first(result: Result) -> np.ndarray:
    """Indices of the trials, sorted by final validation accuracy, best first."""
    return np.argsort(-np.asarray(result.validation)[:, -1], stable=True)


def plot(result: Result) -> Figure:
    """Plots the 20 best trials as in the book, all trials by η and λ, and the time per trial."""
    best = best_first(result)[:20]
    figure, (above, below) = style.stacked((4, 1.5), width=7, height=8)
    axes = above.subplots(4, 5, sharex=True, sharey=True)
    for ax, i in zip(axes.flat, best, strict=False):
        epochs = np.arange(1, result.validation.shape[1] + 1)
        ax.plot(epochs, 100 * result.validation[i], label="validation", **style.line(0))
        ax.plot(epochs, 100 * result.training[i], label="training", **style.line(1))
        rate, decay = result.learning_rates[i], result.weight_decays[i]
        style.label(ax, f"η {rate:.2g}\nλ {decay:.0e}", ylim=(0, 100))
        ax.title.set_fontsize(8)
        ax.grid(visible=True, alpha=0.3)
    for ax in axes.flat[len(best) :]:
        ax.remove()
    plane, times = below.subplots(1, 2)
    points = plane.scatter(
        result.learning_rates,
        result.weight_decays,
        c=100 * result.validation[:, -1],
        cmap=style.MAP,
        s=18,
    )
    plane.set(xscale="log", yscale="log", xlabel="learning rate η", ylabel="weight decay λ")
    below.colorbar(points, ax=plane, label="validation (%)")
    times.barh(list(result.seconds), list(result.seconds.values()), color=style.BLUE)
    times.set(xlabel="seconds for one trial")
    times.invert_yaxis()
    above.supxlabel("epochs", fontsize=9)
    above.supylabel("accuracy (%)", fontsize=9)
    above.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of C 6.5 and of the book."""
    order = best_first(result)
    good = order[: max(1, len(order) // 5)]
    rates, decays = (np.log10(np.asarray(a)) for a in (result.learning_rates, result.weight_decays))
    final = np.asarray(result.validation)[:, -1]
    by_rate, by_decay = (abs(rank_correlation(a, final)) for a in (rates, decays))
    return [
        claim(
            "The learning rate decides; the weight decay hardly matters in this range",
            by_rate > 0.6 > 3 * by_decay,
            rank_correlation_with_learning_rate=by_rate,
            with_weight_decay=by_decay,
        ),
        claim(
            "Random search finds a good pair",
            final.max() > 0.7,
            best_accuracy=final.max(),
            learning_rate=result.learning_rates[order[0]],
            weight_decay=result.weight_decays[order[0]],
        ),
        claim(
            "The best fifth of the trials has learning rates above the median",
            rates[good].min() > np.median(rates),
            smallest=10 ** rates[good].min(),
            median_of_all=10 ** np.median(rates),
        ),
    ]


def notes(result: Result) -> list[str]:
    """Reports the run times. They depend on the machine, so they are not claims."""
    at_once = result.seconds["all at once"]
    return [
        f"{name}: {seconds:.3g} s per trial, {seconds / at_once:.2f} times that of all at once"
        for name, seconds in result.seconds.items()
    ]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; ties are broken by the order of the trials."""
    rank = lambda v: np.argsort(np.argsort(v, stable=True))
    return float(np.corrcoef(rank(a), rank(b))[0, 1])
