"""Do hand-written rules train the same network as autodiff, and what do they save?

Question. Each rule of funcnet is tested against autodiff individually. Do whole training runs with
hand-written rules and with autodiff agree too, and how do memory and time of a step compare?

Method. A network with Batch Normalization and Dropout is trained on MNIST twice, side by side in
one compiled loop: with the hand-written rules and with JAX's autodiff of the same functions. Both
runs have the same initial weights, minibatches and dropped neurons. This is done in float32 and in
float64. Then a single step is compiled with hand-written rules, with autodiff, and with autodiff
and `jax.checkpoint`.

Expect. In float64 the runs differ only by rounding. In float32 the difference starts as rounding
and training amplifies it, but the loss curves coincide. The hand-written rules need less memory.

Source. None: this experiment is an addition of this project.

Run time. 32 s on two cores of an AMD EPYC.
"""

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
from funcnet.profile import in_turns, loop_of
from funcnet.training import TrainState, make_step

DTYPES = ("float32", "float64")
WAYS = ("hand", "autodiff", "autodiff + checkpoint")


@dataclass(frozen=True)
class Config:
    """The same training run with hand-written rules and with autodiff."""

    hidden: tuple[int, ...] = (200, 200, 200)
    """Neurons of each hidden layer."""
    dropout: float = 0.2
    """Probability of dropping the output of a hidden neuron."""
    learning_rate: float = 0.05
    """Learning rate of Momentum."""
    iterations: int = 600
    """Number of minibatches."""
    batch_size: int = 256
    """Images in a minibatch."""
    train: int = 60000
    """Training images."""
    rounds: int = 30
    """Timings of each kind of step; the kinds take turns."""
    seed: int = 0
    """Seed of initial weights, minibatches and Dropout."""


class Result(NamedTuple):
    """The results of `run`."""

    losses: dict[str, dict[str, jax.Array]]  # by dtype and by hand or autodiff, (iterations,)
    apart: dict[str, jax.Array]  # by dtype, largest difference of a parameter after each step
    seconds: dict[str, np.ndarray]  # run time of a step in float32, (rounds,)
    temporary_bytes: dict[str, int]  # temporary memory of the compiled step
    flops: dict[str, float]  # of the compiled step


def run(config: Config) -> Result:
    """Trains both networks side by side in both dtypes, then measures a single step."""
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
    loops = {name: loop_of(compiled[name], start, *batch) for name in WAYS}
    return Result(
        losses,
        apart,
        {name: times / 1e6 for name, times in in_turns(loops, config.rounds, steps=1).items()},
        {name: _known(c.memory_analysis()).temp_size_in_bytes for name, c in compiled.items()},
        {name: _known(c.cost_analysis())["flops"] for name, c in compiled.items()},
    )


def _known(analysis: Any) -> Any:
    if analysis is None:
        raise ValueError("hand_rules: this backend does not analyse compiled programs")
    return analysis


def plot(result: Result) -> Figure:
    """Plots the loss curves, the difference of the runs, and memory and time of a step."""
    figure, axes = style.panels(2, 2, height=5)
    curves, apart, memory, times = axes.flat
    for i, (name, losses) in enumerate(result.losses["float32"].items()):
        wide = {"linewidth": 4, "alpha": 0.4} if i == 0 else {}
        curves.plot(smooth(losses), label=name, **style.line(i) | wide)
    style.label(curves, "Loss, float32", "minibatches", "cross entropy (nats)", ylim=(0, None))
    curves.legend()
    for i, (dtype, differences) in enumerate(result.apart.items()):
        apart.semilogy(np.maximum(differences, 1e-18), label=dtype, **style.line(i))
    style.label(apart, "Difference of the parameters", "minibatches", "largest |hand − autodiff|")
    apart.legend(loc="center right")
    kilobytes = [result.temporary_bytes[name] / 1e3 for name in WAYS]
    low, median, high = 1e3 * np.quantile([result.seconds[n] for n in WAYS], [0.25, 0.5, 0.75], 1)
    names = [name.replace("+ ", "+\n") for name in WAYS]
    bars: Any = {"color": style.COLOURS[: len(WAYS)], "alpha": 0.7}
    memory.barh(names, kilobytes, **bars)
    style.label(memory, "Temporary memory of a step", "kB")
    times.barh(names, median, xerr=(median - low, high - median), capsize=3, **bars)
    style.label(times, "Time of a step, with quartiles", "ms")
    for ax in (memory, times):
        ax.invert_yaxis()
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims that the rules are correct and save memory without extra operations."""
    curves = result.losses["float32"]
    difference = float(np.abs(smooth(curves["hand"], 51) - smooth(curves["autodiff"], 51)).max())
    apart = {dtype: float(a.max()) for dtype, a in result.apart.items()}
    first = {dtype: float(a[0]) for dtype, a in result.apart.items()}
    return [
        claim(
            "In float64 the two runs differ only by rounding throughout",
            apart["float64"] < 1e-8,
            largest_difference_of_a_parameter=apart["float64"],
        ),
        claim(
            "In float32 the difference after one step is rounding",
            first["float32"] < 1e-5,
            difference_after_one_step=first["float32"],
            largest_difference=apart["float32"],
        ),
        claim(
            "In float32 the loss curves coincide",
            difference < 0.02,
            largest_difference_of_the_smoothed_loss=difference,
        ),
        claim(
            "The hand-written rules need less temporary memory than autodiff",
            result.temporary_bytes["hand"] < result.temporary_bytes["autodiff"],
            **{f"{name},_kB": b / 1e3 for name, b in result.temporary_bytes.items()},
        ),
        claim(
            "The hand-written rules need no more floating-point operations than autodiff",
            result.flops["hand"] <= 1.02 * result.flops["autodiff"],
            **{f"{name},_MFLOP": f / 1e6 for name, f in result.flops.items()},
        ),
    ]


def notes(result: Result) -> list[str]:
    """Reports the run times. They depend on the machine, so they are not claims."""
    to_auto = {n: result.seconds[n] / result.seconds["autodiff"] for n in WAYS}
    quartiles = {n: np.quantile(r, [0.25, 0.5, 0.75]) for n, r in to_auto.items()}
    return [
        f"a step with {name}: {1e3 * np.median(result.seconds[name]):.3g} ms, {median:.2f} times "
        f"that of autodiff (quartiles {low:.2f}, {high:.2f})"
        for name, (low, median, high) in quartiles.items()
    ]
