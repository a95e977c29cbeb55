"""Do hand-written rules train the same network as autodiff, and what do they save?

Question. Every rule of funcnet is proved against autodiff alone. Do they stay together through a
whole training run, and what do memory and time of a step become?

Method. A network with Batch Normalization and Dropout learns MNIST twice, side by side in one
compiled loop: by the hand rules and by JAX's autodiff of the same functions, from the same initial
weights, with the same minibatches and the same dropped neurons; in float32 and in float64. Then one
step is compiled by itself: by hand, by autodiff, and by autodiff with `jax.checkpoint`.

Expect. In float64 the difference stays that of rounding. In float32 it begins as rounding, and
training amplifies it, but the loss curves lie on top of each other. The hand rules need less
memory.

Source. What this project adds to the sources.

Run time. 32 s on two cores of an AMD EPYC.
"""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from experiments.networks import digits, smooth, with_replacement
from funcnet import autodiff, ops, optim
from funcnet.layers import mlp
from funcnet.training import TrainState, make_step

DTYPES = ("float32", "float64")
WAYS = ("hand", "autodiff", "autodiff + checkpoint")


@dataclass(frozen=True)
class Config:
    """The same training run by hand rules and by autodiff."""

    hidden: tuple[int, ...] = (200, 200, 200)
    """Neurons of each hidden layer."""
    dropout: float = 0.2
    """Probability of dropping the output of a hidden neuron."""
    learning_rate: float = 0.05
    """Of Momentum."""
    iterations: int = 600
    """Minibatches."""
    batch_size: int = 256
    """Images in a minibatch."""
    train: int = 60000
    """Training images."""
    rounds: int = 30
    """How often each step is timed, in turns."""
    seed: int = 0
    """Decides initial weights, minibatches and what is dropped."""


class Result(NamedTuple):
    """What `run` found."""

    losses: dict[str, dict[str, jax.Array]]  # by dtype and by hand or autodiff, (iterations,)
    apart: dict[str, jax.Array]  # by dtype, the largest difference of a parameter after each step
    seconds: dict[str, np.ndarray]  # of a step in float32, (rounds,)
    temporary_bytes: dict[str, int]  # of the compiled step
    flops: dict[str, float]


def run(config: Config) -> Result:
    """Trains side by side in both dtypes, then measures a step."""
    model = mlp(*config.hidden, 10, batch_norm=True, dropout=config.dropout)
    optimizer = optim.momentum(config.learning_rate)
    by_hand = make_step(model, ops.softmax_cross_entropy, optimizer)
    recomputed = model._replace(
        apply=lambda params, state, x, key, train: jax.checkpoint(
            lambda params, state, x: model.apply(params, state, x, key=key, train=train)
        )(params, state, x)
    )
    steps = {
        "hand": by_hand,
        "autodiff": autodiff(by_hand),
        "autodiff + checkpoint": autodiff(
            make_step(recomputed, ops.softmax_cross_entropy, optimizer)
        ),
    }
    data = digits(config.train, 1)
    key, order = jax.random.split(jax.random.key(config.seed))
    batches = with_replacement(order, config.train, config.iterations, config.batch_size)
    losses, apart = {}, {}
    for dtype in DTYPES:
        with jax.enable_x64(True):
            x = data.x.astype(dtype)

            @jax.jit
            def both(x: jax.Array, labels: jax.Array) -> Any:
                start = TrainState.create(model, optimizer, key, x[:1])

                def step(states: Any, batch: jax.Array) -> Any:
                    a, of_a = steps["hand"](states[0], x[batch], labels[batch])
                    b, of_b = steps["autodiff"](states[1], x[batch], labels[batch])
                    differences = jax.tree.map(
                        lambda a, b: jnp.abs(a - b).max(), a.params, b.params
                    )
                    largest = jnp.stack(jax.tree.leaves(differences)).max()
                    return (a, b), (of_a["loss"], of_b["loss"], largest)

                return jax.lax.scan(step, (start, start), batches)[1]

            hand, auto, apart[dtype] = map(np.asarray, both(x, data.labels))
            losses[dtype] = {"hand": hand, "autodiff": auto}

    start = TrainState.create(model, optimizer, key, data.x[:1])
    batch = data.x[batches[0]], data.labels[batches[0]]
    compiled = {name: jax.jit(steps[name]).lower(start, *batch).compile() for name in WAYS}
    seconds = {name: [] for name in WAYS}
    for i in range(config.rounds):
        for name in np.roll(WAYS, i):
            begin = time.perf_counter()
            jax.block_until_ready(compiled[name](start, *batch))
            seconds[name].append(time.perf_counter() - begin)
    return Result(
        losses,
        apart,
        {name: np.array(times) for name, times in seconds.items()},
        {name: _known(c.memory_analysis()).temp_size_in_bytes for name, c in compiled.items()},
        {name: _known(c.cost_analysis())["flops"] for name, c in compiled.items()},
    )


def _known(analysis: Any) -> Any:
    if analysis is None:
        raise ValueError("hand_rules: this backend does not analyse compiled programs")
    return analysis


def plot(result: Result) -> Figure:
    """Loss curves on top of each other, their difference, and what a step needs."""
    figure, axes = style.panels(2, 2, height=6.4)
    curves, apart, memory, times = axes.flat
    for i, (name, losses) in enumerate(result.losses["float32"].items()):
        wide = {"linewidth": 4, "alpha": 0.4} if i == 0 else {}
        curves.plot(smooth(losses), label=name, **style.line(i) | wide)
    style.label(curves, "Loss, float32", "minibatches", "cross entropy (nats)", ylim=(0, None))
    curves.legend()
    for i, (dtype, differences) in enumerate(result.apart.items()):
        apart.semilogy(np.maximum(differences, 1e-18), label=dtype, **style.line(i))
    style.label(apart, "|by hand − by autodiff|", "minibatches", "largest of a parameter")
    apart.legend(loc="center right")
    kilobytes = [result.temporary_bytes[name] / 1e3 for name in WAYS]
    memory.barh(WAYS, kilobytes, color=style.COLOURS[: len(WAYS)])
    style.label(memory, "Temporary memory of a step", "kB")
    times.boxplot(
        [1e3 * result.seconds[n] for n in WAYS], orientation="horizontal", tick_labels=WAYS
    )
    style.label(times, "Time of a step", "ms", xlim=(0, None))
    for ax in (memory, times):
        ax.invert_yaxis()
    return figure


def claims(result: Result) -> list[Claim]:
    """That the rules are right, and worth having."""
    curves = result.losses["float32"]
    difference = float(np.abs(smooth(curves["hand"], 51) - smooth(curves["autodiff"], 51)).max())
    apart = {dtype: float(a.max()) for dtype, a in result.apart.items()}
    first = {dtype: float(a[0]) for dtype, a in result.apart.items()}
    return [
        claim(
            "In float64 the two runs differ by rounding alone, all the way",
            apart["float64"] < 1e-8,
            largest_difference_of_a_parameter=apart["float64"],
        ),
        claim(
            "In float32 they begin with rounding",
            first["float32"] < 1e-5,
            difference_after_one_step=first["float32"],
            largest_difference=apart["float32"],
        ),
        claim(
            "In float32 the loss curves lie on top of each other",
            difference < 0.02,
            largest_difference_of_the_smoothed_loss=difference,
        ),
        claim(
            "The hand rules need less temporary memory than autodiff",
            result.temporary_bytes["hand"] < result.temporary_bytes["autodiff"],
            **{f"{name},_kB": b / 1e3 for name, b in result.temporary_bytes.items()},
        ),
        claim(
            "The hand rules need no more floating-point operations than autodiff",
            result.flops["hand"] <= 1.02 * result.flops["autodiff"],
            **{f"{name},_MFLOP": f / 1e6 for name, f in result.flops.items()},
        ),
    ]


def notes(result: Result) -> list[str]:
    """The times, which are no claims: machines differ."""
    to_auto = {n: result.seconds[n] / result.seconds["autodiff"] for n in WAYS}
    quartiles = {n: np.quantile(r, [0.25, 0.5, 0.75]) for n, r in to_auto.items()}
    return [
        f"a step by {name}: {1e3 * np.median(result.seconds[name]):.3g} ms, {median:.2f} "
        f"(quartiles {low:.2f}, {high:.2f}) of autodiff's"
        for name, (low, median, high) in quartiles.items()
    ]
