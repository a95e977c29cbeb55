"""Can a three-layer network learn a sine, and do the rules compute the same as δ-backpropagation?

Question. The source derives the gradients of one network by hand, with δ = ∂E/∂u. Do the general
rules of funcnet, composed by `jax.grad`, give the same numbers over a whole training run?

Method. A network with one input, a hidden layer of sigmoid neurons and an output neuron with the
identity fits t = sin πx; the error is ½ Σ (y − t)². One training run uses the equations (5-15) to
(5-24) of the source, the other the rules. Both start from the same initial weights, in float64.

Expect. The network combines a few sigmoids into a sine. The two runs differ only by rounding.

Source. B 5.5.1 and 5.5.3 to 5.5.7. Rows X8 and G2.

Run time. 3 s on two cores of an AMD EPYC.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from funcnet import datasets, ops
from funcnet.book import delta

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Config:
    """Regression of a sine with δ-backpropagation and with the rules."""

    hidden: int = 8
    """Neurons of the hidden layer."""
    points: int = 41
    """Examples, equally spaced in [−1, 1]."""
    steps: int = 10000
    """Steps of gradient descent, each on all examples."""
    learning_rate: float = 0.3
    """Learning rate of gradient descent on the mean error of the examples."""
    snapshots: int = 4
    """Number of curves to show, from step 10 to the last step."""
    seed: int = 0
    """Seed of the initial weights."""


class Result(NamedTuple):
    """The results of `run`, for both training runs."""

    x: jax.Array  # (points, 1)
    t: jax.Array  # (points, 1)
    errors: dict[str, jax.Array]  # E before each step, (steps,)
    curves: jax.Array  # y after the steps `at`, (snapshots, points)
    at: tuple[int, ...]
    hidden: jax.Array  # contribution of each hidden neuron to y at the end, (points, hidden)
    apart: jax.Array  # largest difference of any parameter after each step, (steps,)


def by_rules(params: Params, x: jax.Array, t: jax.Array) -> jax.Array:
    """E from the functions of `funcnet.ops`, each of which has its hand-written rule."""
    y_j = ops.sigmoid(ops.affine(x, params["w_ij"], params["b_j"]))
    y_k = ops.affine(y_j, params["w_jk"], params["b_k"])
    return ops.sum_squared_error(y_k, t).sum()


def run(config: Config) -> Result:
    """Trains both networks side by side in one compiled loop."""
    with jax.enable_x64(True):
        x, t = (jnp.asarray(a, jnp.float64) for a in datasets.sine(config.points))
        at = tuple(int(i) for i in np.geomspace(10, config.steps, config.snapshots).round())

        def descend(params: Params, gradients: Callable[[Params], Params]) -> Params:
            update = lambda p, d: p - config.learning_rate * d / config.points
            return jax.tree.map(update, params, gradients(params))

        def step(carry: Any, _: Any) -> tuple[Any, Any]:
            a, b = carry
            errors = delta.error(a, x, t), by_rules(b, x, t)
            a = descend(a, lambda p: delta.gradients(p, x, t)[0])
            b = descend(b, lambda p: jax.grad(by_rules)(p, x, t))
            apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), a, b)
            return (a, b), (errors, jnp.stack(jax.tree.leaves(apart)).max(), b)

        @jax.jit
        def train() -> tuple[Any, ...]:
            keys = jax.random.split(jax.random.key(config.seed), 2)
            params = {
                "w_ij": 4 * jax.random.normal(keys[0], (1, config.hidden), jnp.float64),
                "b_j": jnp.zeros(config.hidden, jnp.float64),
                "w_jk": jax.random.normal(keys[1], (config.hidden, 1), jnp.float64),
                "b_k": jnp.zeros(1, jnp.float64),
            }
            _, (errors, apart, all_params) = jax.lax.scan(
                step, (params, params), length=config.steps
            )
            after = lambda i: jax.tree.map(lambda p: p[i - 1], all_params)
            curves = jnp.stack([delta.forward(after(i), x)[1][:, 0] for i in at])
            y_j, _ = delta.forward(after(config.steps), x)
            return errors, curves, y_j * after(config.steps)["w_jk"][:, 0], apart

        (by_delta, rules), curves, hidden, apart = train()
        return Result(x, t, {"δ": by_delta, "rules": rules}, curves, at, hidden, apart)


def plot(result: Result) -> Figure:
    """Plots the learned curve, the hidden neurons, the error and the difference of the runs."""
    figure, axes = style.panels(2, 2, height=5.4)
    fit, parts, error, apart = axes.flat
    x = result.x[:, 0]
    fit.plot(x, result.t[:, 0], ".", color="gray", label="sin πx")
    for i, (curve, step) in enumerate(zip(result.curves, result.at, strict=True)):
        fit.plot(x, curve, label=f"after {step} steps", **style.line(i))
    style.label(fit, "The network", "x", "y", ylim=(None, 2.6))
    fit.legend(fontsize=8, loc="upper left")
    parts.plot(x, result.hidden, color=style.BLUE, alpha=0.6)
    style.label(parts, "Contribution of each hidden neuron", "x", "$y_j w_{jk}$")
    for i, (name, errors) in enumerate(result.errors.items()):
        error.loglog(np.arange(1, len(errors) + 1), errors, label=f"by {name}", **style.line(i))
    style.label(error, "Error", "steps", "E = ½ Σ (y − t)²")
    error.legend()
    shown = np.maximum(np.asarray(result.apart), 1e-18)
    apart.semilogy(np.arange(1, len(shown) + 1), shown, color=style.BLUE)
    style.label(apart, "Largest difference of a parameter", "steps", "|by δ − by rules|")
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of B 5.5.7."""
    first, *_, last = np.asarray(result.errors["rules"])
    worst = np.abs(np.asarray(result.curves)[-1] - np.asarray(result.t)[:, 0]).max()
    apart = np.asarray(result.apart).max()
    return [
        claim(
            "The network learns the curve",
            last < 0.05 * first and worst < 0.25,
            first_error=first,
            last_error=last,
            largest_distance_from_the_sine=worst,
        ),
        claim(
            "δ-backpropagation and the rules differ only by rounding throughout",
            apart < 1e-9,
            largest_difference_of_a_parameter=apart,
        ),
    ]
