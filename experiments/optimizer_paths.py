"""Which paths do SGD, Momentum, AdaGrad and Adam take through a long valley?

Question. f(x, y) = x²/20 + y² is much steeper along y than along x, and its gradient mostly points
away from the direction of the minimum. How does each optimizer deal with that?

Method. Each optimizer takes 30 steps from (−7, 2) with the learning rate of the book: 0.95, 0.1,
1.5 and 0.3.

Expect. SGD zigzags between the walls of the valley. Momentum rolls like a ball and zigzags less.
AdaGrad shortens the large steps along y and goes almost straight. Adam is between the two.

Source. C 6.1, figures 6-1 to 6-7 of the book. Row X1.

Run time. 1 s on two cores of an AMD EPYC.
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
from funcnet import optim

START = (-7.0, 2.0)


@dataclass(frozen=True)
class Config:
    """Four optimizers on x²/20 + y²."""

    sgd: float = 0.95
    """Learning rate of SGD."""
    momentum: float = 0.1
    """Learning rate of Momentum, whose α is 0.9."""
    adagrad: float = 1.5
    """Learning rate of AdaGrad."""
    adam: float = 0.3
    """Learning rate of Adam."""
    steps: int = 30
    """Steps of each optimizer."""


class Result(NamedTuple):
    """The results of `run`: the path of each optimizer, shape (steps + 1, 2)."""

    paths: dict[str, jax.Array]


def f(point: Any) -> Any:
    """The function x²/20 + y², for points of shape (..., 2)."""
    return point[..., 0] ** 2 / 20 + point[..., 1] ** 2


def run(config: Config) -> Result:
    """Computes all paths in one compiled program."""

    def path(optimizer: optax.GradientTransformation) -> jax.Array:
        def step(carry: Any, _: Any) -> tuple[Any, jax.Array]:
            point, state = carry
            updates, state = optimizer.update(jax.grad(f)(point), state, point)
            return (optax.apply_updates(point, updates), state), point

        start = jnp.asarray(START, jnp.float32)
        (last, _), points = jax.lax.scan(step, (start, optimizer.init(start)), length=config.steps)
        return jnp.concatenate([points, last[None]])

    optimizers = {
        "SGD": optim.sgd(config.sgd),
        "Momentum": optim.momentum(config.momentum),
        "AdaGrad": optim.adagrad(config.adagrad),
        "Adam": optim.adam(config.adam),
    }
    paths = jax.jit(lambda: [path(optimizer) for optimizer in optimizers.values()])()
    return Result(dict(zip(optimizers, paths, strict=True)))


def plot(result: Result) -> Figure:
    """Plots figures 6-1 and 6-2 of the book, with the four paths below them."""
    figure, axes = style.panels(3, 2, height=7.4)
    x, y = np.meshgrid(np.linspace(-10, 10, 81), np.linspace(-5, 5, 81))
    z = f(np.stack([x, y], -1))
    place = axes[0, 0].get_subplotspec()
    axes[0, 0].remove()
    surface = figure.add_subplot(place, projection="3d")
    surface.plot_surface(x, y, z, cmap=style.MAP, rstride=4, cstride=4)
    surface.set_box_aspect(None, zoom=1.15)
    surface.set(title="f(x, y) = x²/20 + y²", xlabel="x", ylabel="y")
    field = axes[0, 1]
    coarse = slice(None, None, 8)
    u, v = -x[coarse, coarse] / 10, -2 * y[coarse, coarse]
    field.quiver(x[coarse, coarse], y[coarse, coarse], u, v, color=style.BLUE, angles="xy")
    field.plot(0, 0, "+", color="black")
    style.label(field, "Downhill, −∇f", "x", "y")
    for i, (ax, (name, path)) in enumerate(zip(axes[1:].flat, result.paths.items(), strict=True)):
        ax.contour(x, y, z, levels=np.arange(0.5, 6) ** 2, colors="gray", linewidths=0.7)
        ax.plot(*path.T, marker="o", markersize=3, **style.line(i) | {"linestyle": "-"})
        ax.plot(0, 0, "+", color="black", markersize=10)
        style.label(ax, name, "x", "y", xlim=(-10, 10), ylim=(-5, 5))
    return figure


def zigzags(path: np.ndarray) -> int:
    """Counts how often the path crosses the valley: the sign changes of y."""
    y = path[:, 1]
    return int((y[1:] * y[:-1] < 0).sum())


def length(path: np.ndarray) -> float:
    """The length of the path divided by the distance between its ends."""
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    return float(steps / np.linalg.norm(path[-1] - path[0]))


def claims(result: Result) -> list[Claim]:
    """The claims of C 6.1 about its figures."""
    paths = {name: np.asarray(path) for name, path in result.paths.items()}
    crossings = {name: zigzags(path) for name, path in paths.items()}
    lengths = {name: length(path) for name, path in paths.items()}
    values = {name: float(f(path[-1])) for name, path in paths.items()}
    start = np.array(START)
    downhill, home = -np.array([START[0] / 10, 2 * START[1]]), -start
    cosine = downhill @ home / np.linalg.norm(downhill) / np.linalg.norm(home)
    angle = np.degrees(np.arccos(cosine))
    steps = len(paths["SGD"]) - 1
    return [
        claim("SGD crosses the valley at every step", crossings["SGD"] == steps, **crossings),
        claim(
            "At the start, −∇f does not point to the minimum",
            angle > 45,
            angle_in_degrees=angle,
        ),
        claim(
            "Momentum, AdaGrad and Adam cross the valley less often",
            max(c for name, c in crossings.items() if name != "SGD") < steps / 2,
            **crossings,
        ),
        claim(
            "AdaGrad takes the straightest path, SGD the longest",
            min(lengths, key=lengths.__getitem__) == "AdaGrad"
            and max(lengths, key=lengths.__getitem__) == "SGD",
            **lengths,
        ),
        claim(
            "AdaGrad ends at the lowest value",
            min(values, key=values.__getitem__) == "AdaGrad",
            **values,
        ),
    ]
