"""What each rule costs, beside autodiff, autodiff with `jax.checkpoint`, and other libraries.

    python scripts/bench.py                                # all rules; tables and plots
    python scripts/bench.py --targets                      # the cases that have a target
    python scripts/bench.py --cases lstm '*_norm' --growth # how time and bytes grow with the sizes
    python scripts/bench.py --write                        # also the table of README.md

A candidate is one compiled program of the value and the cotangents of the arguments, from random
cotangents of all outputs; arguments and cotangents are arguments of the program too. "Autodiff" is
of the forward that people usually write (`bench_cases.py`), not of the rule's own. Flax and tokamax
take part where they are installed (tokamax by its path for XLA); beside `linear_cross_entropy`,
"its products" are h w and its gradient, the matrix products without a loss.

How to read it. All candidates of a case take turns, so that noise of the machine meets all of them,
and a turn begins with a call that is not timed, which meets what the one before has left. A ratio
is the median, with quartiles, of the time by hand divided by the other's of the same round: below 1
the hand rule is faster, and it is known no better than its quartiles are apart.

- Temporary bytes: what the program allocates besides arguments and results (`memory_analysis`). XLA
  also puts scratch into results that are not written yet, which no figure shows.
- Kept bytes: what the gradient keeps between its passes, without arguments, before XLA's part.
- Chain: in one program of value and gradient, the bytes by which temporaries grow with each layer
  x ← f(x W), for each element of x. The floor is 4, what the next product needs.

It runs on the default device of JAX; on a GPU the numbers are that GPU's.
"""

import dataclasses
import fnmatch
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bench_report as report
import jax
import numpy as np
import readme
from bench_case import EVERY, Case, draw, present
from bench_cases import CASES
from bench_step import machine, quartiles, turns
from command_line import check_writable, command, make_folder, parse, write
from jax.extend.core import Var

BLOCK = 2e4  # µs: calls are timed in blocks at least this long, as in a loop of training steps
FEWEST = 11  # rounds, however long they take
CHAIN = {"n": 8192, "c": 256}  # many more examples than features, or the weights count too
PAGE = 4096  # bytes: differences below this are no difference


@dataclasses.dataclass(frozen=True)
class Config:
    """Times every rule beside autodiff of the usual forward, and counts bytes."""

    cases: tuple[str, ...] = ("*",)
    """Names of cases, or patterns such as '*_norm'."""
    targets: bool = False
    """Whether to take only those cases that have a target of their own."""
    growth: bool = False
    """Whether to measure also how time and bytes grow with the sizes."""
    rounds: int = 100
    """How often each candidate gets its turn, at most."""
    seconds: float = 2.0
    """Time for each candidate of a case: slow ones get fewer rounds, but 11."""
    scale: float = 1.0
    """Factor of all sizes, for a quick look."""
    out: Path = Path("runs/bench")
    """Folder for what is saved."""
    write: bool = False
    """Whether to put the table into README.md."""


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
      argv: The options, by default those of the command line.

    Returns:
      The exit status: 0, or 2 after one line on stderr about what is wrong with the options.
    """
    config = parse(Config, argv)
    cases = check(config)
    make_folder(config.out)

    versions = machine()
    where = f"{versions['CPU']}, {versions['device']}, jax {versions['jax']}"
    print(where)
    rows, growths = [], []
    record = {
        "machine": versions,
        "config": dataclasses.asdict(config) | {"out": str(config.out)},
        "cases": rows,
        "growth": growths,
    }
    for name, case in cases.items():
        rows.append({"case": name, **measure(case, scaled(case.sizes, config), config)})
        print(report.line(rows[-1]), flush=True)
        for size in case.growth if config.growth else ():
            growths.append({"case": name, "size": size, **growth(case, size, config)})
            print(report.growth_line(growths[-1]), flush=True)
        save(config.out / "bench.json", json.dumps(record, indent=1, ensure_ascii=False))

    text = f"In float32 on {where}.\n\n{report.table(rows)}"
    save(config.out / "tables.md", f"{text}\n\n{report.details(rows)}\n")
    draw_to(config.out / "ratios.png", report.plot(rows))
    for study in growths:
        file = f"growth, {study['case']}, {study['size']}.png".replace(", ", "-")
        draw_to(config.out / file, report.plot_growth(study))
    if config.write:
        readme.write("rules", text)
    print(f"results in {config.out.resolve()}")
    return 0


def save(path: Path, text: str) -> None:
    """A file of text."""
    write(path, lambda file: file.write(text.encode()))


def draw_to(path: Path, figure: Any) -> None:
    """A file with a picture."""
    write(path, lambda file: figure.savefig(file, dpi=150))


def check(config: Config) -> dict[str, Case]:
    """The cases that were asked for; raises a ValueError that names the option which is wrong."""
    for pattern in config.cases:
        if not fnmatch.filter(CASES, pattern):
            raise ValueError(f"--cases must be of {', '.join(map(repr, CASES))}, got {pattern!r}")
    for option in ("rounds", "seconds", "scale"):
        if not 0 < getattr(config, option) < math.inf:
            number = getattr(config, option)
            raise ValueError(f"--{option} must be a finite number above 0, got {number}")
    whole = config.cases == ("*",) and not config.targets and config.scale == 1
    if config.write and not whole:
        raise ValueError("--write must have all cases at their sizes")
    chosen = {
        name: case
        for name, case in CASES.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.cases)
        and (case.target or not config.targets)
    }
    if not chosen:
        raise ValueError("--cases must leave a case, with --targets one that has a target")
    if config.write:
        check_writable("--write", readme.page("rules"))
    return chosen


def scaled(sizes: Mapping[str, int], config: Config) -> dict[str, int]:
    """The sizes of this run: scaled, but not below 4."""
    return {k: max(min(n, 4), round(n * config.scale)) for k, n in sizes.items()}


class Candidate(NamedTuple):
    """A function split at the arguments to differentiate."""

    f: Callable[..., Any]
    floats: tuple[Any, ...]
    others: tuple[Any, ...]
    wrt: tuple[int, ...]

    def vjp(self, floats: Any, others: Any) -> Any:
        """`jax.vjp` in the floats."""
        return jax.vjp(lambda *floats: self.value(floats, others), *floats)

    def both(self, floats: Any, others: Any, dy: Any) -> Any:
        """The value and the cotangents of the floats."""
        value, back = self.vjp(floats, others)
        return value, back(dy)

    def value(self, floats: Any, others: Any) -> Any:
        """The function."""
        floats, others = iter(floats), iter(others)
        total = len(self.floats) + len(self.others)
        return self.f(*(next(floats if i in self.wrt else others) for i in range(total)))


def candidate(
    f: Callable[..., Any], args: tuple[Any, ...], wrt: tuple[int, ...] | None
) -> Candidate:
    """Splits the arguments; by default those of floating dtype are differentiated."""
    floating = lambda arg: all(
        jax.numpy.issubdtype(leaf.dtype, np.floating) for leaf in jax.tree.leaves(arg)
    )
    chosen = tuple(i for i, arg in enumerate(args) if floating(arg)) if wrt is None else wrt
    floats = tuple(arg for i, arg in enumerate(args) if i in chosen)
    return Candidate(f, floats, tuple(a for i, a in enumerate(args) if i not in chosen), chosen)


def measure(
    case: Case, sizes: Mapping[str, int], config: Config, *, briefly: bool = False
) -> dict[str, Any]:
    """Times and bytes of all candidates; briefly: without those of other libraries and chains."""
    args = case.make(**sizes)
    ways = {
        "hand": candidate(case.hand, args, case.wrt),
        "autodiff": candidate(case.usual, args, case.wrt),
        "checkpoint": candidate(jax.checkpoint(case.usual), args, case.wrt),
    }
    own = tuple(ways)
    for library, (peer, module) in ({} if briefly else present(case.peers)).items():
        ways[library] = candidate(peer.make(module), peer.adapt(module, *args), case.wrt)

    loops, columns = {}, {}
    for name, c in ways.items():
        run, at, seconds = compiled(c, case.backward_only)
        loops[name] = looped(run, at)
        columns[name] = {
            "temporary_bytes": temporary(run),
            "kept_bytes": kept(c),
            "compile_seconds": seconds,
        }
        if not briefly:
            columns[name]["chain_bytes"] = chain(case, c, config) if name in own else None

    times, steps = in_turns(loops, config)
    for name, t in times.items():
        columns[name] |= {
            "µs": quartiles(t),
            "hand / this": quartiles(np.divide(times["hand"], t)),
        }
    return {
        "rule": case.rule,
        "sizes": dict(sizes),
        "of": "backward pass" if case.backward_only else "value and gradient",
        "forward": case.source,
        "rounds": len(times["hand"]),
        "steps": steps,
        "candidates": columns,
        "own_target": case.target is not None,
        **judged(case, columns),
    }


def compiled(c: Candidate, backward_only: bool) -> tuple[Any, tuple[Any, ...], float]:
    """The program, its arguments, and the seconds that its compilation took."""
    outputs = jax.eval_shape(c.value, c.floats, c.others)
    leaves, tree = jax.tree.flatten(outputs)
    dy = tree.unflatten([draw(100 + i, *y.shape) for i, y in enumerate(leaves)])
    if backward_only:
        back = jax.jit(lambda *args: c.vjp(*args)[1])(c.floats, c.others)
        at, program = (back, dy), lambda back, dy: back(dy)
    else:
        at, program = (c.floats, c.others, dy), c.both
    lowered = jax.jit(program).lower(*at)
    start = time.perf_counter()
    run = lowered.compile()
    return run, at, time.perf_counter() - start


def looped(run: Any, at: tuple[Any, ...]) -> Callable[[int], None]:
    """The program so many times; on a GPU they queue, on a CPU they would overlap."""
    one_by_one = jax.default_backend() == "cpu"

    def loop(steps: int) -> None:
        out = None
        for _ in range(steps):
            out = run(*at)
            if one_by_one:
                jax.block_until_ready(out)
        jax.block_until_ready(out)

    return loop


def in_turns(loops: dict[str, Any], config: Config) -> tuple[dict[str, list[float]], int]:
    """Times in µs by candidate and round, and how many calls a block has."""
    once = turns(loops, 1, 1, warm_up=1)
    steps = max(1, round(BLOCK / min(t[0] for t in once.values())))
    budget = config.seconds * 1e6 * len(loops)
    rounds = budget / ((1 + steps) * sum(t[0] for t in once.values()))
    rounds = min(config.rounds, max(FEWEST, int(rounds)))
    return turns(loops, steps, rounds, warm_up=0), steps


def temporary(run: Any) -> int | None:
    """Bytes that the program allocates besides arguments and results, where XLA says."""
    analysis = run.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def kept(c: Candidate) -> int:
    """Bytes that the gradient keeps between its passes, without arguments."""
    leaves = lambda *args: jax.tree.leaves(c.vjp(*args)[1])
    jaxpr = jax.make_jaxpr(leaves)(c.floats, c.others).jaxpr
    saved: Any = {v for v in jaxpr.outvars if isinstance(v, Var)} - set(jaxpr.invars)
    return sum(int(v.aval.size) * v.aval.dtype.itemsize for v in saved)


def chain(case: Case, c: Candidate, config: Config) -> float | None:
    """The growth of the temporary bytes with a layer x ← f(x W), for each element of x.

    None where f is not of a matrix, or its value has another shape.
    """
    if set(case.sizes) != set(CHAIN):
        return None
    sizes = scaled(CHAIN, config)
    split = lambda: candidate(c.f, case.make(**sizes), c.wrt)[1:3]
    floats, others = jax.eval_shape(split)
    x, w = floats[0], jax.ShapeDtypeStruct((sizes["c"],) * 2, np.float32)
    first = lambda floats, others: jax.tree.leaves(c.value(floats, others))[0]
    if jax.eval_shape(first, floats, others).shape != x.shape:
        return None

    def total(floats: Any, ws: Any, others: Any) -> jax.Array:
        x, *rest = floats
        for w in ws:
            x = first((x @ w, *rest), others)
        return x.sum()

    def bytes_of(layers: int) -> int | None:
        program = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        return temporary(program.lower(floats, (w,) * layers, others).compile())

    few, many = bytes_of(4), bytes_of(8)
    return None if few is None or many is None else (many - few) / 4 / x.size


def judged(case: Case, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The target, and whether the medians reach it."""
    target, (hand, autodiff) = case.target or EVERY, (columns["hand"], columns["autodiff"])
    in_time = target.time is None or autodiff["hand / this"][1] <= target.time
    bytes_by_hand, most = hand["temporary_bytes"] or 0, autodiff["temporary_bytes"] or 0
    in_space = target.temporary is None or bytes_by_hand <= target.temporary * most + PAGE
    return {"target": target._asdict(), "reached": in_time and in_space}


def growth(case: Case, size: str, config: Config) -> dict[str, Any]:
    """Times and bytes at several values of one size, and the powers with which they grow."""
    values = sorted({scaled({size: n}, config)[size] for n in case.growth[size]})
    rest = scaled(case.sizes, config)
    rows = [measure(case, rest | {size: n}, config, briefly=True)["candidates"] for n in values]
    columns = {
        name: {
            key: [row[name][key] for row in rows] for key in ("µs", "temporary_bytes", "kept_bytes")
        }
        for name in rows[0]
    }
    powers = {
        name: {
            "time": power(values, [median for _, median, _ in column["µs"]]),
            "temporary_bytes": power(values, column["temporary_bytes"]),
        }
        for name, column in columns.items()
    }
    return {
        "values": values,
        "rest": {k: n for k, n in rest.items() if k != size},
        "candidates": columns,
        "powers": powers,
    }


def power(sizes: Sequence[int], values: Sequence[float | None]) -> float | None:
    """The power p of a growth as size^p, between the last two sizes."""
    if len(sizes) < 2 or not values[-2] or not values[-1]:
        return None
    return float(np.log(values[-1] / values[-2]) / np.log(sizes[-1] / sizes[-2]))


if __name__ == "__main__":
    sys.exit(main())
