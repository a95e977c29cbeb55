"""Where does gradient descent end, and how does that depend on the learning rate?

Question. Gradient descent follows the local slope. When does it miss the global minimum of a curve,
and what happens if the steps are too short or too long?

Method. The curve E(w) = (3w⁴ + 4w³ − 12w²)/32 has a global minimum of −1 at w = −2 and a local one
of −5/32 at w = 1, with a hill at w = 0 between them. Gradient descent runs from many starting
points at once, and from one starting point with three learning rates. From a starting point behind
the hill, it is compared with Momentum, which keeps moving where the slope ends.

Expect. The side of the hill where descent starts decides which minimum it reaches. After all steps,
a small learning rate has not arrived, a suitable one has, and a large one keeps jumping without
converging. From some starting points, Momentum crosses the hill where plain descent does not.

Source. B 5.5.1: w ← w − η ∂E/∂w, the local minimum, and the choice of η. Row X8.

Run time. 2 s on two cores of an AMD EPYC.
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

GLOBAL, HILL, LOCAL = -2.0, 0.0, 1.0  # the zeros of E′(w) = 3/8 w (w + 2) (w − 1)


@dataclass(frozen=True)
class Config:
    """Gradient descent on a curve with a local minimum."""

    starts: int = 101
    """Starting points, from −3 to 2."""
    start: float = -0.5
    """Starting point of the descents with three learning rates."""
    learning_rates: tuple[float, float, float] = (0.003, 0.2, 1.05)
    """A too small, a suitable and a too large learning rate."""
    momentum_start: float = 1.9
    """Starting point of Momentum, behind the hill."""
    momentum: float = 0.9
    """α of Momentum."""
    steps: int = 100
    """Steps of each descent."""


class Result(NamedTuple):
    """The results of `run`."""

    config: Config
    starts: jax.Array  # (starts,)
    ends: jax.Array  # (starts,)
    paths: jax.Array  # paths with the three learning rates, (3, steps + 1)
    behind: jax.Array  # paths from behind the hill without and with momentum, (2, steps + 1)


def curve(w: Any) -> Any:
    """E(w); its global minimum is E(−2) = −1."""
    return (3 * w**4 + 4 * w**3 - 12 * w**2) / 32


def descend(optimizer: optax.GradientTransformation, start: jax.Array, steps: int) -> jax.Array:
    """Returns the path of an optimizer on the curve, shape (steps + 1,)."""

    def step(carry: Any, _: Any) -> tuple[Any, jax.Array]:
        w, state = carry
        updates, state = optimizer.update(jax.grad(curve)(w), state, w)
        return (optax.apply_updates(w, updates), state), w

    (w, _), path = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return jnp.append(path, w)


def run(config: Config) -> Result:
    """Runs all descents in one compiled program."""

    @jax.jit
    def compute() -> tuple[jax.Array, ...]:
        rates = jnp.asarray(config.learning_rates, jnp.float32)
        starts = jnp.linspace(-3, 2, config.starts, dtype=jnp.float32)
        by = lambda rate: lambda start: descend(optim.sgd(rate), start, config.steps)
        ends = jax.vmap(by(rates[1]))(starts)[:, -1]
        paths = jax.vmap(lambda rate: by(rate)(jnp.float32(config.start)))(rates)
        behind = jnp.float32(config.momentum_start)
        momentum = optim.momentum(rates[1], momentum=config.momentum)
        with_momentum = descend(momentum, behind, config.steps)
        return starts, ends, paths, jnp.stack([by(rates[1])(behind), with_momentum])

    return Result(config, *compute())


def plot(result: Result) -> Figure:
    """Plots the paths on the curve, the end of each descent, and E along the paths."""
    c = result.config
    figure, axes = style.panels(2, 3, height=5.2)
    w = np.linspace(-3.1, 2.1, 300)
    names = [f"η = {rate:g}: {what}" for rate, what in zip(c.learning_rates, WHAT, strict=True)]
    for i, (ax, path, name) in enumerate(zip(axes[0], result.paths, names, strict=True)):
        ax.plot(w, curve(w), color="gray")
        shown = path[:30]
        ax.plot(shown, curve(shown), marker="o", markersize=3, **style.line(i))
        style.label(ax, name, "w", "E", ylim=(-1.1, 1.6), xlim=(-3.2, 2.2))
    ends, errors, behind = axes[1]
    ends.plot(result.starts, result.ends, ".", color=style.BLUE)
    ends.axvline(HILL, color="gray", linestyle=":")
    ends.annotate(" the hill", (HILL, -1.5), color="dimgray")
    style.label(ends, "Where descent ends", "first w", f"w after {c.steps} steps")
    for i, path in enumerate(result.paths):
        errors.plot(curve(path), label=names[i].partition(":")[0], **style.line(i))
    style.label(errors, "Three learning rates", "steps", "E", ylim=(-1.1, 1))
    errors.legend(loc="upper right")
    for i, (path, name) in enumerate(zip(result.behind, ("descent", "Momentum"), strict=True)):
        behind.plot(path, label=name, **style.line(i))
    for at, name in ((GLOBAL, "minimum"), (LOCAL, "local minimum")):
        behind.axhline(at, color="gray", linestyle=":")
        behind.text(c.steps, at + 0.1, name, ha="right", color="dimgray", fontsize=8)
    style.label(behind, "From behind the hill", "steps", "w")
    behind.legend(loc="center right")
    return figure


WHAT = ("too small", "suitable", "too large")


def claims(result: Result) -> list[Claim]:
    """The claims of B 5.5.1."""
    starts, ends, paths = map(np.asarray, (result.starts, result.ends, result.paths))
    left, right = starts < HILL - 0.01, starts > HILL + 0.01  # descent is slow near the top
    stays = np.abs(ends[right] - LOCAL).max()
    falls = np.abs(ends[left] - GLOBAL).max()
    small, good, large = (np.abs(path[-20:] - GLOBAL) for path in paths)
    plain, with_momentum = result.behind[:, -1]
    return [
        claim(
            "Descent ends in the minimum on its side of the hill, which may be the local one",
            stays < 1e-2 and falls < 1e-2,
            largest_distance_left=falls,
            largest_distance_right=stays,
        ),
        claim(
            "With a too small learning rate, descent is far from the minimum when the suitable one "
            "has reached it",
            small[-1] > 0.1 and good[-1] < 1e-3,
            distance_of_the_small=small[-1],
            distance_of_the_right=good[-1],
        ),
        claim(
            "With a too large learning rate, descent never converges",
            large.max() > 0.1 and np.ptp(paths[2][-20:]) > 0.1,
            largest_distance_in_the_last_steps=large.max(),
        ),
        claim(
            "Momentum can leave a local minimum in which plain descent stays",
            abs(plain - LOCAL) < 1e-2 and abs(with_momentum - GLOBAL) < 0.2,
            descent=plain,
            momentum=with_momentum,
        ),
    ]
