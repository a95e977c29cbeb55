"""What each rule costs, compared with autodiff and with other libraries; and its verdict.

    python scripts/bench.py                                # all rules
    python scripts/bench.py --targets                      # the cases that have a target
    python scripts/bench.py --cases lstm '*_norm' --growth # how time and bytes grow with the sizes
    python scripts/bench.py --write                        # also the tables of the README files
    python scripts/bench.py --cases softsign --write       # some of their rows, on the same machine
    python scripts/bench.py --device tpu:v5e               # on an accelerator that is not there

`funcnet.profile_rule` measures at the arguments of `MEASURED` in tests/cases. It compares the hand
rule with these programs:

- autodiff of the rule's own forward (`funcnet.autodiff`),
- autodiff of the usual forward, which people write (jax.nn, Optax),
- the same under `jax.checkpoint`,
- Flax and tokamax, where they are installed,
- "h w alone" for `linear_cross_entropy`: h w and its gradient, the products without a loss.

How to read it. All programs of a case take turns, so that noise of the machine affects all alike. A
ratio is the median, with quartiles, of the time of the hand rule divided by the other's of the same
round: below 1 the hand rule is faster, and it is known no better than its quartiles are apart.

- Temporary bytes: what the program allocates besides arguments and results (`memory_analysis`). XLA
  also puts scratch into results that are not written yet, which no figure shows.
- Chain: in one program of value and gradient, the bytes by which temporaries grow with each layer
  x ← f(x W), for each element of x. The floor is 4, what the next product needs.
- Kept bytes: what the gradient keeps between its passes, without arguments, before XLA's part.
- Verdicts and errors (in units in the last place) are those at smaller arguments.

It runs on the default device of JAX; on a GPU the numbers are that GPU's. With `--device` it
compiles all rules for an accelerator, at the sizes `large` of `MEASURED`, in bfloat16 and float32,
alone and between matrix products: bytes and launches are counts, times are estimates. If JAX runs
on an accelerator, it also times the programs there.
"""

import dataclasses
import fnmatch
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_device
import jax
import jax.numpy as jnp
import numpy as np
import readme
from bench_step import machine
from command_line import check_writable, command, make_folder, parse, write

from funcnet import check_rule, ops, profile_rule
from funcnet.check.report import finite_json, number
from funcnet.profile import Cost, Profile
from funcnet.profile.devices import device_named

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from cases import MEASURED
from cases.measured import SMALL, Measured, Target

EVERY = Target(1.02, 1.0)  # of a case without a target
PAGE = 4096  # bytes: a smaller difference is none
USUAL, CHECKPOINT = "usual", "usual + checkpoint"


@dataclasses.dataclass(frozen=True)
class Config:
    """Times every rule and autodiff of the usual forward, and counts bytes."""

    cases: tuple[str, ...] = ("*",)
    """Names of cases, or patterns such as '*_norm'."""
    targets: bool = False
    """Whether to take only the cases that have a target."""
    growth: bool = False
    """Whether to measure also how time and bytes grow with the sizes."""
    rounds: int = 100
    """How often each program is timed, at most."""
    seconds: float = 2.0
    """Time for each program of a case: slow ones get fewer rounds, but at least 11."""
    device: str | None = None
    """Accelerator for which to compile, such as tpu:v5e or gpu:h100, in place of measuring here."""
    scale: float = 1.0
    """Factor of all sizes, for a quick look."""
    out: Path = Path("runs/bench")
    """Folder for what is saved."""
    write: bool = False
    """Whether to put the tables into the README files."""


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
    if config.device is not None:
        return on_device(config, cases)
    versions, where = machine(), place()
    print(where)
    rows, verdicts, record = [], {}, []
    for name, case in cases.items():
        sizes = scaled(case.sizes, config.scale)
        profile = measure(name, case, sizes, config)
        rows.append((name, case, sizes, profile))
        print(line(name, case, profile), flush=True)
        studies = growth(name, case, config) if config.growth else []
        for study in studies:
            print(f"  {study['sizes']}: {study['µs']}", flush=True)
        rule = name.partition(",")[0]
        if rule not in verdicts and (config.write or not config.targets):
            verdicts[rule] = judge(name, case, config)
        record.append({"case": name, "sizes": sizes, **profile.to_dict(), "growth": studies})
        text = {"machine": versions, "cases": record}
        save(config.out / "bench.json", json.dumps(text, indent=1, ensure_ascii=False))

    head = header(where)
    tables = {"rules": head + costs(rows), "compared": head + compared(rows, verdicts)}
    save(config.out / "tables.md", "\n\n".join(tables.values()) + "\n")
    if config.write:
        for part, text in tables.items():
            readme.write(part, text if config.cases == ("*",) else merged(readme.text(part), text))
    print(f"results in {config.out.resolve()}")
    return 0


def on_device(config: Config, cases: Mapping[str, Measured]) -> int:
    """Compiles the cases for an accelerator, and times them if one is there."""
    device = str(config.device)
    lines: list[str] = []
    record: list[dict[str, Any]] = []
    for name, case in cases.items():
        try:
            found = bench_device.measure(name, case, device)
        except jax.errors.JaxRuntimeError as e:  # it does not compile
            print(f"{name}: {str(e).splitlines()[0]}", flush=True)
            continue
        lines.append(bench_device.row(name, case, found))
        print(lines[-1], flush=True)
        as_dict = lambda c: c.estimate._asdict() | {"temporary": c.temporary}
        parts = {k: {n: as_dict(c) for n, c in v.items()} for k, v in found._asdict().items()}
        record.append({"case": name} | parts)
        text = finite_json({"device": device, "jax": jax.__version__, "cases": record})
        save(config.out / f"{device.replace(':', '-')}.json", json.dumps(text, indent=1))
    head = f"Compiled for {device} by jax {jax.__version__}; the times are estimates.\n\n"
    table = head + "\n".join([*bench_device.HEADER, *lines])
    if config.write:
        readme.write(
            device, table if config.cases == ("*",) else merged(readme.text(device), table)
        )
    if jax.default_backend() != "cpu":
        timed = bench_device.time_all(cases, "bf16", config.rounds, config.seconds)
        print(f"timed on {jax.devices()[0].device_kind}, bf16: ms by hand, ms usual, ratio")
        for name, inside, t in timed:
            where = "in a block" if inside else "alone"
            text = repr(t) if isinstance(t, Exception) else bench_device.shown(t)
            print(f"{name}, {where}: {text}", flush=True)
    print(f"results in {config.out.resolve()}")
    return 0


def place() -> str:
    """The machine, such as "AMD EPYC (2 cores), cpu, jax 0.10.2"."""
    versions = machine()
    return f"{versions['CPU']}, {versions['device']}, jax {versions['jax']}"


def header(where: str) -> str:
    """What stands above a table."""
    return f"In float32 on {where}.\n\n"


def merged(old: str, new: str) -> str:
    """The old table, if there is one, with the rows of the new one in the order of `MEASURED`."""
    if not old:
        return new
    name = lambda row: row.split("|")[1].strip().replace("`", "")
    is_row = lambda line: line.startswith("| `")
    rows = {name(line): line for text in (old, new) for line in text.splitlines() if is_row(line)}
    order = [k for name in MEASURED for k in (name, name.partition(",")[0]) if k in rows]
    top = [line for line in old.splitlines() if not is_row(line)]
    return "\n".join([*top, *(rows[k] for k in dict.fromkeys(order))])


def save(path: Path, text: str) -> None:
    """Writes a file of text."""
    write(path, lambda file: file.write(text.encode()))


def check(config: Config) -> dict[str, Measured]:
    """The cases that are asked for; raises a ValueError that names the option that is wrong."""
    for pattern in config.cases:
        if not fnmatch.filter(MEASURED, pattern):
            raise ValueError(
                f"--cases must be of {', '.join(map(repr, MEASURED))}, got {pattern!r}"
            )
    for option in ("rounds", "seconds", "scale"):
        if not 0 < getattr(config, option) < math.inf:
            value = getattr(config, option)
            raise ValueError(f"--{option} must be a finite number above 0, got {value}")
    if config.write and (config.targets or config.scale != 1):
        raise ValueError("--write must have cases at their sizes, without --targets and --scale")
    if config.device is not None:
        device_named("--device", config.device)
        if config.targets or config.growth or config.scale != 1:
            raise ValueError("--device takes neither --targets nor --growth nor --scale")
    chosen = {
        name: case
        for name, case in MEASURED.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.cases)
        and (case.target or not config.targets)
    }
    if not chosen:
        raise ValueError("--cases must leave a case, with --targets one that has a target")
    if config.write and config.device is not None:
        check_writable("--write", readme.page(config.device))
    elif config.write:
        for part in ("rules", "compared"):
            check_writable("--write", readme.page(part))
            if config.cases != ("*",) and not readme.text(part).startswith(header(place())):
                raise ValueError(
                    f"--write must have all cases on another machine than the table's, {place()}"
                )
    return chosen


def scaled(sizes: Mapping[str, int], factor: float) -> dict[str, int]:
    """The sizes times a factor, but not below those of a proof."""
    return {k: max(min(n, SMALL[k]), round(n * factor)) for k, n in sizes.items()}


def arguments(case: Measured, sizes: Mapping[str, int]) -> list[Any]:
    """The arguments of a case, in float32."""
    is_float = lambda x: isinstance(x, np.ndarray | np.floating) and x.dtype == np.float64
    return [jnp.asarray(x, jnp.float32 if is_float(x) else None) for x in case.make(**sizes)]


def rule_of(name: str, case: Measured) -> Callable[..., Any]:
    """The function that is measured."""
    return case.hand or getattr(ops, name.partition(",")[0])


def measure(
    name: str, case: Measured, sizes: Mapping[str, int], config: Config, *, peers: bool = True
) -> Profile:
    """The profile of a case."""
    against = {USUAL: case.usual, CHECKPOINT: jax.checkpoint(case.usual)}
    for library, load in case.peers.items() if peers else ():
        try:
            against[library] = load()
        except ImportError:
            continue
    return profile_rule(
        rule_of(name, case),
        *arguments(case, sizes),
        against=against,
        argnums=case.argnums,
        rounds=config.rounds,
        seconds=config.seconds,
        accuracy=False,
        **case.static,
    )


def judge(name: str, case: Measured, config: Config) -> tuple[str, Profile]:
    """The checker's verdict on small arguments, and the errors on some of a quarter of the size."""
    f, small = rule_of(name, case), arguments(case, {k: SMALL[k] for k in case.sizes})
    report = check_rule(f, *small, **case.static)
    medium = arguments(case, scaled(case.sizes, config.scale / 4))
    profile = profile_rule(f, *medium, argnums=case.argnums, rounds=1, **case.static)
    return report.verdict, profile


def growth(name: str, case: Measured, config: Config) -> list[dict[str, Any]]:
    """Times and temporary bytes at several values of each size."""
    found = []
    for size, values in case.growth.items():
        for value in values:
            sizes = scaled({**case.sizes, size: value}, config.scale)
            columns = measure(name, case, sizes, config, peers=False).columns
            found.append(
                {
                    "sizes": sizes,
                    "µs": {k: round(c.microseconds[1]) for k, c in columns.items()},
                    "temporary_bytes": {k: c.temporary_bytes for k, c in columns.items()},
                }
            )
    return finite_json(found)


Row = tuple[str, Measured, Mapping[str, int], Profile]


def costs(rows: Sequence[Row]) -> str:
    """Ratios of time, and bytes, of all cases."""
    lines = [
        "| rule | sizes | usual forward | time / autodiff of the usual forward | time / its "
        "checkpoint | time / autodiff of the rule's own forward | time / peer "
        "| temporary MB: hand, usual, checkpoint | chain, bytes: hand, usual, checkpoint |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case, sizes, p in rows:
        rule, _, variant = name.partition(", ")
        x = p.arguments[0].rpartition("[")[2].rstrip("]").split(",")
        elements = math.prod(int(n) for n in x if n)
        of_three = [p.hand, p.against[USUAL], p.against[CHECKPOINT]]
        chain = [c.growth_bytes / elements for c in of_three]
        cells = [
            f"`{rule}`{', ' * bool(variant)}{variant}",
            shown(sizes),
            case.source,
            spread(p.against[USUAL]),
            spread(p.against[CHECKPOINT]),
            spread(p.autodiff),
            ", ".join(f"{spread(c)} {k}" for k, c in peers_of(p).items()),
            ", ".join(megabytes(c.temporary_bytes) for c in of_three),
            "" if math.isnan(chain[0]) else ", ".join(f"{n:.1f}" for n in chain),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(rows: Sequence[Row], verdicts: Mapping[str, tuple[str, Profile]]) -> str:
    """Verdicts, errors and kept bytes of all rules."""
    lines = [
        "| rule | checker | ulp by hand | ulp autodiff | kB kept by hand | kB autodiff "
        "| kB usual |",
        "|---|---|---|---|---|---|---|",
    ]
    first = {name.partition(",")[0]: p for name, _, _, p in reversed(rows)}
    for rule, (verdict, small) in verdicts.items():
        p = first[rule]
        kept = [p.hand, p.autodiff, p.against[USUAL]]
        cells = [
            f"`{rule}`",
            verdict,
            number(small.hand.rms_ulp),
            number(small.autodiff.rms_ulp),
            *(f"{c.kept_bytes / 1000:,.1f}" for c in kept),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def line(name: str, case: Measured, p: Profile) -> str:
    """What is printed when a case has been measured."""
    ratios = [f"{k} {spread(c)}" for k, c in p.columns.items() if k != "hand"]
    temporary = [megabytes(c.temporary_bytes) for c in (p.hand, *p.against.values())]
    text = f"{name}: time / {', '.join(ratios)}; MB {', '.join(temporary)}"
    if case.target is None:
        return text
    bounds = ", ".join("–" if b is None else f"≤ {b:g}" for b in case.target)
    return f"{text}; {'reached' if reached(case, p.hand, p.against[USUAL]) else 'missed'} {bounds}"


def reached(case: Measured, hand: Cost, usual: Cost) -> bool:
    """Whether the median time and the temporary bytes reach the target."""
    target = case.target or EVERY
    in_time = target.time is None or usual.hand_ratio[1] <= target.time
    most = None if target.temporary is None else target.temporary * usual.temporary_bytes + PAGE
    return in_time and (most is None or hand.temporary_bytes <= most)


def peers_of(p: Profile) -> dict[str, Cost]:
    """The costs of other libraries."""
    return {k: c for k, c in p.against.items() if k not in (USUAL, CHECKPOINT)}


def shown(sizes: Mapping[str, int]) -> str:
    """Such as "n 512, c 1024"."""
    return ", ".join(f"{k} {n}" for k, n in sizes.items())


def spread(cost: Cost) -> str:
    """The hand rule's time divided by this one: median and quartiles."""
    low, median, high = cost.hand_ratio
    return f"{median:.2f} ({low:.2f}, {high:.2f})"


def megabytes(n: float) -> str:
    """Such as "16.8"; small numbers in one digit."""
    return f"{n / 1e6:.1f}" if n == 0 or n >= 5e4 else f"{n / 1e6:.0e}"


if __name__ == "__main__":
    sys.exit(main())
