"""Compare a rule that only runs eagerly, because it converts arrays to NumPy, with differences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion
from funcnet.check.failures import classify
from funcnet.check.reference import wide_arithmetic, widened
from funcnet.check.report import Log
from funcnet.check.subject import Subject

ELEMENTS = 32  # of each argument, at most, because each takes four or eight calls of the function
ALLOWED = 1e-5  # of the largest element of a cotangent
DOUBT = 0.01  # of the largest element: differences that are less certain decide nothing


def compare_eagerly(log: Log) -> None:
    """Compares the cotangents with finite differences, in float64 if the function takes it."""
    s = log.subject
    log.progress("finite differences without tracing")
    try:
        with wide_arithmetic():
            _compare(log, tuple(map(widened, s.floats)), ALLOWED)
    except Exception:
        try:
            _compare(log, s.floats, 1000 * ALLOWED)
        except Exception as e:
            log.findings.append(classify(e, "error", s.names))


def _compare(log: Log, floats: tuple[Any, ...], allowed: float) -> None:
    s = log.subject
    out, pull = jax.vjp(lambda floats: s.outputs(floats, s.others), floats)
    random = np.random.default_rng(0)
    dout = tuple(jnp.asarray(random.standard_normal(y.shape), y.dtype) for y in out)
    eps = max(criterion.eps(y.dtype) for y in out)
    for i, (name, d) in enumerate(zip(s.names, pull(dout)[0], strict=True)):
        value = lambda x, i=i: _pairing(s, (*floats[:i], x, *floats[i + 1 :]), dout)
        h, (t, doubt) = criterion.as_wide(d), _slopes(value, np.asarray(floats[i]), eps)
        largest = np.abs(t[np.isfinite(t)]).max(initial=0.0)
        t = np.where(doubt <= DOUBT * max(largest, np.abs(h).max(initial=0.0)), t, np.nan)
        w = criterion.worst(h, t, allowed * largest + doubt + float(np.finfo(np.float32).tiny))
        log.row(name, finite=float(np.abs(w.actual - w.expected) / largest) if largest else 0.0)
        if w.ratio > 1:
            log.find("gradient", name, f"{w.place} according to finite differences", w.ratio)


def _pairing(s: Subject, floats: Any, dout: Any) -> tuple[float, float]:
    """Re Σ dout · out at these arguments, and Σ |dout · out|."""
    pairs = zip(dout, s.outputs(floats, s.others), strict=True)
    terms = [np.asarray(d) * np.asarray(y) for d, y in pairs]
    return sum(float(np.real(t.sum())) for t in terms), sum(float(np.abs(t).sum()) for t in terms)


def _slopes(f: Callable[[Any], tuple[float, float]], x: np.ndarray, eps: float) -> Any:
    """The cotangent of x by central differences, and its uncertainty; nan for elements left out.

    The uncertainty is the change with a step that is four times larger, and the rounding of f.
    """
    places = np.random.default_rng(2).permutation(x.size)[:ELEMENTS]
    is_complex = np.iscomplexobj(x)
    found = np.full(x.size, np.nan, np.complex128 if is_complex else np.float64)
    doubt = np.zeros(x.size)
    size = max(float(np.finfo(x.dtype).eps), eps) ** (1 / 3)

    def slope(place: int, unit: complex, step: float) -> float:
        moved = np.stack([x, x])
        for sign, point in zip((1, -1), moved, strict=True):
            point.flat[place] += x.dtype.type(sign * unit * step)
        (above, terms), (below, _) = f(jnp.asarray(moved[0])), f(jnp.asarray(moved[1]))
        doubt[place] += 8 * eps * terms / step
        return (above - below) / (2 * step)

    for place in places:
        step = size * max(1.0, float(np.abs(x.flat[place])))
        for unit in (1, 1j) if is_complex else (1,):
            near, far = (slope(place, unit, h) for h in (step, 4 * step))
            # JAX's cotangent is ∂/∂Re − i ∂/∂Im.
            found[place] = near if unit == 1 else found[place] - 1j * near
            doubt[place] += np.abs(near - far)
    return found.reshape(x.shape), doubt.reshape(x.shape)
