"""What each rule costs on an accelerator that need not be there: `bench.py --device tpu:v5e`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import ops, profile_rule
from funcnet.profile import Cost, Estimate, Profile

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
    with mock.patch("numpy.random.default_rng", lambda *_: _Zeros()):
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
    x = args[0]
    out = jax.eval_shape(f, *args)
    fits = getattr(out, "shape", None) == x.shape and out.dtype == x.dtype == jnp.bfloat16
    if not fits or case.argnums is not None:
        return OnDevice(alone, None)
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
