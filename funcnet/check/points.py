"""The points at which a program is evaluated, all in one call, and the results there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion
from funcnet.check.failures import line
from funcnet.check.programs import Program
from funcnet.check.reference import Outputs, cotangents, many, pullback, stack
from funcnet.check.rounding import noise

SEEDS = 8  # number of random cotangents for the accuracy
PERTURBATIONS = 12  # number of perturbations of the arguments by one ulp


class Numbers(NamedTuple):
    """Outputs and cotangents of one program at all points, and their noise at the first two."""

    out: tuple[np.ndarray, ...]
    cotangents: tuple[np.ndarray, ...]
    noise_out: tuple[np.ndarray, ...]
    noise: tuple[np.ndarray, ...]
    unmeasured: str = ""  # the exception of the perturbed arithmetics, if they raise


class Points(NamedTuple):
    """The points as stacked arguments and output cotangents; the constants below index them."""

    floats: tuple[Any, ...]
    dout: tuple[Any, ...]


# The algebra uses two random cotangents d₀ and d₁, three more for linearity, and arguments moved
# off ties and corners. The points from REST on are for the accuracy.
FIRST, SECOND, COMBINED, SMALL, ZERO, MOVED, REST = range(7)
COMBINATION, SCALE = -1024.0, 2.0**-13  # −1024 (d₀ + d₁) and d₀/8192: powers of two are exact


def points_of(plain: Outputs, floats: Any, wide: Any, others: Any) -> Points:
    """All points for the arguments `floats`; `wide` holds the same numbers in a wider dtype."""
    random = np.random.default_rng(7)
    out = jax.eval_shape(plain, wide, others)
    narrow = [cotangents(plain, floats, others, seed) for seed in range(SEEDS)]
    floats, wide = (tuple(map(np.asarray, leaves)) for leaves in (floats, wide))
    # Draw in the narrow dtype, because the accuracy is measured for exactly these numbers.
    narrow[:2] = [tuple(map(_few_digits, leaves, out)) for leaves in narrow[:2]]
    d = [
        tuple(np.asarray(x).astype(t.dtype) for x, t in zip(leaves, out, strict=True))
        for leaves in narrow
    ]
    times = lambda s, x: (s * x).astype(x.dtype)
    combined = tuple(times(COMBINATION, a + b) for a, b in zip(d[0], d[1], strict=True))

    def by_an_ulp(x: np.ndarray, narrow: Any) -> np.ndarray:
        signs = random.choice([-1.0, 1.0], x.shape)
        return x * (1 + criterion.eps(narrow.dtype) * signs).astype(x.dtype)

    def moved(x: np.ndarray) -> np.ndarray:
        size = np.where(np.isfinite(x), np.abs(x), 0)
        step = 1e-4 * (size + size.mean() if x.size else size) + 1e-5
        step *= random.choice([-1, 1], x.shape) * random.uniform(0.5, 1, x.shape)
        return x + step.astype(x.dtype)

    points = [(wide, t) for t in (d[0], d[1], combined)]
    points += [(wide, tuple(times(scale, x) for x in d[0])) for scale in (SCALE, 0.0)]
    points += [(tuple(map(moved, wide)), d[0])]
    points += [(wide, t) for t in d]
    points += [
        (tuple(map(by_an_ulp, wide, floats)), tuple(map(by_an_ulp, d[0], narrow[0])))
        for _ in range(PERTURBATIONS)
    ]
    return Points(*stack(points))


def _few_digits(x: Any, t: Any) -> Any:
    """Rounds a cotangent to multiples of 1/16 if the output is narrow, so that sums are exact."""
    if jnp.finfo(t.dtype).bits == 64:
        return x
    return (np.round(16 * criterion.as_wide(x)) / 16).astype(x.dtype)


def at_point(points: Points, k: int, others: Any) -> tuple[Any, Any, Any]:
    """(floats, others, dout) at one point."""
    at = lambda leaves: tuple(jax.device_put(leaf[k]) for leaf in leaves)
    return at(points.floats), others, at(points.dout)


def programs_of(outputs: Outputs, points: Points, others: Any) -> list[Program]:
    """Two programs: the gradient at all points, and its noise at the first two."""
    pull = pullback(outputs)
    two = jax.tree.map(lambda leaf: leaf[: SECOND + 1], points)
    noisy = lambda floats, others, dout: jax.lax.map(
        lambda fd: noise(pull, fd[0], others, fd[1]), (floats, dout)
    )
    return [
        (many(pull), (points.floats, others, points.dout)),
        (noisy, (two.floats, others, two.dout)),
    ]


def numbers_from(results: list[Any]) -> Any:
    """The results of `programs_of` as `Numbers`, or the exception of the gradient.

    A function may raise in perturbed arithmetics alone, where it checks its own results (a solver
    that has not reached the end). Then the noise is the root of ε of the largest element.
    """
    exact, noisy = results
    if isinstance(exact, Exception):
        return exact
    wide = lambda leaves: tuple(map(criterion.as_wide, leaves))
    out, dargs = exact
    if isinstance(noisy, Exception):
        guess = lambda leaves: tuple(map(_guessed_noise, leaves))
        return Numbers(wide(out), wide(dargs), guess(out), guess(dargs), line(noisy))
    noise_out, noise_dargs = noisy
    return Numbers(wide(out), wide(dargs), wide(noise_out), wide(noise_dargs))


def _guessed_noise(leaf: Any) -> np.ndarray:
    x = np.abs(criterion.as_wide(leaf))[: SECOND + 1]
    largest = x[np.isfinite(x)].max(initial=0.0)
    return np.full(x.shape, float(jnp.finfo(leaf.dtype).eps) ** 0.5 * largest)
