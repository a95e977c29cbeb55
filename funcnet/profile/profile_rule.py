"""`profile_rule`: what a rule costs, beside autodiff and autodiff with recomputation."""

import html
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._arguments import check_int, check_number
from funcnet.check import criterion
from funcnet.check.points import REST, SEEDS, points_of, programs_of
from funcnet.check.programs import QUICK, run_all
from funcnet.check.reference import Outputs, cotangents, pullback, wide_arithmetic, widened
from funcnet.check.report import CheckFailed, finite_json, number, table
from funcnet.check.subject import Subject, ruled_subject, subject, type_name
from funcnet.check.tracing import twin
from funcnet.profile._flops import flops

NAN = float("nan")
BLOCK = 2e-3  # seconds: calls are timed in blocks at least this long


class Cost(NamedTuple):
    """Of the value and the gradient in one compiled program, unless said otherwise."""

    residual_bytes: int  # leaves of the function that `jax.vjp` returns
    kept_bytes: int  # those of them that are not arguments
    temporary_bytes: int  # that XLA allocates besides arguments and results
    growth_bytes: (
        float  # of the temporary bytes, for each further call in a chain; nan if none fits
    )
    flops: float  # of the program before XLA optimises it, with all passes of its loops
    accessed_bytes: float
    compile_seconds: float
    microseconds: tuple[float, float, float]  # quartiles
    ratio: tuple[float, float, float]  # quartiles of the time over autodiff's of the same round
    rms_ulp: float  # of the cotangents, over 8 seeds; nan in float64
    max_ulp: float
    flops_exact: bool = True  # if not, a `while` loop of unknown length is counted once


class Profile(NamedTuple):
    """The result of `profile_rule`; it prints as a table."""

    name: str
    arguments: tuple[str, ...]
    hand: Cost
    autodiff: Cost
    checkpoint: Cost  # autodiff of the plain forward under `jax.checkpoint`
    device: str

    def to_dict(self) -> dict[str, Any]:
        """The profile as dicts, lists, strings and numbers."""
        columns = {k: getattr(self, k)._asdict() for k in COLUMNS}
        return finite_json(self._asdict() | columns)

    def __str__(self) -> str:
        lines = table(
            ("", "", *COLUMNS.values()), [(label, "", *cells) for label, *cells in self._rows()]
        )
        return "\n".join([f"{self.name}({', '.join(self.arguments)}) on {self.device}", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = lambda tag, text: f"<{tag}>{html.escape(text)}</{tag}>"
        rows = [("", *COLUMNS.values()), *self._rows()]
        body = "".join(f"<tr>{''.join(cell('td', c) for c in row)}</tr>" for row in rows)
        head = f"<b>{html.escape(self.name)}</b> on {html.escape(self.device)}"
        return f"<p>{head}</p><table>{body}</table>"

    def _rows(self) -> list[tuple[str, ...]]:
        costs = [getattr(self, k) for k in COLUMNS]
        spread = lambda q: f"{number(q[1])} ({number(q[0])}, {number(q[2])})"
        return [
            (label, *(show(c) for c in costs))
            for label, show in {
                "residual bytes": lambda c: _bytes(c.residual_bytes),
                "  not arguments": lambda c: _bytes(c.kept_bytes),
                "temporary bytes": lambda c: _bytes(c.temporary_bytes),
                "  growth in a chain": lambda c: _bytes(c.growth_bytes),
                "FLOPs": lambda c: ("" if c.flops_exact else "~") + number(c.flops),
                "bytes accessed": lambda c: _bytes(c.accessed_bytes),
                "compile time, s": lambda c: number(c.compile_seconds),
                "time, µs (quartiles)": lambda c: spread(c.microseconds),
                "time / autodiff": lambda c: spread(c.ratio),
                "error, rms ulp": lambda c: number(c.rms_ulp),
                "error, max ulp": lambda c: number(c.max_ulp),
            }.items()
        ]


COLUMNS = {"hand": "hand", "autodiff": "autodiff", "checkpoint": "autodiff + checkpoint"}


def _bytes(n: float) -> str:
    return "–" if np.isnan(n) else f"{n:,.0f}"


def profile_rule(f: Callable[..., Any], *args: Any, rounds: int = 20, **static: Any) -> Profile:
    """Measures the gradient of f by hand, by autodiff, and by autodiff with `jax.checkpoint`.

    Args:
      f: A function that calls rules.
      *args: Its arguments, as in `check_rule`.
      rounds: How often each is timed, at least once; the three take turns.
      **static: Its keyword arguments, as in `check_rule`.

    Returns:
      A `Profile`, with a `Cost` for each.

    Raises:
      TypeError: If the arguments do not fit f.
      ValueError: If f calls no function with a hand-written rule, or has no floating argument.
    """
    rounds = check_int("profile_rule", "rounds", rounds, at_least=1)
    s = ruled_subject("profile_rule", f, args, static)
    plain = twin(s.outputs)
    versions = {"hand": s.outputs, "autodiff": plain, "checkpoint": jax.checkpoint(plain)}
    at = (s.floats, s.others, cotangents(plain, s.floats, s.others, 0))
    compiled, seconds = {}, {}
    for name, outputs in versions.items():
        lowered = jax.jit(pullback(outputs)).lower(*at)
        start = time.perf_counter()
        compiled[name] = lowered.compile()
        seconds[name] = time.perf_counter() - start
    times = _interleaved(
        {name: (lambda c=c: jax.block_until_ready(c(*at))) for name, c in compiled.items()}, rounds
    )
    errors = _errors(s, plain, compiled)
    costs = {}
    for name, outputs in versions.items():
        analysis = compiled[name].cost_analysis() or {}
        everything, kept = residuals(outputs, s)
        count, exact = flops(pullback(outputs), *at)
        quartiles = lambda t: tuple(np.quantile(t, [0.25, 0.5, 0.75]).tolist())
        costs[name] = Cost(
            sum(map(_size, everything)),
            sum(map(_size, kept)),
            _temporary(compiled[name]),
            _growth(outputs, s),
            count,
            float(analysis.get("bytes accessed", NAN)),
            seconds[name],
            quartiles(times[name]),
            quartiles(times[name] / times["autodiff"]),
            *errors[name],
            exact,
        )
    types = (
        f"{n}: {type_name(v)}"
        for n, v in zip((*s.names, *s.other_names), (*s.floats, *s.others), strict=True)
    )
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    return Profile(s.name, tuple(types), **costs, device=device)


def _size(aval: Any) -> int:
    return int(aval.size) * aval.dtype.itemsize


def residuals(outputs: Outputs, s: Subject) -> tuple[list[Any], list[Any]]:
    """The types of the leaves of `jax.vjp`'s function; and of those that are not arguments."""
    saved = lambda floats, others: jax.tree.leaves(jax.vjp(lambda v: outputs(v, others), floats)[1])
    jaxpr = jax.make_jaxpr(saved)(s.floats, s.others).jaxpr
    found = list(
        dict.fromkeys(v for v in jaxpr.outvars if hasattr(v, "count") or not hasattr(v, "val"))
    )
    return [v.aval for v in found], [v.aval for v in found if v not in jaxpr.invars]


def _temporary(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def _growth(outputs: Outputs, s: Subject) -> float:
    """The slope from 4 to 8 calls, each on the result of the one before."""

    def chain(length: int) -> Any:
        def total(floats: Any, others: Any) -> Any:
            x = floats[0]
            for _ in range(length):
                (x,) = outputs((x, *floats[1:]), others)
            return jnp.real(jnp.sum(x))

        return jax.jit(jax.value_and_grad(total)).lower(s.floats, s.others).compile()

    out = jax.eval_shape(outputs, s.floats, s.others)
    same = len(out) == 1 and (out[0].shape, out[0].dtype) == (s.floats[0].shape, s.floats[0].dtype)
    real = not jnp.issubdtype(s.floats[0].dtype, jnp.complexfloating)
    return (_temporary(chain(8)) - _temporary(chain(4))) / 4 if same and real else NAN


def _interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Microseconds of a call, for each round; who begins changes from round to round."""
    blocks = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        blocks[name] = max(1, int(BLOCK / (time.perf_counter() - start)))
    times = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        for name in (*names[i % len(names) :], *names[: i % len(names)]):
            start = time.perf_counter()
            for _ in range(blocks[name]):
                calls[name]()
            times[name].append((time.perf_counter() - start) / blocks[name] * 1e6)
    return {name: np.array(t) for name, t in times.items()}


def _errors(
    s: Subject, plain: Outputs, compiled: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Root mean square and largest error in ulp, over the seeds, of all cotangents together."""
    (dtype, *others) = {leaf.dtype for leaf in s.floats}
    unknown = dict.fromkeys(compiled, (NAN, NAN))
    if others or jnp.finfo(dtype).bits == 64:
        return unknown
    with wide_arithmetic():
        try:
            points = points_of(plain, s.floats, tuple(map(widened, s.floats)), s.others)
        except Exception:  # it refuses float64: there is no truth of more digits
            return unknown
        both = (programs_of(outputs, points, s.others) for outputs in (s.outputs, plain))
        results = run_all([program for programs in both for program in programs], QUICK)
    if any(isinstance(result, Exception) for result in results):
        return unknown
    (_, hand), (_, noise_hand), (_, auto), (_, noise_auto) = results
    truths = [
        np.where(np.asarray(nh[0]) < np.asarray(na[0]), h, a)[REST : REST + SEEDS]
        for h, a, nh, na in zip(hand, auto, noise_hand, noise_auto, strict=True)
    ]
    types = [y.dtype for y in jax.eval_shape(plain, s.floats, s.others)]
    found = {}
    for name, run in compiled.items():
        runs = []
        for k in range(REST, REST + SEEDS):
            pairs = zip(points.dout, types, strict=True)
            dout = tuple(jnp.asarray(np.asarray(d[k]), type_) for d, type_ in pairs)
            runs.append(run(s.floats, s.others, dout)[1])
        errors = [
            criterion.errors(np.stack([r[i] for r in runs]), truth, dtype)
            for i, truth in enumerate(truths)
        ]
        found[name] = (max(e.rms for e in errors), max(e.largest for e in errors))
    return found


def assert_residuals(f: Callable[..., Any], *args: Any, at_most: int, **static: Any) -> None:
    """Fails if the gradient of f keeps more than `at_most` bytes between its two passes.

    Counted are the leaves of the function that `jax.vjp(f, *args)` returns: everything kept,
    arguments too, before XLA removes what it can. f need not call any rule.

    Args:
      f: A function.
      *args: Its arguments, as in `check_rule`: arrays, or `jax.ShapeDtypeStruct`s.
      at_most: The budget in bytes.
      **static: Its keyword arguments.

    Raises:
      CheckFailed: If more is kept; the message lists what.

    >>> import jax.numpy as jnp
    >>> assert_residuals(jnp.sin, jnp.ones(10, jnp.float32), at_most=40)
    """
    check_number("assert_residuals", "at_most", at_most, at_least=0)
    s = subject(f, args, static)
    everything, _ = residuals(s.outputs, s)
    total = sum(map(_size, everything))
    if total > at_most:
        largest = sorted(everything, key=_size, reverse=True)
        kept = ", ".join(f"{type_name(a)} ({_size(a):,})" for a in largest[:8])
        more = f", and {len(largest) - 8} more" if len(largest) > 8 else ""
        raise CheckFailed(
            f"{s.name} keeps {total:,} bytes for its gradient, more than {at_most:,}: {kept}{more}"
        )
