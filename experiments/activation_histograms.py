"""How do the initial weights affect the activations of a deep network?

Question. Which initial weights keep the activations of all layers useful, so that they are neither
all equal nor all saturated?

Method. 1,000 inputs from N(0, 1) pass through five layers of 100 neurons with sigmoid, ReLU or
tanh. The weights are Gaussian with a standard deviation of 1, 0.01, Xavier's √(1/n) or He's √(2/n).
Histograms show the outputs of each layer. For each activation, all four scales run in one vmapped
program.

Expect. Sigmoid saturates at 0 and 1 with std 1, where its derivative vanishes. With 0.01, the
outputs of all neurons are ½; with Xavier, they are spread out. The outputs of ReLU vanish with
0.01, shrink slowly with Xavier and keep their size with He. The outputs of tanh are spread out with
Xavier.

Source. C 6.2, figures 6-10 to 6-14 of the book. Row X3.

Run time. 7 s on two cores of an AMD EPYC.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from funcnet import initializers, ops

ACTIVATIONS = {"sigmoid": (ops.sigmoid, 0, 1), "ReLU": (ops.relu, 0, 1), "tanh": (ops.tanh, -1, 1)}


@dataclass(frozen=True)
class Config:
    """Histograms of activations for several initial weights."""

    inputs: int = 1000
    """Number of inputs, drawn from N(0, 1)."""
    neurons: int = 100
    """Neurons per layer, and elements of an input."""
    layers: int = 5
    """Number of layers."""
    bins: int = 30
    """Bins of a histogram."""
    seed: int = 0
    """Seed of inputs and weights."""


class Result(NamedTuple):
    """The results of `run`: for each activation, arrays of shape (scales, layers, ...)."""

    scales: dict[str, float]  # standard deviations of the weights by name
    histograms: dict[str, jax.Array]  # counts, (scales, layers, bins)
    stds: dict[str, jax.Array]  # of the outputs, (scales, layers)
    mean_squares: dict[str, jax.Array]  # of the outputs, (scales, layers)
    neuron_stds: dict[str, jax.Array]  # std over the inputs, averaged over neurons
    at_the_ends: dict[str, jax.Array]  # share of outputs near either end of the range
    slopes: dict[str, jax.Array]  # mean derivative of the activation, (scales, layers)


def run(config: Config) -> Result:
    """Passes the inputs through all networks."""
    n = config.neurons
    scales = {"std = 1": 1.0, "std = 0.01": 0.01, "Xavier": (1 / n) ** 0.5, "He": (2 / n) ** 0.5}

    @jax.jit
    def compute(key: Any, stds: jax.Array) -> dict[str, Any]:
        def through(std: jax.Array, f: Any, low: float, high: float) -> Any:
            def layer(a: jax.Array, key: Any) -> tuple[jax.Array, Any]:
                w = initializers.normal(std)(key, (n, n), jnp.float32)
                z = a @ w
                a = f(z)
                slope = jax.vjp(f, z)[1](jnp.ones_like(z))[0]
                ends = ((a - low) < 0.1 * (high - low)) | ((high - a) < 0.1 * (high - low))
                counts = jnp.histogram(a, bins=config.bins, range=(low, high))[0]
                over_inputs = a.std(0).mean()
                return a, (counts, a.std(), (a**2).mean(), over_inputs, ends.mean(), slope.mean())

            start, *keys = jax.random.split(key, config.layers + 1)
            x = jax.random.normal(start, (config.inputs, n), jnp.float32)
            return jax.lax.scan(layer, x, jnp.stack(keys))[1]

        return {
            name: jax.vmap(lambda std, how=how: through(std, *how))(stds)
            for name, how in ACTIVATIONS.items()
        }

    found = compute(jax.random.key(config.seed), jnp.asarray(list(scales.values()), jnp.float32))
    columns = [{name: found[name][i] for name in ACTIVATIONS} for i in range(6)]
    return Result(scales, *columns)


def plot(result: Result) -> Figure:
    """Plots one row of histograms per activation and scale, one per layer, as in the book."""
    layers = next(iter(result.stds.values())).shape[1]
    rows = [(name, i) for name in ACTIVATIONS for i in range(len(result.scales))]
    figure, axes = style.panels(len(rows), layers, height=0.72 * len(rows), sharex="row")
    for (name, i), row in zip(rows, axes, strict=True):
        _, low, high = ACTIVATIONS[name]
        edges = np.linspace(low, high, result.histograms[name].shape[-1] + 1)
        colour = style.COLOURS[list(ACTIVATIONS).index(name)]
        for k, ax in enumerate(row):
            ax.stairs(result.histograms[name][i, k], edges, fill=True, color=colour)
            # Half of the outputs of ReLU are 0. The book cuts off that bar too.
            top = 0.07 * result.histograms[name][i, k].sum() if name == "ReLU" else None
            ax.set(yticks=[], ylim=(0, top))
            # Rows of the same activation have the same axis.
            ax.tick_params(labelsize=8, labelbottom=i == len(result.scales) - 1)
            if (name, i) == rows[0]:
                ax.set_title(f"layer {k + 1}")
        row[0].set_ylabel(f"{name}\n{list(result.scales)[i]}", fontsize=8)
    figure.supxlabel("output of the neurons", fontsize=9)
    figure.supylabel("count", fontsize=9)
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of C 6.2 about each figure."""
    of = lambda table, name, scale: np.asarray(
        getattr(result, table)[name][list(result.scales).index(scale)], float
    )
    last = lambda table, name, scale: of(table, name, scale)[-1]
    ends = {scale: last("at_the_ends", "sigmoid", scale) for scale in result.scales}
    slopes = {scale: last("slopes", "sigmoid", scale) for scale in result.scales}
    spread = {scale: last("neuron_stds", "sigmoid", scale) for scale in result.scales}
    relu = {scale: last("mean_squares", "ReLU", scale) ** 0.5 for scale in result.scales}
    tanh = {scale: last("stds", "tanh", scale) for scale in result.scales}
    he = of("mean_squares", "ReLU", "He")
    xavier = of("mean_squares", "ReLU", "Xavier")
    return [
        claim(
            "Sigmoid, std 1: most outputs are near 0 or 1, and the gradient vanishes",
            ends["std = 1"] > 0.5 and slopes["std = 1"] < 0.1,
            share_near_the_ends=ends["std = 1"],
            mean_slope=slopes["std = 1"],
        ),
        claim(
            "Sigmoid, std 0.01: a neuron has the same output for all inputs",
            spread["std = 0.01"] < 1e-3 and ends["std = 0.01"] == 0,
            std_over_inputs=spread["std = 0.01"],
        ),
        claim(
            "Sigmoid, Xavier: no saturation, and outputs are more spread out than with std 0.01",
            ends["Xavier"] < 0.1
            and last("stds", "sigmoid", "Xavier") > 5 * last("stds", "sigmoid", "std = 0.01"),
            share_near_the_ends=ends["Xavier"],
            std_Xavier=last("stds", "sigmoid", "Xavier"),
            std_small=last("stds", "sigmoid", "std = 0.01"),
        ),
        claim(
            "ReLU, std 0.01: the signal vanishes by the last layer",
            relu["std = 0.01"] < 1e-4,
            **relu,
        ),
        claim(
            "ReLU: He keeps the size of the signal, Xavier halves its mean square at each layer",
            0.4 < he[-1] / he[0] < 2.5
            and 0.3 < (xavier[-1] / xavier[0]) ** (1 / (len(xavier) - 1)) < 0.75,
            He_last_over_first=he[-1] / he[0],
            Xavier_per_layer=(xavier[-1] / xavier[0]) ** (1 / (len(xavier) - 1)),
        ),
        claim(
            "tanh: with Xavier the outputs neither saturate nor vanish",
            last("at_the_ends", "tanh", "Xavier") < 0.1
            and tanh["Xavier"] > 0.2 > tanh["std = 0.01"],
            share_near_the_ends=last("at_the_ends", "tanh", "Xavier"),
            share_near_the_ends_with_std_1=last("at_the_ends", "tanh", "std = 1"),
            std=tanh["Xavier"],
        ),
    ]
