"""What do the initial weights do to the activations of a deep network?

Question. With which initial weights do the signals of all layers stay alive: neither all the same,
nor all at the ends of the activation function?

Method. 1,000 inputs from N(0, 1) go through five layers of 100 neurons, with sigmoid, ReLU or tanh,
and Gaussian weights of a standard deviation of 1, 0.01, Xavier's √(1/n) or He's √(2/n). Histograms
of the outputs of each layer. All four scales of an activation in one vmapped program.

Expect. Sigmoid with std 1 sits at 0 and 1, where its derivative vanishes; with 0.01 all neurons say
the same, ½; with Xavier the outputs are spread. ReLU fades away with 0.01, slowly with Xavier, and
keeps its size with He. tanh is spread with Xavier.

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
    """Histograms of activations by initial weights."""

    inputs: int = 1000
    """Examples, from N(0, 1)."""
    neurons: int = 100
    """Of each layer, and elements of an input."""
    layers: int = 5
    """Layers."""
    bins: int = 30
    """Of a histogram."""
    seed: int = 0
    """Decides inputs and weights."""


class Result(NamedTuple):
    """What `run` found: by activation, arrays with axes (scale of the weights, layer, ...)."""

    scales: dict[str, float]  # standard deviations of the weights by name
    histograms: dict[str, jax.Array]  # counts, (scales, layers, bins)
    stds: dict[str, jax.Array]  # of the outputs, (scales, layers)
    mean_squares: dict[str, jax.Array]  # of the outputs, (scales, layers)
    neuron_stds: dict[str, jax.Array]  # of a neuron over the inputs, in the mean, (scales, layers)
    at_the_ends: dict[str, jax.Array]  # share of outputs where sigmoid or tanh is flat
    slopes: dict[str, jax.Array]  # mean derivative of the activation, (scales, layers)


def run(config: Config) -> Result:
    """Sends the inputs through all networks."""
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
    """For each activation and scale a row of histograms, one for each layer, as in the book."""
    layers = next(iter(result.stds.values())).shape[1]
    rows = [(name, i) for name in ACTIVATIONS for i in range(len(result.scales))]
    figure, axes = style.panels(len(rows), layers, height=1.15 * len(rows), sharex="row")
    for (name, i), row in zip(rows, axes, strict=True):
        _, low, high = ACTIVATIONS[name]
        edges = np.linspace(low, high, result.histograms[name].shape[-1] + 1)
        colour = style.COLOURS[list(ACTIVATIONS).index(name)]
        for k, ax in enumerate(row):
            ax.stairs(result.histograms[name][i, k], edges, fill=True, color=colour)
            # Of ReLU half of the outputs are 0: the book cuts that bar off too.
            top = 0.07 * result.histograms[name][i, k].sum() if name == "ReLU" else None
            ax.set(yticks=[], ylim=(0, top))
            ax.tick_params(labelsize=6)
            if (name, i) == rows[0]:
                ax.set_title(f"layer {k + 1}")
        row[0].set_ylabel(f"{name}\n{list(result.scales)[i]}", fontsize=8)
    figure.supxlabel("output of the neurons", fontsize=9)
    figure.supylabel("how many", fontsize=9)
    return figure


def claims(result: Result) -> list[Claim]:
    """What C 6.2 says of each figure."""
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
            "Sigmoid, std 1: most outputs are near 0 and 1, and the gradient vanishes",
            ends["std = 1"] > 0.5 and slopes["std = 1"] < 0.1,
            share_near_the_ends=ends["std = 1"],
            mean_slope=slopes["std = 1"],
        ),
        claim(
            "Sigmoid, std 0.01: a neuron says the same for all inputs",
            spread["std = 0.01"] < 1e-3 and ends["std = 0.01"] == 0,
            std_over_inputs=spread["std = 0.01"],
        ),
        claim(
            "Sigmoid, Xavier: no saturation, and outputs more spread than with 0.01",
            ends["Xavier"] < 0.1
            and last("stds", "sigmoid", "Xavier") > 5 * last("stds", "sigmoid", "std = 0.01"),
            share_near_the_ends=ends["Xavier"],
            std_Xavier=last("stds", "sigmoid", "Xavier"),
            std_small=last("stds", "sigmoid", "std = 0.01"),
        ),
        claim(
            "ReLU, std 0.01: nothing is left in the last layer", relu["std = 0.01"] < 1e-4, **relu
        ),
        claim(
            "ReLU: He keeps the size of the signal, Xavier halves its square at each layer",
            0.4 < he[-1] / he[0] < 2.5
            and 0.3 < (xavier[-1] / xavier[0]) ** (1 / (len(xavier) - 1)) < 0.75,
            He_last_over_first=he[-1] / he[0],
            Xavier_per_layer=(xavier[-1] / xavier[0]) ** (1 / (len(xavier) - 1)),
        ),
        claim(
            "tanh: Xavier neither saturates nor fades",
            last("at_the_ends", "tanh", "Xavier") < 0.1
            and tanh["Xavier"] > 0.2 > tanh["std = 0.01"],
            share_near_the_ends=last("at_the_ends", "tanh", "Xavier"),
            share_near_the_ends_with_std_1=last("at_the_ends", "tanh", "std = 1"),
            std=tanh["Xavier"],
        ),
    ]
