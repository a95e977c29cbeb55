"""Recognize gradients that differ from the derivative on purpose, and show how to declare them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from funcnet.check.criterion import as_wide
from funcnet.check.evidence import Evidence
from funcnet.check.points import COMBINATION, COMBINED, FIRST, SECOND, SMALL
from funcnet.check.subject import Subject

POINTS = [FIRST, SECOND, COMBINED, SMALL]  # the same arguments, other cotangents of the output


class Pattern(NamedTuple):
    """A deliberate cotangent of one argument."""

    words: str
    cotangent: str  # as Python code
    primal: str = ""  # a function whose derivative it is, as Python code


def declaration(s: Subject, e: Evidence, i: int) -> str:
    """One sentence and the line of code that declares the cotangent of the float `i`, or ""."""
    found = pattern(e, i, s.names[i])
    parameters = [p if p.isidentifier() else f"arg{k}" for k, p in enumerate(s.parameters)]
    call = f"{s.name if s.name.isidentifier() else 'f'}, {', '.join(parameters)}"
    if found is None and not e.reference.cotangents[i].any() and _is_linear(e, i):
        return (
            "If it is meant to be that of another function, such as a smooth one, declare this "
            f"function:\ncheck_rule({call}, truth=smooth)"
        )
    if found is None:
        return ""
    if found.primal and len(s.floats) == 1:
        option = f"truth=lambda {', '.join(parameters)}: {found.primal}"
    else:
        option = f"intent=lambda {', '.join(parameters)}, dy: {_cotangents(s, e)}"
    line = f"check_rule({call}, {option})"
    rest = ", with the right cotangents in place of the dots" if "..." in option else ""
    return f"It is {found.words}. If that is deliberate, declare it{rest}:\n{line}"


def _cotangents(s: Subject, e: Evidence) -> str:
    """The cotangents of all arguments as Python code: a tuple if there are several."""
    codes = []
    for number, name in enumerate(s.parameters):
        leaves = [i for i, a in enumerate(s.arguments[: len(s.floats)]) if a == number]
        patterns = [pattern(e, i, name) for i in leaves]
        if not any(e.hand.cotangents[i].any() for i in leaves):
            codes.append("None")
        elif len(leaves) == 1 and patterns[0] is not None:
            codes.append(patterns[0].cotangent)
        else:
            codes.append("...")
    return codes[0] if len(codes) == 1 else f"({', '.join(codes)})"


def _is_linear(e: Evidence, i: int) -> bool:
    """Whether a cotangent is linear in that of the output, as the gradient of a function is."""
    h = e.hand.cotangents[i]
    sums = COMBINATION * (h[FIRST] + h[SECOND])
    return bool(
        h.any() and np.allclose(h[COMBINED], sums, rtol=1e-6, atol=1e-9 * np.abs(sums).max())
    )


def pattern(e: Evidence, i: int, name: str) -> Pattern | None:
    """The pattern of a cotangent with the shape of the only output, if it has one."""
    h = e.hand.cotangents[i]
    if len(e.points.dout) != 1 or not h.any() or h.shape != e.points.dout[0].shape:
        return None
    d, t = as_wide(e.points.dout[0])[POINTS], e.reference.cotangents[i][[FIRST, SECOND]]
    return next(_patterns(h[POINTS], t, d, name), None) if np.isfinite(h[POINTS]).all() else None


def _patterns(h: np.ndarray, t: np.ndarray, d: np.ndarray, name: str) -> Iterator[Pattern]:
    close = lambda a, b: all(
        np.allclose(x, y, rtol=1e-6, atol=1e-9 * np.abs(y).max(initial=0.0))
        for x, y in zip(a, b, strict=True)
    )
    if close(h, d):
        if not t.any():
            words = "the cotangent dy of the output, where autodiff gives 0: straight-through"
            yield Pattern(words, "dy", name)
        return
    if np.iscomplexobj(h):
        return
    factor = float(np.vdot(d, h) / np.vdot(d, d))
    if factor < 0 and close(h, factor * d) and close(t, d[:2]):
        scale = _code(factor)
        yield Pattern(f"{scale} dy: gradient reversal", f"{scale} * dy", f"{scale} * {name}")
    if close(h, np.sign(d)):
        yield Pattern("the sign of dy", "jnp.sign(dy)")
        return
    low, high = float(h.min()), float(h.max())
    if low >= 0 or high <= 0:
        high = max(-low, high)
        low = -high
    if close(h, np.clip(d, low, high)):
        code = f"jnp.clip(dy, {_code(low)}, {_code(high)})"
        yield Pattern(f"dy clipped to [{low:.6g}, {high:.6g}]", code)
        return
    norms = np.array([np.linalg.norm(x) for x in d]).reshape(-1, *[1] * (d.ndim - 1))
    limit = float(np.linalg.norm(h[2]))
    if close(h, d * np.minimum(1, limit / norms)):
        code = f"dy * jnp.minimum(1, {_code(limit)} / jnp.linalg.norm(dy))"
        yield Pattern(f"dy with its norm clipped to {limit:.6g}", code)


def _code(x: Any) -> str:
    """A number as Python code, short if it may be."""
    short = f"{x:.6g}"
    return short if np.isclose(float(short), x, rtol=1e-12) else repr(float(x))
