"""What can one neuron compute, and what needs two layers?

Question. A neuron fires if the sum of its weighted inputs reaches a threshold, so its decision
boundary in the plane is a straight line. A line separates the two classes of AND and of OR, but not
those of XOR. Which network computes XOR, and can a network learn it?

Method. The gates of `funcnet.book.perceptron` are evaluated on a grid of inputs. A search over a
grid of weights and biases counts the neurons that compute each gate. Then networks with a hidden
tanh layer are trained on the four points of XOR by gradient descent. Each width is trained from
many random initial weights, all in one compiled program.

Expect. AND and OR have straight decision boundaries. No neuron computes XOR; the region of the
two-layer gate is a band. Trained networks also find XOR, in most trials with more than two hidden
neurons.

Source. A 2.1 and 2.2 (D 2.1 and 2.2): rows N1, N2 and X10.

Run time. 9 s on two cores of an AMD EPYC.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from experiments.networks import accuracy_on, train
from funcnet import datasets, ops, optim
from funcnet.book import perceptron
from funcnet.layers import mlp

GATES = {
    "AND": (perceptron.and_gate, (0, 0, 0, 1)),
    "OR": (perceptron.or_gate, (0, 1, 1, 1)),
    "XOR": (perceptron.xor_gate, (0, 1, 1, 0)),
}
LOW, HIGH = -0.5, 1.5  # range of both inputs in the figure


@dataclass(frozen=True)
class Config:
    """Decision regions of the gates, and networks that learn XOR."""

    resolution: int = 201
    """Points of the figure along each axis."""
    weights: int = 41
    """Values tried for each of w₁, w₂ and b, from −2 to 2."""
    hidden: tuple[int, ...] = (1, 2, 4, 8)
    """Hidden neurons of the networks that learn XOR."""
    trials: int = 50
    """Networks per width."""
    steps: int = 2000
    """Steps of gradient descent, each on all four points."""
    learning_rate: float = 0.5
    """Learning rate of gradient descent."""
    seed: int = 0
    """Seed of the initial weights."""


class Result(NamedTuple):
    """The results of `run`."""

    tables: dict[str, jax.Array]  # outputs of each gate at (0,0), (0,1), (1,0), (1,1)
    regions: dict[str, jax.Array]  # outputs on the grid, row x₂, column x₁
    neurons: dict[str, jax.Array]  # number of neurons on the grid of weights that compute the gate
    learned: dict[int, jax.Array]  # final accuracy by width, (trials,)
    losses: dict[int, jax.Array]  # (trials, steps)
    learned_region: jax.Array  # probability of class 1, from the best network of the largest width


def run(config: Config) -> Result:
    """Evaluates the gates, searches the grid of neurons, trains the networks."""
    points, labels = map(jnp.asarray, datasets.xor())
    axis = jnp.linspace(LOW, HIGH, config.resolution, dtype=jnp.float32)
    plane = jnp.stack(jnp.meshgrid(axis, axis), -1)
    gates = jax.jit(lambda x: {name: gate(x) for name, (gate, _) in GATES.items()})

    w = jnp.linspace(-2, 2, config.weights, dtype=jnp.float32)
    w1, w2, b = (a.ravel() for a in jnp.meshgrid(w, w, w))
    fires = jax.jit(perceptron.neuron)(points, jnp.stack([w1, w2]), b)  # (4, neurons)
    computes = {
        name: (fires == jnp.asarray(table, fires.dtype)[:, None]).all(0).sum()
        for name, (_, table) in GATES.items()
    }

    @jax.jit
    def learn(key: Any) -> tuple[dict[int, Any], dict[int, Any], jax.Array]:
        shares, losses, best = {}, {}, jnp.zeros(())
        batches = jnp.tile(jnp.arange(4, dtype=jnp.int32), (config.steps, 1))
        for n in config.hidden:
            model = mlp(n, 2, activation=ops.tanh)
            one = lambda key, model=model: train(
                model,
                optim.sgd(config.learning_rate),
                key,
                points,
                labels,
                batches,
                measure=accuracy_on(model, points, labels),
            )
            states, losses[n], measured = jax.vmap(one)(
                jax.random.split(jax.random.fold_in(key, n), config.trials)
            )
            shares[n] = measured[:, -1]
            first = losses[n][:, -1].argmin()
            params, state = jax.tree.map(lambda a: a[first], (states.params, states.state))  # noqa: B023
            best = ops.softmax(model.apply(params, state, plane)[0])[..., 1]  # keeps the last width
        return shares, losses, best

    shares, losses, best = learn(jax.random.key(config.seed))
    return Result(gates(points), gates(plane), computes, shares, losses, best)


def plot(result: Result) -> Figure:
    """Plots the gates, the learned XOR, the share of networks that found it, and their losses."""
    figure, axes = style.panels(2, 3, height=5.2)
    extent = (LOW, HIGH, LOW, HIGH)
    for i, (name, region) in enumerate([*result.regions.items(), ("", result.learned_region)]):
        ax = axes.flat[i]
        ax.imshow(region, extent=extent, origin="lower", cmap=style.MAP, vmin=-0.5, vmax=1.2)
        table = result.tables[name or "XOR"]
        for (x1, x2), z in zip(datasets.xor()[0], table, strict=True):
            marker = {"marker": "o", "color": "white"} if z else {"marker": "X", "color": "black"}
            ax.scatter(x1, x2, s=70, edgecolors="gray", zorder=3, **marker)
        how = "two layers" if name == "XOR" else "one neuron"
        title = f"{name} by {how}" if name else f"XOR learned, {max(result.losses)} hidden"
        style.label(ax, title, "$x_1$", "$x_2$")
        ax.grid(visible=False)
    share, curve = axes[1, 1], axes[1, 2]
    widths = [str(n) for n in result.learned]
    solved = [100 * float((np.asarray(s) == 1).mean()) for s in result.learned.values()]
    share.bar(widths, solved, color=style.BLUE)
    style.label(share, "Found XOR", "hidden neurons", "networks (%)", ylim=(0, 100))
    for i, (n, losses) in enumerate(result.losses.items()):
        curve.plot(np.median(losses, 0), label=f"{n} hidden", **style.line(i))
    style.label(curve, "Median loss", "steps", "cross entropy (nats)", ylim=(0, 1.1))
    curve.legend(loc="upper right")
    for ax in axes.flat:
        ax.set_box_aspect(1)
    figure.suptitle("○ output 1    ✕ output 0", fontsize=9)
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of A 2.1 and 2.2."""
    right = {n: np.array_equal(result.tables[n], GATES[n][1]) for n in GATES}
    count = {n: int(k) for n, k in result.neurons.items()}
    solved = {n: float((np.asarray(s) == 1).mean()) for n, s in result.learned.items()}
    narrow, *_, wide = solved
    return [
        claim(
            "Many neurons compute AND and OR, but no neuron computes XOR",
            count["AND"] and count["OR"] and not count["XOR"],
            **count,
        ),
        claim("The gates give the truth tables of AND, OR and XOR", all(right.values()), **right),
        claim(
            "A hidden layer of one neuron never learns XOR; the widest one does in most trials",
            solved[narrow] == 0 and solved[wide] > 0.5,
            **{f"share_with_{n}_hidden": s for n, s in solved.items()},
        ),
    ]
