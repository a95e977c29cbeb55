"""Runs experiments: prints their claims and writes figures, numbers and a page of all results.

    python -m experiments                    lists the experiments
    python -m experiments NAME [--options]   runs one; --help lists its options
    python -m experiments all                runs all with the options of the book
    python -m experiments all --docs         also writes the gallery of experiments/README.md

Each experiment writes NAME.png and NAME.json into the folder --out (default: runs/experiments);
`all` also writes index.html. The gallery is written only if all claims hold. The exit status is 0
if all claims hold, 1 if a claim is false, and 2 for bad usage.
"""

import dataclasses
import importlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import matplotlib as mpl
import numpy as np
import optax
from tqdm import tqdm

from experiments import NAMES, docs, style
from experiments.page import Entry, page, title
from funcnet._arguments import check_int, check_number
from scripts.command_line import command, cpu, make_folder, parse, write

OUT = Path("runs/experiments")
HELD, FALSE = 0, 1
LEAST = {"seed": 0, "timed": 0}  # smallest value of these integer options; 1 for all others
# Options that may be negative; all other floating-point options must be at least 0.
SIGNED = {"x", "start", "momentum_start", "learning_rates", "weight_decays"}


@command("experiments")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    name, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(f"{__doc__}\nThe experiments:\n")
        for known in NAMES:
            module = importlib.import_module(f"experiments.{known}")
            print(f"  {known:27}{title(module.__doc__ or '')}")
        return HELD
    if name not in (*NAMES, "all"):
        raise ValueError(f"no experiment {name!r}; there are: {', '.join((*NAMES, 'all'))}")
    out, options = split_out(options)
    if name == "all":
        return run_all(out, options)
    make_folder(out)
    module = importlib.import_module(f"experiments.{name}")
    config = configure(name, module.Config, options)
    try:
        entry = run(name, config, out)
    except (TypeError, ArithmeticError, LookupError) as e:
        if config == module.Config():
            raise
        kind = type(e).__name__
        raise ValueError(f"{name} cannot run with these options: {kind}: {e}") from e
    show(entry)
    print(f"{out / name}.png and .json, {entry.seconds:.1f} s")
    return HELD if all(c.holds for c in entry.claims) else FALSE


def configure(name: str, config: type[Any], options: Sequence[str]) -> Any:
    """Parses the options of an experiment into its `Config`.

    Raises:
      ValueError: If an option or its value is wrong; the message lists the valid options.
    """
    try:
        found = parse(config, options, f"python -m experiments {name}")
    except ValueError as e:
        valid = ", ".join(f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(config))
        raise ValueError(f"{e}; the options of {name}: {valid}, --out") from None
    check(name, found)
    return found


def check(name: str, config: Any) -> None:
    """Raises a ValueError that names the first option whose value is out of range."""
    for option, value in vars(config).items():
        shown = f"--{option.replace('_', '-')}"
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                check_int(name, shown, number, at_least=LEAST.get(option, 1))
            else:
                least = -math.inf if option in SIGNED else 0
                check_number(name, shown, number, at_least=least)


def split_out(options: Sequence[str]) -> tuple[Path, list[str]]:
    """Separates the folder given by --out from the other options.

    Raises:
      ValueError: If --out has no value.
    """
    rest, out = [], OUT
    words = iter(options)
    for word in words:
        if word == "--out" or word.startswith("--out="):
            value = word.partition("=")[2] or next(words, "")
            if not value:
                raise ValueError("--out needs a folder")
            out = Path(value)
        else:
            rest.append(word)
    return out, rest


def run_all(out: Path, options: Sequence[str] = ()) -> int:
    """Runs all experiments with their defaults and writes the page; returns the exit status.

    Args:
      out: The folder of figures, numbers and page.
      options: `["--docs"]` also writes the gallery.

    Raises:
      ValueError: If there are other options, or the gallery or the folder cannot be written.
    """
    for option in options:
        if option != "--docs":
            raise ValueError(f"all takes no option except --docs and --out, got {option}")
        docs.check_gallery(docs.HERE)
    make_folder(out)
    entries = []
    for name in tqdm(NAMES, desc="experiments", unit="", disable=None):
        module = importlib.import_module(f"experiments.{name}")
        entries.append(run(name, module.Config(), out))
        with tqdm.external_write_mode():
            show(entries[-1])
        jax.clear_caches()  # the next experiment cannot reuse the compiled programs of this one
    write(out / "index.html", lambda file: file.write(page(entries, machine()).encode()))
    claims = [c for entry in entries for c in entry.claims]
    held = sum(c.holds for c in claims)
    print(f"{held} of {len(claims)} claims hold; {sum(e.seconds for e in entries):.0f} s")
    print(out / "index.html")
    if held < len(claims):
        return FALSE
    if options:
        docs.write_gallery(entries, docs.HERE)
    return HELD


def run(name: str, config: Any, out: Path) -> Entry:
    """Runs one experiment, writes its figure and its numbers, and returns them."""
    module = importlib.import_module(f"experiments.{name}")
    start = time.perf_counter()
    result = module.run(config)
    claims = module.claims(result)
    notes = module.notes(result) if hasattr(module, "notes") else []
    with mpl.rc_context(style.RC):
        png = io.BytesIO()
        module.plot(result).savefig(png, dpi=150, format="png")
    seconds = time.perf_counter() - start
    entry = Entry(
        name,
        module.__doc__ or "",
        png.getvalue(),
        claims,
        notes,
        dataclasses.asdict(config),
        seconds,
    )
    record = {
        "experiment": name,
        "config": entry.config,
        "claims": [c._asdict() for c in claims],
        "notes": notes,
        "seconds": round(seconds, 2),
        "machine": machine(),
        "result": plain(result),
    }
    write(out / f"{name}.png", lambda file: file.write(entry.png))
    write(out / f"{name}.json", lambda file: file.write(json.dumps(record).encode()))
    return entry


def plain(value: Any) -> Any:
    """Converts a result to JSON types; arrays of more than 50,000 numbers become their shape."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)  # pyright: ignore
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.asarray(value)
        return array.tolist() if array.size <= 50_000 else {"shape": list(array.shape)}
    return value


def show(entry: Entry) -> None:
    """Prints the claims and notes of an experiment."""
    print(f"{entry.name}: {title(entry.docstring)}")
    for line in [*entry.claims, *entry.notes]:
        print(f"  {line}")


def machine() -> str:
    """Describes the hardware and versions on which run times and last digits depend."""
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (jax, jaxlib, np, optax))
    return f"{jax.default_backend()}, {os.cpu_count()} cores of {cpu()}, {versions}"


if __name__ == "__main__":
    sys.exit(main())
