"""What each rule costs on an accelerator that need not be there: `bench.py --device tpu:v5e`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import ops
from funcnet.profile import Estimate, in_turns, loop_of, quartiles
from funcnet.profile.devices import DEVICES, placed
from funcnet.profile.estimate import estimate

USUAL, CHECKPOINT = "usual", "usual + checkpoint"
DTYPES = {"bf16": "bfloat16", "f32": "float32"}


class Compiled(NamedTuple):
    """A program of value and cotangents for a given dy."""

    estimate: Estimate
    temporary: int  # bytes


class OnDevice(NamedTuple):
    """Programs of a case, of the hand-written rule and the usual code."""

    bf16: Mapping[str, Compiled]
    f32: Mapping[str, Compiled]
    block: Mapping[str, Compiled]  # between matrix products, in bfloat16, if the rule fits there


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
    args = shapes(case, case.large, "bfloat16")
    both = {"hand": f, USUAL: usual}
    numbers = differentiated(case, args)
    block_of = {}
    if _fits(f, args) and case.argnums is None:
        ws = (jax.ShapeDtypeStruct((args[0].shape[-1],) * 2, args[0].dtype),) * 3
        inside = {k: block(g) for k, g in both.items()}
        block_of = compiled(inside, [ws, *args], (0, *(i + 1 for i in numbers)), device)
    more = both | {CHECKPOINT: jax.checkpoint(usual)}
    return OnDevice(
        compiled(more, args, numbers, device),
        compiled(both, shapes(case, case.large, "float32"), numbers, device),
        block_of,
    )


def differentiated(case: Any, args: Sequence[Any]) -> tuple[int, ...]:
    """The arguments that are differentiated."""
    numbers = range(len(args)) if case.argnums is None else np.atleast_1d(case.argnums)
    return tuple(int(i) for i in numbers if jnp.issubdtype(args[i].dtype, jnp.inexact))


def compiled(
    functions: Mapping[str, Callable[..., Any]],
    args: Sequence[Any],
    argnums: Sequence[int],
    device: str,
) -> dict[str, Compiled]:
    """Compiles value and cotangents of functions of the same arguments for a device."""
    found = {}
    for k, f in functions.items():
        out = jax.eval_shape(f, *args)
        program = jax.jit(pull(f, argnums)).lower(*placed((out, *args), device)).compile()
        memory: Any = program.memory_analysis()
        found[k] = Compiled(estimate(program, DEVICES[device]), memory.temp_size_in_bytes)
    return found


def pull(f: Callable[..., Any], argnums: Sequence[int]) -> Callable[..., Any]:
    """The function (dy, *args) ↦ value of f and cotangents of the arguments `argnums`."""

    def pulled(dy: Any, *args: Any) -> Any:
        def call(*own: Any) -> Any:
            new = list(args)
            for i, value in zip(argnums, own, strict=True):
                new[i] = value
            return f(*new)

        y, vjp = jax.vjp(call, *(args[i] for i in argnums))
        return y, vjp(dy)

    return pulled


HEADER = [
    "| rule | sizes | estimated time / usual, bf16 | f32 | in a block | bytes moved / usual "
    "| launches: hand, usual | temporary MB: hand, usual, checkpoint |",
    "|---|---|---|---|---|---|---|---|",
]


def row(name: str, case: Any, found: OnDevice) -> str:
    """A row of the table."""
    rule, _, variant = name.partition(", ")
    own = found.bf16
    cells = [
        f"`{rule}`{', ' * bool(variant)}{variant}",
        ", ".join(f"{k} {n}" for k, n in case.large.items()),
        *(ratio(part, lambda e: e.milliseconds) for part in found),
        ratio(own, lambda e: e.moved_bytes),
        ", ".join(f"{own[k].estimate.launches:,}" for k in ("hand", USUAL)),
        ", ".join(f"{own[k].temporary / 1e6:,.1f}" for k in ("hand", USUAL, CHECKPOINT)),
    ]
    return f"| {' | '.join(cells)} |"


def ratio(found: Mapping[str, Compiled], of: Callable[[Estimate], float]) -> str:
    """The hand rule's number divided by that of the usual code."""
    if not found:
        return ""
    hand, usual = found["hand"].estimate, found[USUAL].estimate
    mark = "" if hand.exact and usual.exact else "~"
    return f"{mark}{of(hand) / of(usual):.2f}" if of(usual) else "–"


class Timed(NamedTuple):
    """Milliseconds of a program on the device that is present: medians with quartiles."""

    hand: tuple[float, float, float]
    usual: tuple[float, float, float]
    ratio: tuple[float, float, float]  # hand / usual, of the same round


def time_all(cases: Mapping[str, Any], dtype: str, rounds: int, seconds: float) -> Iterator[Any]:
    """Times value and cotangents of each case, alone and in a block.

    Yields:
      The name, whether it is in a block, and a `Timed`, or the error if it does not compile.
    """
    jobs = [(name, inside) for name in cases for inside in (False, True)]
    with ThreadPoolExecutor() as pool:  # XLA compiles on all cores; nothing is timed meanwhile
        ready = list(pool.map(lambda job: _here(job[0], cases[job[0]], job[1], dtype), jobs))
    for (name, inside), found in zip(jobs, ready, strict=True):
        if isinstance(found, Exception):
            yield name, inside, found
        elif found is not None:
            programs, make = found
            args = make()
            loops = {k: loop_of(program, *args) for k, program in programs.items()}
            times = in_turns(loops, rounds, seconds=seconds)
            hand, usual = times["hand"], times[USUAL]
            of = lambda t: quartiles(t / 1e3)
            yield name, inside, Timed(of(hand), of(usual), quartiles(hand / usual))


def _here(name: str, case: Any, inside: bool, dtype: str) -> Any:
    """Programs for the device of JAX, and a function that makes their arguments."""
    try:
        f, usual = rule_of(name, case), case.usual
        args = shapes(case, case.large, DTYPES[dtype])
        numbers = differentiated(case, args)
        if inside:
            if not _fits(f, args) or case.argnums is not None:
                return None
            f, usual = block(f), block(usual)
            ws = (jax.ShapeDtypeStruct((args[0].shape[-1],) * 2, args[0].dtype),) * 3
            args, numbers = [ws, *args], (0, *(i + 1 for i in numbers))
        out = jax.eval_shape(f, *args)
        programs = {
            k: jax.jit(pull(g, numbers)).lower(out, *args).compile()
            for k, g in (("hand", f), (USUAL, usual))
        }
        high = case.large.get("v", case.large.get("c", 2))
        return programs, lambda: jax.tree.map(lambda t: _drawn(t, high), (out, *args))
    except Exception as e:  # a rule that does not compile is a result
        return e


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
