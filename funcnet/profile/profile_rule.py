"""`profile_rule`: what a rule costs, compared with autodiff and with other implementations."""

import html
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._arguments import check_int, check_number, describe
from funcnet.check import criterion
from funcnet.check.points import REST, SEEDS, points_of, programs_of
from funcnet.check.programs import QUICK, run_all
from funcnet.check.reference import Outputs, cotangents, pullback, wide_arithmetic, widened
from funcnet.check.report import finite_json, number, table
from funcnet.check.subject import Subject, ruled_subject, subject, type_name
from funcnet.check.tracing import twin
from funcnet.profile._flops import flops
from funcnet.profile.devices import device_named, placed
from funcnet.profile.estimate import Estimate, estimate
from funcnet.profile.residuals import residuals
from funcnet.profile.timing import in_turns, loop_of, quartiles

NAN = float("nan")
Quartiles = tuple[float, float, float]
UNKNOWN: Quartiles = (NAN, NAN, NAN)


class Cost(NamedTuple):
    """Of the value and the gradient in one compiled program, unless said otherwise."""

    residual_bytes: int  # leaves of the function that `jax.vjp` returns
    kept_bytes: int  # those of them that are not arguments
    temporary_bytes: int  # that XLA allocates besides arguments and results
    growth_bytes: float  # of temporary bytes per layer in a chain x ← f(x W); nan if none fits
    flops: float  # of the program before XLA optimises it, with all passes of its loops
    accessed_bytes: float
    compile_seconds: float
    microseconds: Quartiles
    ratio: Quartiles  # this time / autodiff's, of the same round
    hand_ratio: Quartiles  # the hand rule's time / this one, of the same round
    rms_ulp: float  # of the cotangents, over 8 seeds; nan where it was not measured
    max_ulp: float
    flops_exact: bool = True  # if not, a `while` loop of unknown length is counted once
    estimate: Estimate | None = None  # on an accelerator that `device=` names


class Profile(NamedTuple):
    """The result of `profile_rule`; it prints as a table."""

    name: str
    arguments: tuple[str, ...]
    hand: Cost
    autodiff: Cost  # of the rule's own plain forward
    checkpoint: Cost  # the same under `jax.checkpoint`
    against: Mapping[str, Cost]
    device: str

    @property
    def columns(self) -> dict[str, Cost]:
        """All costs by name, in the order of the table."""
        own = {"hand": self.hand, "autodiff": self.autodiff}
        return own | {"autodiff + checkpoint": self.checkpoint} | dict(self.against)

    def to_dict(self) -> dict[str, Any]:
        """The profile as dicts, lists, strings and numbers."""
        as_dict = lambda c: c._asdict() | {"estimate": c.estimate and c.estimate._asdict()}
        own = {k: as_dict(getattr(self, k)) for k in ("hand", "autodiff", "checkpoint")}
        against = {name: as_dict(cost) for name, cost in self.against.items()}
        return finite_json(self._asdict() | own | {"against": against})

    def __str__(self) -> str:
        rows = [(label, "", *cells) for label, *cells in self._rows()]
        lines = table(("", "", *self.columns), rows)
        return "\n".join([f"{self.name}({', '.join(self.arguments)}) on {self.device}", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = lambda tag, text: f"<{tag}>{html.escape(text)}</{tag}>"
        rows = [("", *self.columns), *self._rows()]
        body = "".join(f"<tr>{''.join(cell('td', c) for c in row)}</tr>" for row in rows)
        head = f"<b>{html.escape(self.name)}</b> on {html.escape(self.device)}"
        return f"<p>{head}</p><table>{body}</table>"

    def _rows(self) -> list[tuple[str, ...]]:
        is_estimate = self.hand.estimate is not None
        return [
            (label, *(show(c) for c in self.columns.values()))
            for label, show in (COUNTED | (ESTIMATED if is_estimate else MEASURED)).items()
        ]


def _of_estimate(show: Callable[[Estimate], str]) -> Callable[[Cost], str]:
    def of(c: Cost) -> str:
        return "–" if c.estimate is None else "~" * (not c.estimate.exact) + show(c.estimate)

    return of


def _spread(q: Quartiles) -> str:
    return f"{number(q[1])} ({number(q[0])}, {number(q[2])})"


def _products(e: Estimate) -> str:
    return ", ".join(f"{number(n)} {dtype}" for dtype, n in e.products.items()) or "–"


def _bytes(n: float) -> str:
    return "–" if np.isnan(n) else f"{n:,.0f}"


# The rows of a profile: counts of every program, then what was measured here or estimated for
# another device.
COUNTED: dict[str, Callable[[Cost], str]] = {
    "residual bytes": lambda c: _bytes(c.residual_bytes),
    "  not arguments": lambda c: _bytes(c.kept_bytes),
    "temporary bytes": lambda c: _bytes(c.temporary_bytes),
    "  chain growth": lambda c: _bytes(c.growth_bytes),
    "FLOPs": lambda c: ("" if c.flops_exact else "~") + number(c.flops),
    "compile time, s": lambda c: number(c.compile_seconds),
}
MEASURED: dict[str, Callable[[Cost], str]] = {
    "bytes accessed": lambda c: _bytes(c.accessed_bytes),
    "time, µs (quartiles)": lambda c: _spread(c.microseconds),
    "time / autodiff": lambda c: _spread(c.ratio),
    "error, rms ulp": lambda c: number(c.rms_ulp),
    "error, max ulp": lambda c: number(c.max_ulp),
}
ESTIMATED: dict[str, Callable[[Cost], str]] = {
    "estimated cycles": _of_estimate(lambda e: number(e.cycles)),
    "estimated time, ms": _of_estimate(lambda e: number(e.milliseconds)),
    "launches": _of_estimate(lambda e: f"{e.launches:,}"),
    "bytes moved": _of_estimate(lambda e: _bytes(e.moved_bytes)),
    "FLOPs of products": _of_estimate(_products),
}


def profile_rule(
    f: Callable[..., Any],
    *args: Any,
    against: Mapping[str, Callable[..., Any]] | None = None,
    argnums: int | tuple[int, ...] | None = None,
    rounds: int = 20,
    seconds: float = 10.0,
    accuracy: bool = True,
    growth: bool = True,
    device: str | None = None,
    **static: Any,
) -> Profile:
    """Measures value and gradient of f: hand-written, by autodiff, and of other implementations.

    Each is one compiled program. The programs take turns, so that noise of the machine affects all
    alike: compare ratios, and no closer than their quartiles are apart.

    With `device` the programs are compiled for an accelerator that this machine need not have, and
    nothing is computed: each `Cost` has an `Estimate` instead of times and errors. It works for any
    function with a rule, Pallas kernels included.

    Args:
      f: A function that calls rules.
      *args: Its arguments, as in `check_rule`. With `device` a `jax.ShapeDtypeStruct` is enough.
      against: Other implementations of f by name, as functions of the same positional arguments:
        `{"jax.nn": lambda x: jax.nn.gelu(x)}`. Each is differentiated as it is.
      argnums: The positional arguments to differentiate; by default all with floating leaves.
      rounds: How often each program is timed, at most; at least 1.
      seconds: Time for each program; slow ones get fewer rounds, but at least 11.
      accuracy: Whether to measure the errors, which needs more evaluations in float64. Programs
        whose outputs have other types than those of f have no error.
      growth: Whether to compile chains of layers to see how temporary bytes grow with their number.
      device: "tpu:v4", "tpu:v5e", "tpu:v5p", "tpu:v6e" (which need the package libtpu), "gpu:a100"
        or "gpu:h100" (which need jax[cuda12], but no driver). By default the device JAX runs on.
      **static: Keyword arguments of f, as in `check_rule`.

    Returns:
      A `Profile` with a `Cost` for each program.

    Raises:
      TypeError: If the arguments do not fit f.
      ValueError: If f calls no function with a hand-written rule, or nothing is differentiated, or
        there is no such device or no compiler for it.
    """
    caller = "profile_rule"
    rounds = check_int(caller, "rounds", rounds, at_least=1)
    check_number(caller, "seconds", seconds, above=0)
    absent = None if device is None else device_named(caller, device)
    s = _of(ruled_subject(caller, f, args, static, draw=absent is None), argnums, len(args))
    place = lambda tree: tree if absent is None else placed(tree, absent.name)
    s = s._replace(floats=place(s.floats), others=place(s.others))
    plain = twin(s.outputs)
    own = {"hand": s.outputs, "autodiff": plain, "checkpoint": jax.checkpoint(plain)}
    rivals = {}
    if not isinstance(against or {}, Mapping):
        raise TypeError(f"{caller}: against must be a dict of functions, got {describe(against)}")
    for name, g in (against or {}).items():
        if not callable(g) or name in own:
            raise TypeError(
                f"{caller}: against must have functions by names other than {', '.join(own)}, "
                f"got {name!r}: {describe(g)}"
            )
        of_g = subject(g, args, {}, draw=absent is None)
        rivals[name] = _of(of_g, argnums, len(args)).outputs

    programs = {}
    for name, outputs in (own | rivals).items():
        if absent is None:
            dout = cotangents(outputs, s.floats, s.others, 0)
        else:
            dout = place(jax.eval_shape(outputs, s.floats, s.others))
        at = (s.floats, s.others, dout)
        lowered = jax.jit(pullback(outputs)).lower(*at)
        start = time.perf_counter()
        compiled = lowered.compile()
        programs[name] = outputs, at, compiled, time.perf_counter() - start
    times, errors = {}, {}
    if absent is None:
        loops = {name: loop_of(program, *at) for name, (_, at, program, _) in programs.items()}
        times = in_turns(loops, rounds, seconds=seconds)
        errors = _errors(s, plain, programs) if accuracy else {}
    costs = {}
    for name, (outputs, at, compiled, compile_seconds) in programs.items():
        kept = residuals(outputs, s.floats, s.others)
        count, exact = flops(pullback(outputs), *at)
        ratio = lambda a, b: quartiles(times[a] / times[b]) if times else UNKNOWN
        costs[name] = Cost(
            sum(r.nbytes for r in kept),
            sum(r.nbytes for r in kept if r.argument is None),
            _temporary(compiled),
            _growth(outputs, s, place) if growth else NAN,
            count,
            float((compiled.cost_analysis() or {}).get("bytes accessed", NAN)),
            compile_seconds,
            quartiles(times[name]) if times else UNKNOWN,
            ratio(name, "autodiff"),
            ratio("hand", name),
            *errors.get(name, (NAN, NAN)),
            exact,
            estimate(compiled, absent) if absent else None,
        )
    leaves = zip((*s.names, *s.other_names), (*s.floats, *s.others), strict=True)
    kind = device or jax.devices()[0].device_kind
    return Profile(
        s.name,
        tuple(f"{name}: {type_name(leaf)}" for name, leaf in leaves),
        *(costs[name] for name in own),
        against={name: costs[name] for name in rivals},
        device=f"{kind}, jax {jax.__version__}",
    )


def _of(s: Subject, argnums: int | tuple[int, ...] | None, count: int) -> Subject:
    """The subject with only the arguments `argnums` differentiated."""
    if argnums is None:
        return s
    wanted = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not all(isinstance(i, int) and 0 <= i < count for i in wanted):
        raise ValueError(
            f"profile_rule: argnums must be numbers of arguments, 0 to {count - 1}, got {argnums}"
        )
    chosen = [i for i, a in enumerate(s.arguments[: len(s.floats)]) if a in wanted]
    if not chosen:
        raise ValueError(f"profile_rule: argnums must name floating arguments, got {argnums}")
    rest = [i for i in range(len(s.floats)) if i not in chosen]
    pick = lambda values, places: tuple(values[i] for i in places)

    def rebuilt(floats: Any, others: Any) -> Any:
        by_place = dict(zip((*chosen, *rest), (*floats, *others[: len(rest)]), strict=True))
        return s.rebuilt(tuple(by_place[i] for i in sorted(by_place)), others[len(rest) :])

    return Subject(
        s.name,
        s.function,
        rebuilt,
        s.parameters,
        pick(s.names, chosen),
        (*pick(s.names, rest), *s.other_names),
        pick(s.floats, chosen),
        (*pick(s.floats, rest), *s.others),
        (*pick(s.arguments, (*chosen, *rest)), *s.arguments[len(s.floats) :]),
    )


def _temporary(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def _growth(outputs: Outputs, s: Subject, place: Callable[[Any], Any]) -> float:
    """The slope of the temporary bytes from 4 to 8 layers x ← f(x W), where x is the first float.

    W stands for the other layers of a network: without it XLA would fuse the calls of f.
    """
    x, *rest = place([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in s.floats])
    out = jax.eval_shape(outputs, s.floats, s.others)
    fits = x.ndim > 0 and bool(out) and (out[0].shape, out[0].dtype) == (x.shape, x.dtype)
    if not fits or jnp.issubdtype(x.dtype, jnp.complexfloating):
        return NAN
    w = place(jax.ShapeDtypeStruct((x.shape[-1],) * 2, x.dtype))

    def total(floats: Any, ws: Any, others: Any) -> Any:
        x, *rest = floats
        for w in ws:
            x = outputs((x @ w, *rest), others)[0]
        return x.sum()

    def temporary(layers: int) -> int:
        program = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        return _temporary(program.lower((x, *rest), (w,) * layers, s.others).compile())

    return (temporary(8) - temporary(4)) / 4


def _errors(
    s: Subject, plain: Outputs, programs: Mapping[str, tuple[Outputs, Any, Any, float]]
) -> dict[str, tuple[float, float]]:
    """Root mean square and largest error in ulp, over the seeds, of all cotangents together."""
    (dtype, *others) = {leaf.dtype for leaf in s.floats}
    if others or jnp.finfo(dtype).bits == 64:
        return {}
    with wide_arithmetic():
        try:
            points = points_of(plain, s.floats, tuple(map(widened, s.floats)), s.others)
        except Exception:  # it refuses float64: there is no truth of more digits
            return {}
        both = (programs_of(outputs, points, s.others) for outputs in (s.outputs, plain))
        results = run_all([program for programs in both for program in programs], QUICK)
    if any(isinstance(result, Exception) for result in results):
        return {}
    (_, hand), (_, noise_hand), (_, auto), (_, noise_auto) = results
    truths = [
        np.where(np.asarray(nh[0]) < np.asarray(na[0]), h, a)[REST : REST + SEEDS]
        for h, a, nh, na in zip(hand, auto, noise_hand, noise_auto, strict=True)
    ]
    types = jax.eval_shape(plain, s.floats, s.others)
    found = {}
    for name, (outputs, _, compiled, _) in programs.items():
        if jax.eval_shape(outputs, s.floats, s.others) != types:
            continue
        runs = []
        for k in range(REST, REST + SEEDS):
            pairs = zip(points.dout, types, strict=True)
            dout = tuple(jnp.asarray(np.asarray(d[k]), t.dtype) for d, t in pairs)
            runs.append(compiled(s.floats, s.others, dout)[1])
        errors = [
            criterion.errors(np.stack([r[i] for r in runs]), truth, dtype)
            for i, truth in enumerate(truths)
        ]
        found[name] = (max(e.rms for e in errors), max(e.largest for e in errors))
    return found
