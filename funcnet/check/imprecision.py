"""Tell a formula that is right but imprecise from a wrong one."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from funcnet.check.accuracy import LOSSES
from funcnet.check.criterion import Worst
from funcnet.check.evidence import Evidence
from funcnet.check.points import FIRST, at_point
from funcnet.check.reference import pullback
from funcnet.check.subject import Subject
from funcnet.check.tracing import equations, trace

# An error that is a larger share of the largest element is never called imprecise. A solver that
# stops early is not linear in dy, which a formula with a small error is.
ROUNDED, SOLVED, NONLINEAR = 0.05, 1e-3, 0.05
LOOPS = "while", "scan", "custom_linear_solve"


def by_rounding(s: Subject, e: Evidence, i: int, k: int, w: Worst) -> str:
    """Why the rounding of the rule explains the error of a cotangent at a point, or ""."""
    h, t = e.hand.cotangents[i][k], e.reference.cotangents[i][k]
    noise = e.hand.noise[i][min(k, len(e.hand.noise[i]) - 1)]
    with np.errstate(invalid="ignore"):
        error = np.abs(h - t)[w.wrong]
    size = _largest(t)
    if not error.max(initial=0.0) <= ROUNDED * size:
        return ""
    narrow = _narrowest(s, e)
    if narrow is not None:
        is_explained = error.max() <= 8 * float(jnp.finfo(narrow).eps) * size
    else:
        most = noise.max(initial=0.0)
        is_explained = most <= ROUNDED * size and (error <= 16 * noise[w.wrong]).all()
    if not is_explained:
        return ""
    start = f"the rule computes in {narrow}" if narrow else "its rounding errors are large"
    return f"the formula is right, but {start}. {LOSSES}"


def by_a_solver(s: Subject, e: Evidence, error: float, size: float, limit: float) -> str:
    """Why an iterative solver explains an error up to this share of the size, or ""."""
    if not 0 < error <= limit * size:
        return ""
    jaxpr, _ = trace(pullback(s.outputs), *at_point(e.points, FIRST, s.others))
    if not any(eqn.primitive.name in LOOPS for eqn in equations(jaxpr, of_rules=True)):
        return ""
    return (
        f"the error is {error / size:.1g} of the largest element: a loop that stops early, such as "
        "an iterative solver, is not more precise. Let it make more steps, or allow the error with "
        f"tolerance={_above(error / size)}"
    )


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


def _above(share: float) -> str:
    """A power of ten that is well above a share."""
    return f"1e{int(np.ceil(np.log10(2 * share)))}"


def _narrowest(s: Subject, e: Evidence) -> Any:
    """The narrowest dtype to which the rule rounds, or None if all are the arguments' or wider."""
    jaxpr, _ = trace(pullback(s.outputs), *at_point(e.points, FIRST, s.others))
    used = [
        v.aval.dtype for eqn in equations(jaxpr, of_rules=True) for v in eqn.outvars if _is_real(v)
    ]
    coarsest = max(jnp.finfo(leaf.dtype).eps for leaf in s.floats)
    narrow = [d for d in used if jnp.finfo(d).eps > coarsest]
    return max(narrow, key=lambda d: jnp.finfo(d).eps, default=None)


def _is_real(v: Any) -> bool:
    return jnp.issubdtype(getattr(v.aval, "dtype", jnp.int32), jnp.floating)
