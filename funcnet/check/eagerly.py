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

ELEMENTS = 32  # of each argument, at most, because each takes two or four calls of the function
ALLOWED = 1e-5  # of the largest element of a cotangent


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
    for i, (name, d) in enumerate(zip(s.names, pull(dout)[0], strict=True)):
        value = lambda x, i=i: _pairing(s, (*floats[:i], x, *floats[i + 1 :]), dout)
        h, t = criterion.as_wide(d), _slopes(value, np.asarray(floats[i]))
        largest = np.abs(t[np.isfinite(t)]).max(initial=0.0)
        w = criterion.worst(h, t, allowed * largest + float(np.finfo(np.float32).tiny))
        log.row(name, finite=w.ratio * allowed)
        if w.ratio > 1:
            log.find("gradient", name, f"{w.place} according to finite differences", w.ratio)


def _pairing(s: Subject, floats: Any, dout: Any) -> float:
    """Re Σ dout · out at these arguments."""
    pairs = zip(dout, s.outputs(floats, s.others), strict=True)
    return sum(float(np.real(np.sum(np.asarray(d) * np.asarray(y)))) for d, y in pairs)


def _slopes(f: Callable[[Any], float], x: np.ndarray) -> np.ndarray:
    """The cotangent of x by central differences; nan for elements that were left out."""
    places = np.random.default_rng(2).permutation(x.size)[:ELEMENTS]
    is_complex = np.iscomplexobj(x)
    found = np.full(x.size, np.nan, np.complex128 if is_complex else np.float64)
    size = float(np.finfo(x.dtype).eps) ** (1 / 3)

    def along(place: int, unit: complex) -> float:
        step = size * max(1.0, float(np.abs(x.flat[place])))
        moved = np.stack([x, x])
        for sign, point in zip((1, -1), moved, strict=True):
            point.flat[place] += x.dtype.type(sign * unit * step)
        return (f(jnp.asarray(moved[0])) - f(jnp.asarray(moved[1]))) / (2 * step)

    for place in places:
        found[place] = along(place, 1)
        if is_complex:  # JAX's cotangent is ∂/∂Re − i ∂/∂Im
            found[place] -= 1j * along(place, 1j)
    return found.reshape(x.shape)
