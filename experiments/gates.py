"""What can one neuron decide, and what takes two layers?

Question. A neuron fires if its weighted inputs reach a threshold, so it cuts the plane by a
straight line. AND and OR are on one side of a line. XOR is not: which network computes it, and can
a network find it by itself?

Method. The gates of `funcnet.book.perceptron` on a grid of inputs. A search over all weights and
biases of a grid counts the neurons that compute each gate. Then networks with tanh in a hidden
layer are trained on the four points of XOR by gradient descent, each width from many random initial
weights, all in one compiled program.

Expect. Straight borders for AND and OR; no neuron for XOR, and a band for the gates in two layers.
Trained networks find XOR too, in most cases with more than two hidden neurons.

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
LOW, HIGH = -0.5, 1.5  # of both inputs in the figure


@dataclass(frozen=True)
class Config:
    """Decision regions of the gates, and XOR learned."""

    resolution: int = 201
    """Points of the figure along each axis."""
    weights: int = 41
    """Values tried for each of w₁, w₂ and b, from −2 to 2."""
    hidden: tuple[int, ...] = (1, 2, 4, 8)
    """Hidden neurons of the networks that learn XOR."""
    trials: int = 50
    """Networks of each width."""
    steps: int = 2000
    """Of gradient descent, each on all four points."""
    learning_rate: float = 0.5
    """Of gradient descent."""
    seed: int = 0
    """Decides the initial weights."""


class Result(NamedTuple):
    """What `run` found."""

    tables: dict[str, jax.Array]  # of each gate, its outputs at (0,0), (0,1), (1,0), (1,1)
    regions: dict[str, jax.Array]  # on the grid, row x₂, column x₁
    neurons: dict[str, jax.Array]  # how many of the neurons on the grid of weights compute it
    learned: dict[int, jax.Array]  # of each width and trial, the share of right answers at the end
    losses: dict[int, jax.Array]  # (trials, steps)
    learned_region: jax.Array  # the probability of class 1, by the best network


def run(config: Config) -> Result:
    """Evaluates the gates, searches the neurons, trains the networks."""
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
            best = ops.softmax(model.apply(params, state, plane)[0])[..., 1]  # of the widest
        return shares, losses, best

    shares, losses, best = learn(jax.random.key(config.seed))
    return Result(gates(points), gates(plane), computes, shares, losses, best)


def plot(result: Result) -> Figure:
    """Above: the gates. Below: XOR learned, from which initial weights, and how fast."""
    figure, axes = style.panels(2, 3, height=6.4)
    extent = (LOW, HIGH, LOW, HIGH)
    for i, (name, region) in enumerate([*result.regions.items(), ("", result.learned_region)]):
        ax = axes.flat[i]
        ax.imshow(region, extent=extent, origin="lower", cmap=style.MAP, vmin=-0.5, vmax=1.2)
        table = result.tables[name or "XOR"]
        for (x1, x2), z in zip(datasets.xor()[0], table, strict=True):
            marker = {"marker": "o", "color": "white"} if z else {"marker": "X", "color": "black"}
            ax.scatter(x1, x2, s=70, edgecolors="gray", zorder=3, **marker)
        how = "two layers" if name == "XOR" else "one neuron"
        title = f"{name} by {how}" if name else f"XOR learned, {max(result.losses)} hidden neurons"
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
    figure.suptitle("○ 1    ✕ 0", fontsize=9)
    return figure


def claims(result: Result) -> list[Claim]:
    """What A 2.1 and 2.2 say."""
    right = {n: np.array_equal(result.tables[n], GATES[n][1]) for n in GATES}
    count = {n: int(k) for n, k in result.neurons.items()}
    solved = {n: float((np.asarray(s) == 1).mean()) for n, s in result.learned.items()}
    narrow, *_, wide = solved
    return [
        claim("The gates give the truth tables of AND, OR and XOR", all(right.values()), **right),
        claim(
            "Many neurons compute AND and OR, no neuron computes XOR",
            count["AND"] and count["OR"] and not count["XOR"],
            **count,
        ),
        claim(
            "A hidden layer of one neuron never learns XOR, a wider one does in most trials",
            solved[narrow] == 0 and solved[wide] > 0.5,
            **{f"share_with_{n}_hidden": s for n, s in solved.items()},
        ),
    ]
