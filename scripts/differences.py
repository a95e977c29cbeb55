"""Finite differences for `check_foreign.py`, independent of `funcnet`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEP = 0.02  # times float32 arguments near 1: rounding and truncation are both near 1e-5


def off_by(
    f: Callable[..., Any],
    args: Sequence[Any],
    *,
    truth: Callable[..., Any] | None = None,
    intent: Callable[..., Any] | None = None,
    **options: Any,
) -> float | None:
    """How far the gradient of `f` is from what it must be, in float32.

    With a random cotangent dy, and a random direction v for each array a in turn, the slope
        s = d/dh ⟨dy, f(a + h v)⟩ at h = 0
    is found by the five-point difference, and compared with ⟨da, v⟩ of the gradient da.

    Args:
      f: The function.
      args: Its arguments. Floating arrays are varied; numbers, integer arrays and others are not.
      truth: A function of the same arguments to find the slope of, instead of `f`.
      intent: A function of the arguments and dy, if `f` has one output. It returns what da must
        be, of which s = ⟨da, v⟩.
      **options: Keyword arguments of `f`.

    Returns:
      The largest |⟨da, v⟩ − s| / |s| of all arguments; None if `f` or its gradient raises an
      error, such as a cotangent of a wrong shape.
    """
    varied = [i for i, a in enumerate(args) if isinstance(a, jax.Array) and _is_floating(a)]
    args = [a.astype(jnp.float32) if i in varied else a for i, a in enumerate(args)]
    point = [args[i] for i in varied]
    random = np.random.default_rng(0)
    like = lambda a: jnp.asarray(random.standard_normal(a.shape), a.dtype)

    def outputs(g: Callable[..., Any], *arrays: jax.Array) -> list[jax.Array]:
        replaced = dict(zip(varied, arrays, strict=True))
        y = g(*(replaced.get(i, a) for i, a in enumerate(args)))
        return [leaf for leaf in jax.tree.leaves(y) if _is_floating(leaf)]

    f = partial(f, **options)
    try:
        dy = [like(y) for y in outputs(f, *point)]
        found = jax.vjp(partial(outputs, f), *point)[1](dy)
    except (TypeError, ValueError):
        return None
    meant = intent(*args, *dy) if intent else None

    def slope(j: int, v: jax.Array) -> float:
        if meant is not None:
            return _inner([meant[varied[j]] if isinstance(meant, tuple) else meant], [v])
        moved = lambda h: [*point[:j], point[j] + h * v, *point[j + 1 :]]
        at = lambda h: _inner(outputs(truth or f, *moved(h)), dy)
        near, far = at(STEP) - at(-STEP), at(2 * STEP) - at(-2 * STEP)
        return (8 * near - far) / (12 * STEP)

    errors = []
    for j, da in enumerate(found):
        v = like(da)
        s = slope(j, v)
        errors.append(abs(_inner([da], [v]) - s) / abs(s))
    return max(errors)


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _inner(xs: Sequence[Any], ys: Sequence[Any]) -> float:
    """⟨x, y⟩, summed in float64."""
    wide = lambda x: np.asarray(x, np.float64)
    return sum(float(np.vdot(wide(x), wide(y))) for x, y in zip(xs, ys, strict=True))
