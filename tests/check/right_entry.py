"""What a correct rule of the catalogue is, and how its arguments are drawn."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

WIDE = ("float32", "float64")
NO_HALF = ("float32", "float64", "bfloat16")  # where float16 would overflow
FLOATS = ("float32", "float64", "bfloat16", "float16")

# Where sigmoid, tanh, exp and their kind saturate, underflow or change branch in some dtype.
TAILS = (0.0, 1e-3, 0.5, 1.0, 3.0, 6.0, 9.0, 11.0, 16.0, 20.0, 40.0, 88.0)


class Right(NamedTuple):
    """A correct function, with `draw(rng, dtype) -> (args, kwargs)` for each of `dtypes`."""

    id: str
    f: Callable
    draw: Callable
    dtypes: tuple[str, ...] = FLOATS


REGIMES = {
    "unit": lambda rng, shape: rng.normal(size=shape),
    "small": lambda rng, shape: 0.01 * rng.normal(size=shape),
    "ten": lambda rng, shape: 10 * rng.normal(size=shape),
    "hundred": lambda rng, shape: 100 * rng.normal(size=shape),
    "ties": lambda rng, shape: rng.integers(-2, 3, shape),
    "offset": lambda rng, shape: 1000 + rng.normal(size=shape),
    "tails": lambda rng, shape: rng.choice(TAILS, shape) * rng.choice([-1, 1], shape),
    "positive": lambda rng, shape: rng.uniform(0.1, 3, shape),
    "zeros": lambda rng, shape: np.zeros(shape),
}


def values(rng, shape, dtype, regimes="unit"):
    """An array in one of `regimes`, without those that its dtype has no range or digits for."""
    names = regimes.split()
    if dtype in ("float16", "bfloat16"):
        names = [n for n in names if n != "offset" and (n, dtype) != ("hundred", "float16")]
    return jnp.asarray(np.asarray(REGIMES[rng.choice(names)](rng, shape)), dtype)


def accumulator(x):
    """The dtype to sum in: float32 at least."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def sizes(rng, n, high=6):
    """`n` sizes of axes, of 1 to `high`."""
    return tuple(int(s) for s in rng.integers(1, high + 1, n))


def integers(rng, high, shape, low=0):
    return jnp.asarray(rng.integers(low, high, shape), jnp.int32)


def booleans(rng, shape):
    return jnp.asarray(rng.random(shape) < 0.6)


def arrays(n=1, ranks=(0, 4), regimes="unit ten ties", **kwargs):
    """Draws `n` arrays of one common shape, with a rank between the two `ranks`."""

    def draw(rng, dtype):
        shape = sizes(rng, int(rng.integers(ranks[0], ranks[1] + 1)))
        return tuple(values(rng, shape, dtype, regimes) for _ in range(n)), dict(kwargs)

    return draw
