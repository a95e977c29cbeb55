"""Recognize gradients that differ from the derivative on purpose, and show how to declare them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from funcnet.check.subject import Subject


class _Pattern(NamedTuple):
    """What a cotangent looks like, in words and as the code that declares it."""

    what: str
    cotangent: str  # as an expression of dy
    truth: str = ""  # a function with this derivative, if there is one


def deliberate(
    s: Subject,
    i: int,
    hand: np.ndarray,
    right: np.ndarray,
    douts: Mapping[str, np.ndarray],
    zeros: Sequence[bool],
) -> str:
    """The pattern of a wrong cotangent that looks deliberate, and the line that declares it; or "".

    Args:
      s: The function.
      i: The number of the argument among its floats.
      hand: The cotangent from the rule, for four cotangents of the output: two of usual size, one
        about a thousand times as large, and one about a thousand times as small.
      right: The right cotangent for the first two.
      douts: The cotangents of the outputs, by name.
      zeros: For each of the floats, whether its cotangent from the rule is zero.
    """
    if s.arguments.count(s.arguments[i]) > 1 or not hand.size or np.iscomplexobj(hand):
        return ""
    for name, dout in douts.items():
        if dout.shape == hand.shape and not np.iscomplexobj(dout):
            dy = name.replace("out", "dy", 1)
            for pattern in _patterns(s.names[i], hand, right, dout, dy):
                line = _line(s, i, pattern, zeros)
                return f"{pattern.what}. If it is meant, declare it:\n{line}"
    return ""


def _patterns(
    x: str, hand: np.ndarray, right: np.ndarray, dout: np.ndarray, dy: str
) -> Iterator[_Pattern]:
    close = lambda a, b: np.allclose(a, b, rtol=1e-6, atol=0)
    if not hand.any() or not np.isfinite(hand).all():
        return
    passes = (right == 0) | (right == dout[:2])  # such as round, sign and clip
    if close(hand, dout) and passes.all():
        what = f"It is {dy}, where autodiff is 0: a straight-through estimator"
        yield _Pattern(what, dy, x)
        return
    if close(hand, dout):
        return  # a factor is missing
    kept = hand != 0
    if close(hand, np.where(kept, dout, 0)) and not right.any():
        what = f"It is {dy} in a region, where autodiff is 0: a straight-through estimator"
        yield _Pattern(what, f"jnp.where(…, {dy}, 0)", f"jnp.clip({x}, …)")
        return
    is_identity = close(right, dout[:2])
    factor = float(np.vdot(dout, hand) / np.vdot(dout, dout))
    if is_identity and close(hand, factor * dout):
        times = "-" if factor == -1 else f"{factor:.6g} * "
        what = "the gradient is reversed" if factor < 0 else "the gradient is scaled"
        yield _Pattern(f"It is {times}{dy}: {what}", f"{times}{dy}", f"{times}{x}")
        return
    if close(hand, np.sign(dout)):
        yield _Pattern(f"It is the sign of {dy}", f"jnp.sign({dy})")
        return
    low, high = float(hand.min()), float(hand.max())
    if low < high and close(hand, np.clip(dout, low, high)):
        bounds = f"{low:.6g}, {high:.6g}"
        yield _Pattern(f"It is {dy}, clipped to [{bounds}]", f"jnp.clip({dy}, {bounds})")
        return
    sizes = [float(np.linalg.norm(h)) for h in hand]
    if close(hand, np.stack([d * n / np.linalg.norm(d) for d, n in zip(dout, sizes, strict=True)])):
        largest = max(sizes)
        cut = [min(largest, float(np.linalg.norm(d))) for d in dout]
        norm = f"jnp.linalg.norm({dy})"
        if close(sizes, cut):
            what = f"It is {dy}, clipped to the norm {largest:.6g}"
            yield _Pattern(what, f"{dy} * jnp.minimum(1, {largest:.6g} / {norm})")
        elif close(sizes, largest):
            what = f"It is {dy}, with the norm {largest:.6g}"
            yield _Pattern(what, f"{dy} * {largest:.6g} / {norm}")


def _line(s: Subject, i: int, pattern: _Pattern, zeros: Sequence[bool]) -> str:
    """The call of `check_rule` that declares the pattern."""
    args, kwargs = s.inputs(s.floats, s.others)
    is_numbered = any(not name.isidentifier() for name in s.parameters[: len(args)])
    given = ["*args"] if is_numbered else list(s.parameters[: len(args)])
    f = s.name if s.name.isidentifier() else "f"
    call = ", ".join([f, *given, *(f"{name}={name}" for name in kwargs)])
    kept = {s.arguments[j] for j, is_zero in enumerate(zeros) if not is_zero}
    own = s.arguments[i]
    if pattern.truth and kept <= {own}:
        declared = f"truth=lambda {', '.join([*given, *kwargs])}: {pattern.truth}"
    else:
        each = {own: pattern.cotangent} | dict.fromkeys(kept - {own}, "…")
        several = [each.get(j, "None") for j in sorted(set(s.arguments))]
        found = several[0] if len(several) == 1 else f"({', '.join(several)})"
        declared = f"intent=lambda {', '.join([*given, 'dy', *kwargs])}: {found}"
    return f"check_rule({call}, {declared})"
