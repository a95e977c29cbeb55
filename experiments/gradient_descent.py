"""Where does gradient descent end, and what does the learning rate decide?

Question. Gradient descent follows the slope under its feet. When does it miss the lowest point of a
curve, and what happens if the steps are too short or too long?

Method. The curve E(w) = (3w⁴ + 4w³ − 12w²)/32 has a minimum of −1 at w = −2 and a local one of
−5/32 at w = 1, with a hill at w = 0 between them. Descent from many starting points at once. Then
from one starting point with three learning rates; and from behind the hill by Momentum, which
carries on where the slope ends.

Expect. Which minimum is reached depends on the side of the hill. A small learning rate is still on
its way after all steps, a right one has arrived, a large one jumps about for ever. Momentum crosses
the hill from some starting points where plain descent stays.

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
    """Where the three learning rates start."""
    learning_rates: tuple[float, float, float] = (0.003, 0.2, 1.05)
    """Too small, right, too large."""
    momentum_start: float = 1.9
    """Where Momentum starts, behind the hill."""
    momentum: float = 0.9
    """Its α."""
    steps: int = 100
    """Of each descent."""


class Result(NamedTuple):
    """What `run` found."""

    config: Config
    starts: jax.Array  # (starts,)
    ends: jax.Array  # (starts,)
    paths: jax.Array  # of the three learning rates: (3, steps + 1)
    behind: jax.Array  # from behind the hill, without and with momentum: (2, steps + 1)


def curve(w: Any) -> Any:
    """E(w), whose minimum is E(−2) = −1."""
    return (3 * w**4 + 4 * w**3 - 12 * w**2) / 32


def descend(optimizer: optax.GradientTransformation, start: jax.Array, steps: int) -> jax.Array:
    """The path of an optimizer on the curve, shape (steps + 1,)."""

    def step(carry: Any, _: Any) -> tuple[Any, jax.Array]:
        w, state = carry
        updates, state = optimizer.update(jax.grad(curve)(w), state, w)
        return (optax.apply_updates(w, updates), state), w

    (w, _), path = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return jnp.append(path, w)


def run(config: Config) -> Result:
    """All descents, compiled as one program."""

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
    """The curve with paths on it; where each start ends; the error along the paths."""
    c = result.config
    figure, axes = style.panels(2, 3, height=6.2)
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
    ends.annotate(" the hill", (HILL, -1.5), color="gray")
    style.label(ends, "Where descent ends", "first w", f"w after {c.steps} steps")
    for i, path in enumerate(result.paths):
        errors.plot(curve(path), label=names[i].partition(":")[0], **style.line(i))
    style.label(errors, "Three learning rates", "steps", "E", ylim=(-1.1, 1))
    errors.legend(loc="upper right")
    for i, (path, name) in enumerate(zip(result.behind, ("descent", "Momentum"), strict=True)):
        behind.plot(path, label=name, **style.line(i))
    for at, name in ((GLOBAL, "minimum"), (LOCAL, "local minimum")):
        behind.axhline(at, color="gray", linestyle=":")
        behind.annotate(name, (c.steps, at), ha="right", va="bottom", color="gray", fontsize=8)
    style.label(behind, "From behind the hill", "steps", "w")
    behind.legend(loc="center right")
    return figure


WHAT = ("too small", "right", "too large")


def claims(result: Result) -> list[Claim]:
    """What B 5.5.1 says."""
    starts, ends, paths = map(np.asarray, (result.starts, result.ends, result.paths))
    left, right = starts < HILL - 0.01, starts > HILL + 0.01  # on top it is slow
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
            "Too small a learning rate is far from the minimum when the right one has arrived",
            small[-1] > 0.1 and good[-1] < 1e-3,
            distance_of_the_small=small[-1],
            distance_of_the_right=good[-1],
        ),
        claim(
            "Too large a learning rate never settles",
            large.max() > 0.1 and np.ptp(paths[2][-20:]) > 0.1,
            largest_distance_in_the_last_steps=large.max(),
        ),
        claim(
            "Momentum can leave a local minimum that plain descent stays in",
            abs(plain - LOCAL) < 1e-2 and abs(with_momentum - GLOBAL) < 0.2,
            descent=plain,
            momentum=with_momentum,
        ),
    ]
