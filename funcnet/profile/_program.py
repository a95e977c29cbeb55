"""What a compiled program does on an accelerator, read from the text of its instructions."""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Launch(NamedTuple):
    """A group of operations that the device runs as one, and how often."""

    cycles: float  # of a TPU by the compiler's cost model; 0 where it says nothing
    moved_bytes: int  # read from and written to the device's memory
    products: Mapping[str, float]  # FLOPs of matrix products and convolutions by operands' dtype
    times: int
    exact: bool  # if not, it is in a `while` loop of unknown length, which counts as one pass


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    text: str  # between the parentheses: operands, or the value of a constant


class Computation(NamedTuple):
    """A function of the program: instructions by name, the last of which is the result."""

    instructions: Mapping[str, Instruction]
    root: Instruction


def launches(text: str) -> Iterator[Launch]:
    """The launches of a program, given as the text of `compiled.as_text()`.

    A loop's launches count as often as the loop runs, those of a condition as in its costliest
    branch. Of a slice only the slice counts as read, of an update in place only what is written.
    """
    return _launches(*parse(text))


# Instructions that run nothing: they name, group or start what another one finishes.
NOTHING = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"}
    | {"after-all", "partition-id", "replica-id", "add-dependency", "domain"}
)
CALLS = {"call": "to_apply", "async-start": "calls"}
VIEWS = frozenset({"bitcast", "copy", "reshape", "convert", "transpose"})


def _launches(program: Mapping[str, Computation], inside: Computation) -> Iterator[Launch]:
    """Those of one computation."""
    for i in inside.instructions.values():
        if i.opcode in NOTHING or i.opcode.endswith("-done"):
            continue
        if i.opcode == "while":
            count = passes(program, i, inside)
            for launch in _launches(program, program[attribute(i, "body")]):
                yield launch._replace(
                    times=launch.times * (1 if count is None else count),
                    exact=launch.exact and count is not None,
                )
        elif i.opcode == "conditional":
            found = [list(_launches(program, program[name])) for name in branches(i)]
            yield from max(found, key=_weight, default=[])
        elif i.opcode in CALLS:
            yield from _launches(program, program[attribute(i, CALLS[i.opcode])])
        elif not _is_buffer(i):
            yield _launch(program, inside, i)


def _is_buffer(i: Instruction) -> bool:
    """Whether a custom call only names memory, as XLA:TPU writes it."""
    return 'custom_call_target="AllocateBuffer"' in i.attributes or "ConcatBitcast" in i.attributes


def _weight(found: list[Launch]) -> tuple[float, float]:
    total = lambda f: sum(f(launch) * launch.times for launch in found)
    return total(lambda launch: launch.cycles), total(lambda launch: launch.moved_bytes)


def _launch(program: Mapping[str, Computation], inside: Computation, i: Instruction) -> Launch:
    cycles = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
    body = program[attribute(i, "calls")] if i.opcode == "fusion" else None
    moved = _moved(inside, i) if body is None else _moved_by_fusion(inside, i, body)
    products: dict[str, float] = {}
    for where, one in _all(program, inside, i):
        if (found := _product(where, one)) is not None:
            dtype, count = found
            products[dtype] = products.get(dtype, 0.0) + count
    return Launch(float(cycles[1]) if cycles else 0.0, moved, products, 1, True)


def _all(
    program: Mapping[str, Computation], inside: Computation, i: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """An instruction, or all of the fusions that it is made of."""
    if i.opcode != "fusion":
        yield inside, i
        return
    body = program[attribute(i, "calls")]
    for inner in body.instructions.values():
        yield from _all(program, body, inner)


# Bytes


def _moved(inside: Computation, i: Instruction) -> int:
    """Bytes that one instruction reads and writes."""
    types = [inside.instructions[name].type for name in i.operands]
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * size(i.type)
    if i.opcode == "dynamic-update-slice":
        return 2 * size(types[1])
    if i.opcode.endswith("-start"):  # a copy, of which `type` has both ends
        return sum(size(t) for t in _parts(i.type)[:2])
    return sum(map(size, types)) + size(i.type)


def _moved_by_fusion(inside: Computation, i: Instruction, body: Computation) -> int:
    """Bytes that a fusion reads of its operands and writes of its results."""
    users: dict[str, list[Instruction]] = {}
    for one in body.instructions.values():
        for name in one.operands:
            users.setdefault(name, []).append(one)
    read = 0
    for one in body.instructions.values():
        if one.opcode == "parameter":
            outside = inside.instructions[i.operands[int(one.text)]]
            read += min(_read(one, users, body), size(outside.type))
    roots = [body.root]
    if body.root.opcode == "tuple":
        roots = [body.instructions[name] for name in body.root.operands]
    written = 0
    for part, root in zip(_parts(i.type), roots, strict=False):
        update = _behind_views(root, body)
        in_place = update.opcode == "dynamic-update-slice"
        of_update = size(body.instructions[update.operands[1]].type) if in_place else math.inf
        written += int(min(size(part), of_update))
    return read + written


def _read(one: Instruction, users: Mapping[str, list[Instruction]], body: Computation) -> int:
    """Bytes that the body of a fusion reads of one of its values."""
    total = 0
    for user in users.get(one.name, []):
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == one.name:
            total += size(user.type)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == one.name:
            total += 0
        elif user.opcode in VIEWS:
            total += _read(user, users, body)
        else:
            return size(one.type)
    return min(total, size(one.type))


def _behind_views(one: Instruction, body: Computation) -> Instruction:
    while one.opcode in VIEWS:
        one = body.instructions[one.operands[0]]
    return one


def _parts(type_: str) -> list[str]:
    """The types in a tuple, or the type itself."""
    if not type_.startswith("("):
        return [type_]
    found, depth, start = [], 0, 1
    for place, char in enumerate(type_):
        depth += char in "([{"
        depth -= char in ")]}"
        if (char == "," and depth == 1) or depth == 0:
            found.append(type_[start:place].strip())
            start = place + 1
    return found


ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


def _shape(type_: str) -> tuple[str, tuple[int, ...]]:
    """The dtype, as XLA writes it, and the shape of the first array in a type."""
    found = ARRAY.search(type_)
    if found is None:
        return "token", (0,)
    return found[1], tuple(int(n) for n in found[2].split(",") if n)


def size(type_: str, *, on_chip: bool = False) -> int:
    """Bytes of the arrays of a type in the device's large memory; with on_chip, those of all."""
    total = 0
    for dtype, shape, layout in ARRAY.findall(type_):
        if on_chip or "S(" not in layout:  # S(1) is a TPU's memory on the chip
            total += math.prod(int(n) for n in shape.split(",") if n) * _width(dtype)
    return total


@functools.cache
def _width(dtype: str) -> int:
    """Bytes of an element: "bf16" has 2, "pred" 1, "c64" 8."""
    bits = re.fullmatch(r"[a-z]+(\d+)\w*", dtype)
    return max(1, int(bits[1]) // 8) if bits else 1 if dtype == "pred" else 0


# Products


def _product(inside: Computation, i: Instruction) -> tuple[str, float] | None:
    """The operands' dtype and the FLOPs of a matrix product or convolution."""
    library = re.search(r'custom_call_target="__(cublas|cudnn)\$(\w+)', i.attributes)
    if i.opcode not in ("dot", "convolution") and library is None:
        return None
    types = [_shape(inside.instructions[name].type) for name in i.operands[:2]]
    if len(types) < 2:
        return None
    (dtype, left), (_, right) = types
    _, out = _shape(i.type)
    if i.opcode == "convolution" or (library and library[2].startswith("conv")):
        return _precise(i, dtype), _convolution(i, library, left, right, out)
    if library and library[1] == "cudnn":
        return dtype, _attention(left, right)
    axes = re.search(r'lhs_contracting_dim\w*"?[=:][\[{]([\d,"]*)', i.attributes)
    contracted = [int(n) for n in re.findall(r"\d+", axes[1])] if axes else []
    return _precise(i, dtype), 2.0 * math.prod(out) * math.prod(left[k] for k in contracted)


def _precise(i: Instruction, dtype: str) -> str:
    """Returns "f32 highest" for a product of float32 that may not be rounded to fewer digits."""
    highest = "operand_precision={highest" in i.attributes or '"HIGHEST"' in i.attributes
    return f"{dtype} highest" if dtype == "f32" and highest else dtype


def _convolution(
    i: Instruction,
    library: re.Match[str] | None,
    left: tuple[int, ...],
    right: tuple[int, ...],
    out: tuple[int, ...],
) -> float:
    """2 for each product of x and the kernel; cuDNN's backward forms do the work of the forward.

    XLA:TPU writes a batched matrix product as a convolution over the batch axes, in which x is
    dilated so much that one tap of the window meets a number.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->", i.attributes)
    if found is None:
        return 0.0
    kernel, result = {
        "convBackwardInput": (right, left),  # left = dy, out = dx
        "convBackwardFilter": (out, right),  # right = dy, out = dw
    }.get(library[2] if library else "", (right, out))
    window = {k: v.split("x") for k, v in re.findall(r"\b(size|lhs_dilate)=([\dx]+)", i.attributes)}
    sizes, dilations = (window.get(k, []) for k in ("size", "lhs_dilate"))
    batch = math.prod(int(n) for n, d in zip(sizes, dilations, strict=False) if n == d)
    return 2.0 * math.prod(result) * math.prod(kernel) / kernel[found[2].index("o")] / batch


def _attention(q: tuple[int, ...], k: tuple[int, ...]) -> float:
    """Both products of softmax(q kᵀ) v, of shapes (B, T, H, D)."""
    return 4.0 * math.prod(q) * k[1] if len(q) == len(k) == 4 else 0.0


# Loops


def passes(
    program: Mapping[str, Computation], loop: Instruction, inside: Computation
) -> int | None:
    """How often a loop runs, if the program says so: i < n from a constant to a constant."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition, body = (program[attribute(loop, k)] for k in ("condition", "body"))
    test, first = condition.root, inside.instructions[loop.operands[0]].operands
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    index, bound = (condition.instructions[name] for name in test.operands)
    place = re.search(r"index=(\d+)", index.attributes)
    if index.opcode != "get-tuple-element" or place is None:
        return None
    start = _constant(inside, inside.instructions[first[int(place[1])]])
    if bound.opcode == "get-tuple-element":
        at = re.search(r"index=(\d+)", bound.attributes)
        stop = _constant(inside, inside.instructions[first[int(at[1])]]) if at else None
    else:
        stop = _constant(condition, bound)
    step = _step(body, int(place[1]))
    if start is None or stop is None or step is None:
        return None
    return max(0, -(-(stop - start) // step))


def _constant(inside: Computation, i: Instruction) -> int | None:
    while i.opcode in ("copy", "bitcast", "copy-done", "copy-start") and i.operands:
        i = inside.instructions[i.operands[0]]
    is_number = i.opcode == "constant" and re.fullmatch(r"-?\d+", i.text)
    return int(i.text) if is_number else None


def _step(body: Computation, place: int) -> int | None:
    """What a pass adds to the element `place` of the loop's tuple; 1 if that is hard to see."""
    after = body.instructions[body.root.operands[place]]
    if after.opcode != "add":
        return 1
    numbers = [_constant(body, body.instructions[name]) for name in after.operands]
    return next((n for n in numbers if n is not None), 1)


# Text


def parse(text: str) -> tuple[dict[str, Computation], Computation]:
    """The computations by name, and the one with which the program begins."""
    program = {}
    entry = None
    lines = iter(text.splitlines())
    for line in lines:
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header is None:
            continue
        body = {}
        root = None
        for inner in itertools.takewhile(lambda s: s != "}", lines):
            i = _instruction(inner)
            if i is not None:
                body[i.name] = i
                root = i if root is None or inner.lstrip().startswith("ROOT ") else root
        assert root is not None
        program[header[1]] = Computation(body, root)
        entry = program[header[1]] if line.startswith("ENTRY") else entry
    assert entry is not None
    return program, entry


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if found is None:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    names = tuple(re.findall(r"%([\w.\-]+)", inside))
    type_ = re.sub(r"/\*.*?\*/", "", type_)
    return Instruction(found[1], type_, rest[:opening], names, rest[closing + 1 :], inside)


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += text[place] == "("
        depth -= text[place] == ")"
        if depth == 0:
            return place
    raise ValueError(text)


def attribute(i: Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", i.attributes)
    assert found is not None
    return found[1]


def branches(i: Instruction) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
    if several:
        return re.findall(r"%?([\w.\-]+)", several[1])
    return [attribute(i, "true_computation"), attribute(i, "false_computation")]
