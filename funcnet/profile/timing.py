"""Times of several programs that take turns, so that noise of the machine affects all alike."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Loop = Callable[[int], None]  # runs a number of steps and waits for the last one
FEWEST = 11  # rounds, if `seconds` would leave fewer


def in_turns(
    loops: Mapping[str, Loop],
    rounds: int,
    *,
    steps: int | None = None,
    block: float = 2e-2,
    seconds: float = math.inf,
) -> dict[str, np.ndarray]:
    """The time of a step in µs, for each loop and each round.

    In each round every loop is timed once; who begins changes from round to round. A turn starts
    with a step that is not timed: it pays for the caches and memory pages that the loop before has
    taken.

    Args:
      loops: Functions of a number of steps. The first call, which compiles, is not timed.
      rounds: The number of rounds, at least 1.
      steps: Steps per turn. By default as many as make the fastest loop run for `block` seconds.
      block: The least duration of a turn in seconds, if `steps` is not given. In a shorter one the
        caches that the loop before has left would count.
      seconds: Time for each loop: `rounds` is reduced to fit, but not below 11.

    Returns:
      For each name an array of shape (rounds,).
    """
    for loop in loops.values():
        loop(1)
    once = {name: _timed(loop, 1) for name, loop in loops.items()}
    if steps is None:
        steps = max(1, round(block / min(once.values())))
    possible = seconds * len(once) / ((1 + steps) * sum(once.values()))
    rounds = min(rounds, max(FEWEST, int(min(possible, rounds))))
    names = list(loops)
    times = {name: np.empty(rounds) for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            loops[name](1)
            times[name][i] = _timed(loops[name], steps) / steps * 1e6
    return times


def _timed(loop: Loop, steps: int) -> float:
    start = time.perf_counter()
    loop(steps)
    return time.perf_counter() - start


def loop_of(program: Callable[..., Any], *args: Any) -> Loop:
    """Calls of a program: queued on a GPU, one by one on a CPU, where they would overlap."""
    one_by_one = jax.default_backend() == "cpu"

    def loop(steps: int) -> None:
        out = None
        for _ in range(steps):
            out = program(*args)
            if one_by_one:
                jax.block_until_ready(out)
        jax.block_until_ready(out)

    return loop


def quartiles(values: Any) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, median, high
