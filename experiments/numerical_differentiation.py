"""How accurate is numerical differentiation, and which step size is best?

Question. A difference quotient is exact in the limit of h → 0. Why is a smaller h not always
better, and what do schemes with more points gain?

Method. The derivative of f(x) = eˣ sin x at x = 1 is computed by the five schemes of
`funcnet.numerical` for a range of steps, in float32 and in float64, with all steps in one vmapped
program. The slope of the error in a log-log plot is measured in two ranges: where truncation error
dominates, i.e. above the best step and below a relative error of 10⁻³; and where rounding error
dominates, i.e. for steps much smaller than the best.

Expect. In the first range the slopes are 1, 1, 2, 4 and 6, the orders of the formulas. Below the
best step the error grows as 1/h. In float64 a central difference with the book's h = 10⁻⁴ is
correct to nine digits; in float32 this h is far below the best step.

Source. A 3.3.1; the order of each scheme: Fornberg, 1988. Row G1.

Run time. 3 s on two cores of an AMD EPYC.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import style
from experiments.claim import Claim, claim
from funcnet import numerical

DTYPES = ("float32", "float64")
BOOK = 1e-4  # the step of the book


@dataclass(frozen=True)
class Config:
    """The error of numerical differentiation as a function of its step."""

    x: float = 1.0
    """Point at which to differentiate."""
    points: int = 241
    """Number of steps, equally spaced on a log scale."""
    smallest: float = 1e-12
    """The smallest step."""
    largest: float = 1.0
    """The largest step."""


class Result(NamedTuple):
    """The results of `run`."""

    steps: jax.Array  # h, float64 (points,)
    errors: dict[str, dict[str, jax.Array]]  # relative errors by dtype and method, (points,)


def f(x: jax.Array) -> jax.Array:
    """The function eˣ sin x; its derivative is eˣ (sin x + cos x)."""
    return jnp.exp(x) * jnp.sin(x)


def run(config: Config) -> Result:
    """Differentiates with every step, by every method, in both dtypes."""
    with jax.enable_x64(True):
        low, high = np.log10(config.smallest), np.log10(config.largest)
        steps = jnp.logspace(low, high, config.points, dtype=jnp.float64)
        truth = jnp.exp(config.x) * (jnp.sin(config.x) + jnp.cos(config.x))
        errors = {}
        for dtype in DTYPES:
            h = steps.astype(dtype)
            for method in numerical.STENCILS:
                at = jnp.asarray(config.x, dtype)
                by = lambda h, at=at, m=method: numerical.gradient(f, at, method=m, step=h)
                d = jax.jit(jax.vmap(by))(h).astype(jnp.float64)
                errors.setdefault(dtype, {})[method] = jnp.abs(d - truth) / jnp.abs(truth)
        return Result(steps, errors)


def slope(h: np.ndarray, error: np.ndarray) -> float:
    """The slope of log error against log h."""
    return float(np.polyfit(np.log10(h), np.log10(error), 1)[0])


def limbs(h: np.ndarray, error: np.ndarray, eps: float, order: int) -> tuple[float, float]:
    """The slopes where truncation error dominates and where rounding error dominates."""
    best = eps ** (order / (order + 1))
    formula = (error > 100 * best) & (error < 1e-3) & (h > eps ** (1 / (order + 1)))
    if order == 1:  # the truncation range spans few digits
        formula = (error > 10 * best) & (error < 1e-2) & (h > eps**0.5)
    rounding = (h < 0.1 * eps ** (1 / (order + 1))) & (h > 100 * eps) & (error > 0)
    return slope(h[formula], error[formula]), slope(h[rounding], error[rounding])


def plot(result: Result) -> Figure:
    """Plots the error against the step for each dtype."""
    figure, axes = style.panels(1, 2, height=4.6, sharey=True)
    for ax, dtype in zip(axes.flat, DTYPES, strict=True):
        for i, (method, error) in enumerate(result.errors[dtype].items()):
            order = numerical.STENCILS[method].order
            name = f"{method.replace('_', ' ')} (order {order})"
            shown = np.where(np.asarray(error) > 0, error, np.nan)
            ax.loglog(result.steps, shown, label=name, linewidth=1, **style.line(i))
        ax.axvline(BOOK, color="gray", linewidth=0.8)
        ax.annotate(" h of the book", (BOOK, 20), color="dimgray", fontsize=8)
        style.label(ax, dtype, "step h", "relative error", ylim=(1e-16, 1e2))
        ax.label_outer()
    style.legend_below(figure, axes[0, 0], columns=3)
    return figure


def claims(result: Result) -> list[Claim]:
    """The claims about orders, rounding and best steps."""
    h = np.asarray(result.steps)
    e = {d: {m: np.asarray(x) for m, x in by.items()} for d, by in result.errors.items()}
    eps = {d: float(jnp.finfo(d).eps) for d in DTYPES}
    order = {m: s.order for m, s in numerical.STENCILS.items()}
    slopes = {m: limbs(h, e["float64"][m], eps["float64"], order[m]) for m in order}
    best = {d: {m: x.min() for m, x in e[d].items()} for d in DTYPES}
    book = int(np.abs(np.log(h / BOOK)).argmin())
    best_central = h[e["float32"]["central"].argmin()]
    return [
        claim(
            "In float32 the best step of a central difference is much larger than the book's",
            best_central > 10 * BOOK
            and e["float32"]["central"][book] > 3 * best["float32"]["central"],
            best_step=best_central,
            error_there=best["float32"]["central"],
            error_at_1e_4=e["float32"]["central"][book],
        ),
        claim(
            "The slopes of the error are 1, 1, 2, 4 and 6",
            all(abs(slopes[m][0] - order[m]) < 0.15 for m in order),
            **{m: s[0] for m, s in slopes.items()},
        ),
        claim(
            "The rounding error grows as 1/h",
            all(abs(s[1] + 1) < 0.15 for s in slopes.values()),
            **{m: s[1] for m, s in slopes.items()},
        ),
        claim(
            "At its best step, a central difference is more accurate than a one-sided one",
            best["float64"]["central"] < 0.1 * best["float64"]["forward"],
            **best["float64"],
        ),
        claim(
            "A central difference with the book's h = 1e-4 gives eight digits in float64",
            e["float64"]["central"][book] < 1e-8,
            error=e["float64"]["central"][book],
        ),
    ]
