"""What a compiled program sends between devices, read from the text of its instructions."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from funcnet.profile._program import (
    CALLS,
    Computation,
    Instruction,
    attribute,
    branches,
    parse,
    passes,
    size,
)

KINDS = frozenset([
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "ragged-all-to-all",
    "reduce-scatter",
])  # fmt: skip


class Collective(NamedTuple):
    """An operation in which several devices take part.

    kind: As XLA names it: "all-gather", "all-reduce", "reduce-scatter", …
    payload: Bytes on each device of its operands or of its results, whichever are larger.
    times: How often the program runs it.
    exact: Whether that is known; a `while` loop of unknown length counts as one pass.
    """

    kind: str
    payload: int
    times: int
    exact: bool


def collectives(text: str) -> list[Collective]:
    """The collectives of a program, given as the text of `compiled.as_text()`.

    Of a condition, the branch that sends most counts.

    >>> import jax
    >>> text = jax.jit(lambda x: 2 * x).lower(1.0).compile().as_text()
    >>> collectives(text)
    []
    """
    found: dict[object, Collective] = {}
    for key, one in _collectives(*parse(text)):
        found[key] = min(one, found.get(key, one))  # the fewest times, of those in fusions
    return list(found.values())


def _collectives(
    program: Mapping[str, Computation], inside: Computation, fused: bool = False
) -> Iterator[tuple[object, Collective]]:
    """Yields a key and the collective, where equal keys mean the same one.

    XLA:TPU repeats a collective, with its channel, in each fusion during which it runs, even in an
    inner loop.
    """
    for i in inside.instructions.values():
        kind = i.opcode.removesuffix("-start")
        if kind in KINDS:
            one = Collective(kind, _payload(inside, i), 1, True)
            channel = re.search(r"channel_id=(\d+)", i.attributes) if fused else None
            yield (one, channel[1]) if channel else i.name, one
        elif i.opcode == "while":
            count = passes(program, i, inside)
            for key, one in _collectives(program, program[attribute(i, "body")]):
                times = one.times * (1 if count is None else count)
                exact = one.exact and count is not None
                yield key, one._replace(times=times, exact=exact)
        elif i.opcode == "conditional":
            found = [list(_collectives(program, program[name])) for name in branches(i)]
            yield from max(found, key=_sent, default=[])
        elif i.opcode in CALLS:
            yield from _collectives(program, program[attribute(i, CALLS[i.opcode])])
        elif i.opcode == "fusion":
            yield from _collectives(program, program[attribute(i, "calls")], fused=True)


def _sent(found: list[tuple[object, Collective]]) -> int:
    return sum(one.payload * one.times for _, one in found)


def _payload(inside: Computation, i: Instruction) -> int:
    operands = sum(size(inside.instructions[name].type, on_chip=True) for name in i.operands)
    results = size(i.type, on_chip=True)
    if i.opcode.endswith("-start") and i.opcode != "all-reduce-start":
        results -= operands  # the type of a start has the operands too
    return max(operands, results)
