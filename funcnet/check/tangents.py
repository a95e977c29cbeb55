"""Rules for tangents: `jax.custom_jvp`, `jax.lax.custom_root` and `custom_linear_solve`.

JAX transposes such a rule for reverse mode, so that all checks of cotangents apply to it. Here its
plain function is found, and its tangents are compared before they are transposed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.check import criterion
from funcnet.check.failures import classify
from funcnet.check.programs import QUICK, Program, run_all
from funcnet.check.reference import Outputs, stack, wide_arithmetic, widened
from funcnet.check.report import Log
from funcnet.check.rounding import noise
from funcnet.check.subject import Subject
from funcnet.check.tracing import equations, evaluate, plain_tangents, trace, twin

FACTOR = -1024.0  # a power of two is exact


def plain_of(s: Subject) -> Outputs:
    """The outputs of the function with its rules replaced by their plain functions."""
    return _twin(s.outputs) if s.by_tangents else twin(s.outputs)


def _twin(f: Callable[..., Any]) -> Any:
    """The function f, in which each rule for tangents is replaced by its plain function."""

    def g(*args: Any) -> Any:
        jaxpr, tree = trace(f, *args)

        def rewrite(eqn: Any, path: Any, inputs: list[Any]) -> list[Any] | None:
            plain = plain_tangents(eqn, inputs)
            if plain is None:
                return None  # rules inside the plain function stay
            return evaluate(plain.jaxpr, lambda *_: None, plain.inputs, path, lambda _: False)

        enter = lambda inner: any(plain_tangents(eqn) for eqn in equations(inner))
        leaves = evaluate(jaxpr, rewrite, jax.tree.leaves(args), (), enter)
        return jax.tree.unflatten(tree, leaves)

    return g


def check_tangents(log: Log, reference: Outputs) -> None:
    """Compares the tangents with those of the reference, and checks that they are linear."""
    s = log.subject
    with wide_arithmetic():
        refused = _compare(log, reference, tuple(map(widened, s.floats)))
    if refused is not None:
        refused = _compare(log, reference, s.floats)
    if refused is not None:
        log.findings.append(classify(refused, "error", s.names, "in forward mode"))


def _compare(log: Log, reference: Outputs, floats: tuple[Any, ...]) -> Exception | None:
    """Compares the tangents at these arguments; returns the exception of the rule, if any."""
    s = log.subject
    directions = _directions(floats)
    hand, hand_noise, auto, auto_noise = run_all(
        [
            program
            for outputs in (s.outputs, reference)
            for program in _programs(outputs, floats, s.others, stack(directions))
        ],
        QUICK,
    )
    if isinstance(hand, Exception):
        return hand
    for i, name in enumerate(s.names):
        for j, out in enumerate(s.output_names()):
            h, n = (np.asarray(x[j])[3 * i : 3 * i + 3] for x in (hand, hand_noise))
            if not _is_linear(log, name, out, h, n):
                continue
            if isinstance(auto, Exception) or isinstance(auto_noise, Exception):
                continue
            t, n_t = (np.asarray(x[j])[3 * i] for x in (auto, auto_noise))
            allowed = criterion.algebra(t, n[0], n_t, criterion.real_dtype(h), 0.0)
            w = criterion.worst(h[0], t, allowed + 1e-9 * np.abs(t).max(initial=0.0))
            if w.ratio > 1 and not _by_differences(
                reference, floats, s.others, directions[3 * i], j, h[0]
            ):
                what = f"the tangent of {out}: {w.place} according to {log.against}"
                log.find("gradient", name, what, w.ratio)
    return None


def _directions(floats: Any) -> list[Any]:
    """For each argument the tangents u, v and −1024 (u + v); those of other arguments are 0."""
    random, found = np.random.default_rng(11), []
    for i in range(len(floats)):
        u, v = (random.standard_normal(floats[i].shape).astype(floats[i].dtype) for _ in range(2))
        for t in (u, v, (FACTOR * (u + v)).astype(u.dtype)):
            zeros = [np.zeros(leaf.shape, leaf.dtype) for leaf in floats]
            found.append((*zeros[:i], np.asarray(t), *zeros[i + 1 :]))
    return found


def _programs(outputs: Outputs, floats: Any, others: Any, tangents: Any) -> list[Program]:
    def push(floats: Any, others: Any, t: Any) -> Any:
        return jax.jvp(lambda floats: outputs(floats, others), (floats,), (t,))[1]

    each = lambda f: lambda floats, others, ts: jax.lax.map(lambda t: f(floats, others, t), ts)
    at = floats, others, tangents
    return [(each(push), at), (each(lambda *args: noise(push, *args)), at)]


def _is_linear(log: Log, name: str, out: str, h: np.ndarray, n: np.ndarray) -> bool:
    expected = FACTOR * (h[0] + h[1])
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    eps = criterion.eps(criterion.real_dtype(h))
    slack = 64 * abs(FACTOR) * (n[0] + n[1]) + (1e-9 + 64 * eps) * largest
    w = criterion.worst(h[2], expected, slack + float(np.finfo(np.float32).tiny))
    if w.ratio > 1:
        what = (
            f"the tangent of {out} for the tangent −1024 (u + v): {w.place}. Usually the tangent "
            "is clipped, squared, normalised or ignored, or something is added that it does not "
            "multiply"
        )
        log.find("linearity", name, what, w.ratio)
    return w.ratio <= 1


def _by_differences(
    outputs: Outputs, floats: Any, others: Any, t: Any, j: int, tangent: np.ndarray
) -> bool:
    """Whether finite differences agree with a tangent of the output j."""
    is_wide = jnp.finfo(floats[0].dtype).bits == 64
    step, allowed = (1e-5, 1e-4) if is_wide else (1e-2, 1e-2)
    moved = lambda h: tuple(v + jnp.asarray(h * d, v.dtype) for v, d in zip(floats, t, strict=True))
    above, below = (criterion.as_wide(outputs(moved(h), others)[j]) for h in (step, -step))
    error = np.abs((above - below) / (2 * step) - tangent).max(initial=0.0)
    return bool(error <= allowed * np.abs(tangent).max(initial=0.0))
