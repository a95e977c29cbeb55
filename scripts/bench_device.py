"""What each rule costs on an accelerator that need not be there: `bench.py --device tpu:v5e`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import ops, profile_rule
from funcnet.profile import Cost, Estimate, Profile, in_turns, loop_of, quartiles

USUAL, CHECKPOINT = "usual", "usual + checkpoint"
DTYPES = {"bf16": "bfloat16", "f32": "float32"}


class OnDevice(NamedTuple):
    """The profiles of a case: of the rule alone, and between matrix products if it fits there."""

    alone: Mapping[str, Profile]  # by dtype
    block: Profile | None  # in bfloat16


class _Zeros:
    """A generator of zeros, which take no memory until they are written."""

    def standard_normal(self, shape: Any) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def integers(self, *_: Any, size: Any, **__: Any) -> np.ndarray:
        return np.zeros(size, np.int32)


def shapes(case: Any, sizes: Mapping[str, int], dtype: str) -> list[Any]:
    """Shapes and dtypes of the arguments of a case."""
    with mock.patch("numpy.random.default_rng", return_value=_Zeros()):
        made = case.make(**sizes)
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    cast = lambda x: jax.ShapeDtypeStruct(x.shape, dtype if is_float(x) else x.dtype)
    return [cast(x) if hasattr(x, "dtype") else x for x in made]


def rule_of(name: str, case: Any) -> Callable[..., Any]:
    """The function that is measured, with its options."""
    f = case.hand or getattr(ops, name.partition(",")[0])
    return (lambda *args: f(*args, **case.static)) if case.static else f


def block(f: Callable[..., Any]) -> Callable[..., Any]:
    """F twice, with a matrix product before, between and after."""

    def g(ws: Any, x: Any, *rest: Any) -> Any:
        for w in ws[:-1]:
            x = f(x @ w, *rest)
        return x @ ws[-1]

    return g


def measure(name: str, case: Any, device: str) -> OnDevice:
    """Compiles a case for a device."""
    f, usual = rule_of(name, case), case.usual
    rivals = {USUAL: usual, CHECKPOINT: jax.checkpoint(usual)}
    how = {"device": device, "growth": False}
    alone = {
        short: profile_rule(
            f, *shapes(case, case.large, dtype), against=rivals, argnums=case.argnums, **how
        )
        for short, dtype in DTYPES.items()
    }
    args = shapes(case, case.large, "bfloat16")
    if not _fits(f, args) or case.argnums is not None:
        return OnDevice(alone, None)
    x = args[0]
    ws = (jax.ShapeDtypeStruct((x.shape[-1],) * 2, x.dtype),) * 3
    inside = profile_rule(block(f), ws, *args, against={USUAL: block(usual)}, **how)
    return OnDevice(alone, inside)


HEADER = [
    "| rule | sizes | estimated time / usual, bf16 | f32 | in a block | bytes moved / usual "
    "| launches: hand, usual | temporary MB: hand, usual, checkpoint |",
    "|---|---|---|---|---|---|---|---|",
]


def row(name: str, case: Any, found: OnDevice) -> str:
    """A row of the table."""
    rule, _, variant = name.partition(", ")
    p = found.alone["bf16"]
    hand, usual, checkpoint = p.hand, p.against[USUAL], p.against[CHECKPOINT]
    cells = [
        f"`{rule}`{', ' * bool(variant)}{variant}",
        ", ".join(f"{k} {n}" for k, n in case.large.items()),
        *(ratio(q, lambda e: e.milliseconds) for q in found.alone.values()),
        ratio(found.block, lambda e: e.milliseconds) if found.block else "",
        ratio(p, lambda e: e.moved_bytes),
        f"{_of(hand).launches:,}, {_of(usual).launches:,}",
        ", ".join(f"{c.temporary_bytes / 1e6:,.1f}" for c in (hand, usual, checkpoint)),
    ]
    return f"| {' | '.join(cells)} |"


def ratio(p: Profile, of: Callable[[Estimate], float]) -> str:
    """The hand rule's number divided by that of the usual code."""
    hand, usual = _of(p.hand), _of(p.against[USUAL])
    mark = "" if hand.exact and usual.exact else "~"
    return f"{mark}{of(hand) / of(usual):.2f}" if of(usual) else "–"


def _of(cost: Cost) -> Estimate:
    assert cost.estimate is not None
    return cost.estimate


class Timed(NamedTuple):
    """Milliseconds of a program on the device that is present: medians with quartiles."""

    hand: tuple[float, float, float]
    usual: tuple[float, float, float]
    ratio: tuple[float, float, float]  # hand / usual, of the same round


def time_all(cases: Mapping[str, Any], dtype: str, rounds: int, seconds: float) -> Iterator[Any]:
    """Times value and gradient of each case, alone and in a block; yields (name, where, Timed)."""
    jobs = [(name, case, inside) for name, case in cases.items() for inside in (False, True)]
    with ThreadPoolExecutor() as pool:  # XLA compiles on all cores; nothing is timed meanwhile
        compiled = list(pool.map(lambda job: _compiled(*job, dtype), jobs))
    for (name, _, inside), found in zip(jobs, compiled, strict=True):
        if isinstance(found, Exception):
            yield name, inside, found
        elif found is not None:
            programs, make = found
            args = make()
            loops = {k: loop_of(program, *args) for k, program in programs.items()}
            times = in_turns(loops, rounds, seconds=seconds)
            of = lambda t: quartiles(t / 1e3)
            hand, usual = times["hand"], times[USUAL]
            yield name, inside, Timed(of(hand), of(usual), quartiles(hand / usual))


def _compiled(name: str, case: Any, inside: bool, dtype: str) -> Any:
    """The programs of a case and a function that makes their arguments; None if nothing fits."""
    try:
        f, usual = rule_of(name, case), case.usual
        args = shapes(case, case.large, DTYPES[dtype])
        if inside:
            if not _fits(f, args) or case.argnums is not None:
                return None
            f, usual = block(f), block(usual)
            x = args[0]
            args = [(jax.ShapeDtypeStruct((x.shape[-1],) * 2, x.dtype),) * 3, *args]
        numbers = range(len(args)) if case.argnums is None else np.atleast_1d(case.argnums)
        is_float = lambda x: all(jnp.issubdtype(t.dtype, jnp.inexact) for t in jax.tree.leaves(x))
        chosen = tuple(int(i) for i in numbers if is_float(args[i]))
        high = case.large.get("v", case.large.get("c", 2))
        programs = {}
        for k, g in (("hand", f), (USUAL, usual)):
            out = jax.eval_shape(g, *args)

            def pull(dy: Any, *xs: Any, g: Any = g) -> Any:
                call = lambda *own: g(*_put(xs, chosen, own))
                y, vjp = jax.vjp(call, *(xs[i] for i in chosen))
                return y, vjp(dy)

            programs[k] = jax.jit(pull).lower(out, *args).compile()
        make = lambda: jax.tree.map(lambda t: _drawn(t, high), (out, *args))
    except Exception as e:  # a rule that does not compile is a result
        return e
    return programs, make


def _put(xs: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    new = list(xs)
    for i, value in zip(places, values, strict=True):
        new[i] = value
    return new


def _drawn(t: Any, high: int) -> jax.Array:
    """Numbers that suit every rule: between 0 and 1, or indices below `high`."""
    key = jax.random.key(0)
    if jnp.issubdtype(t.dtype, jax.dtypes.prng_key):
        return key
    if jnp.issubdtype(t.dtype, jnp.inexact):
        return jax.random.uniform(key, t.shape, jnp.float32, 0.01, 0.99).astype(t.dtype)
    return jax.random.randint(key, t.shape, 0, high, t.dtype)


def _fits(f: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether the rule maps its first argument to an array of the same type."""
    out, x = jax.eval_shape(f, *args), args[0]
    same = getattr(out, "shape", None) == x.shape and out.dtype == x.dtype
    return same and jnp.issubdtype(x.dtype, jnp.inexact)


def shown(t: Timed) -> str:
    """Such as "1.20 (1.19, 1.22), 2.40 (2.39, 2.43), 0.50 (0.49, 0.51)"."""
    return ", ".join(f"{m:.3g} ({low:.3g}, {high:.3g})" for low, m, high in t)
