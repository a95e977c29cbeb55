"""What do the activation functions and their derivatives look like?

Question. The gradient of the step function is 0 everywhere. How do the gradients of sigmoid, tanh
and ReLU differ from that, and what does softmax do?

Method. Each function is evaluated on a grid. Its derivative is computed by its hand-written rule
and compared with numerical differentiation, which is independent of the rule. For softmax with C
classes, the two forms of the rule in the source are compared: dy (diag(y) − yᵀy), which needs a
C × C matrix, and y (dy − ⟨dy, y⟩), which does not.

Expect. The derivative of sigmoid is at most ¼, so gradients shrink from layer to layer. The
derivative of tanh is at most 1. The derivative of ReLU is 0 or 1, and is 1 at exactly 0, as the
source defines it. The derivative of the step function is 0.

Source. A 2.1, 2.3.1 to 2.3.3, 3.3.5 and 3.3.6: rows F1 to F4 and X10.

Run time. 2 s on two cores of an AMD EPYC.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from funcnet import numerical, ops

FUNCTIONS = {f.__name__: f for f in (ops.step, ops.identity, ops.relu, ops.sigmoid, ops.tanh)}


@dataclass(frozen=True)
class Config:
    """Activation functions and their derivatives."""

    points: int = 601
    """Points of the grid; an odd number, so that 0 is one of them."""
    limit: float = 6.0
    """The grid goes from −limit to limit."""
    classes: int = 6
    """Classes of softmax."""
    seed: int = 0
    """Seed of the inputs of softmax."""


class Result(NamedTuple):
    """The results of `run`."""

    x: jax.Array  # (points,)
    y: dict[str, jax.Array]  # f(x)
    dy: dict[str, jax.Array]  # f′(x) from the hand-written rule
    numerical: dict[str, jax.Array]  # f′(x) from differences
    logits: jax.Array  # (classes,)
    shares: jax.Array  # softmax of multiples of the logits, (multiples, classes)
    multiples: tuple[float, ...]
    jacobians: tuple[jax.Array, jax.Array]  # of softmax, from the rule and as diag(y) − yᵀy
    moved: jax.Array  # largest change of softmax when 1000 is added to all logits


def run(config: Config) -> Result:
    """Evaluates the functions and their derivatives."""
    multiples = (0.0, 1.0, 4.0)

    @jax.jit
    def compute() -> Result:
        half = config.points // 2
        x = config.limit / half * jnp.arange(-half, half + 1, dtype=jnp.float32)
        derivative = lambda f: jax.vmap(jax.grad(f))(x)
        by_differences = lambda f: jax.vmap(lambda x: numerical.gradient(f, x, method="five_point"))
        logits = 2 * jax.random.normal(jax.random.key(config.seed), (config.classes,), jnp.float32)
        y = ops.softmax(logits)
        jacobians = jax.jacrev(ops.softmax)(logits), jnp.diag(y) - jnp.outer(y, y)
        return Result(
            x,
            {name: f(x) for name, f in FUNCTIONS.items()},
            {name: derivative(f) for name, f in FUNCTIONS.items()},
            {name: by_differences(f)(x) for name, f in FUNCTIONS.items()},
            logits,
            jnp.stack([ops.softmax(m * logits) for m in multiples]),
            multiples,
            jacobians,
            jnp.abs(ops.softmax(logits + 1000) - y).max(),
        )

    return compute()._replace(multiples=multiples)


def plot(result: Result) -> Figure:
    """Plots each function with its derivative, and softmax of small and of large logits."""
    figure, axes = style.panels(2, 3, height=5)
    for ax, (i, name) in zip(axes.flat, enumerate(FUNCTIONS), strict=False):
        ax.plot(result.x, result.y[name], label="f(x)", **style.line(0))
        ax.plot(result.x, result.dy[name], label="f′(x), by the rule", **style.line(1))
        low, high = (-1.2, 2) if i in (1, 2) else (-1.2, 1.2)
        style.label(ax, name, "x", ylim=(low, high))
    ax = axes[1, 2]
    width = 0.8 / len(result.multiples)
    for i, (multiple, share) in enumerate(zip(result.multiples, result.shares, strict=True)):
        at = np.arange(len(share)) + (i - 1) * width
        ax.bar(at, share, width, label=f"{multiple:g} × logits", color=style.COLOURS[i])
    style.label(ax, "softmax", "class", "probability", ylim=(0, 1))
    ax.legend()
    style.legend_below(figure, axes[0, 0])
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims of A 2.3 and 3.3."""
    x, dy = np.asarray(result.x), {n: np.asarray(d) for n, d in result.dy.items()}
    zero = int(np.flatnonzero(x == 0)[0])
    kinks = np.abs(x) > 0.1  # near 0, differences straddle the kink of relu and the jump of step
    errors = {n: np.abs(dy[n] - np.asarray(result.numerical[n]))[kinks].max() for n in dy}
    by_rule, by_matrix = map(np.asarray, result.jacobians)
    apart = np.abs(by_rule - by_matrix).max()
    sums = np.asarray(result.shares).sum(-1)
    return [
        claim(
            "Sigmoid passes on at most ¼ of a gradient, tanh at most all of it, both at 0",
            dy["sigmoid"].argmax() == dy["tanh"].argmax() == zero
            and dy["sigmoid"][zero] == 0.25
            and dy["tanh"][zero] == 1,
            sigmoid=dy["sigmoid"].max(),
            tanh=dy["tanh"].max(),
        ),
        claim(
            "ReLU passes on all or nothing of a gradient; at exactly 0, all of it",
            np.array_equal(dy["relu"], x >= 0),
            at_0=dy["relu"][zero],
            below_0=dy["relu"][zero - 1],
        ),
        claim(
            "The step function passes on no gradient",
            not dy["step"].any(),
            largest=dy["step"].max(),
        ),
        claim(
            "The rules agree with numerical differentiation", max(errors.values()) < 1e-4, **errors
        ),
        claim(
            "Softmax gives probabilities, and a common offset of 1000 does not change them",
            np.abs(sums - 1).max() < 1e-6 and result.moved < 1e-4,
            largest_error_of_the_sum=np.abs(sums - 1).max(),
            change=result.moved,
        ),
        claim(
            "The matrix-free rule of softmax equals dy (diag(y) − yᵀy)", apart < 1e-6, apart=apart
        ),
    ]
