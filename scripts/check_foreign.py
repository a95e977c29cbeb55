"""Run `funcnet.check_rule` on the hand-written gradients of other libraries.

    uv pip install -e '.[foreign]'
    uv pip install --no-deps exojax==2.6.0 fjformer==0.0.91 recurrentgemma==1.0.1

    python scripts/check_foreign.py               checks all rules and prints the table
    python scripts/check_foreign.py --only ott    checks those with "ott" in package or name
    python scripts/check_foreign.py --write       also writes the table into its README.md

`foreign_rules.py` lists the rules and what the checker must find. The exit status is 0 if it finds
exactly that, 1 if it finds something else, and 2 if an option is invalid. A row whose package is
not installed says so. (The second line installs packages that require other versions of packages
of the first, without them.)
"""

import contextlib
import dataclasses
import io
import json
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import readme
from command_line import check_writable, command, cpu, parse
from differences import off_by
from foreign_rules import Foreign, rules

HEADER = (
    "| library | function | compared with | verdict | why | off by | CPU s |",
    "|---|---|---|---|---|---|---|",
)
DECIDED = r"compared with finite differences|: finite differences decide"  # as a report says it
NOT_INSTALLED, ERROR = "not installed", "error"


@dataclasses.dataclass(frozen=True)
class Config:
    """Run `funcnet.check_rule` on the hand-written gradients of other libraries."""

    only: str = ""
    """Check only rules with this text in the name of the package or the function."""
    write: bool = False
    """Write the table into the README.md that has a part "foreign"."""
    json: Path | None = None
    """Write the results to this file as JSON."""


class Row(NamedTuple):
    """The result for one rule."""

    package: str
    version: str
    function: str
    against: str  # the reference: "autodiff", "finite differences", "the truth", "the intent"
    verdict: str  # of `check_rule`, or NOT_INSTALLED or ERROR
    findings: tuple[str, ...]  # "gradient of y"
    why: str  # what is wrong, or meant, in words; the report if the result is unexpected
    off_by: float | None  # how far the gradient is from differences, by `differences.py`
    seconds: float  # of CPU time
    is_expected: bool

    def __str__(self) -> str:
        """The row in Markdown."""
        why = ": ".join(filter(None, (", ".join(self.findings), self.why)))
        verdict = self.verdict if self.is_expected else f"**{self.verdict}**, unexpected"
        seconds = f"{self.seconds:.1f}" if self.seconds else ""
        function = self.function.replace(", ", "`, ", 1) + "`" * (", " not in self.function)
        library = f"{self.package} {self.version}"
        error = "" if self.off_by is None else f"{self.off_by:.0e}"
        cells = (library, f"`{function}", self.against, verdict, why, error, seconds)
        return f"| {' | '.join(map(one_line, cells))} |"


def checked(rule: Foreign) -> Row:
    """Checks one rule; an error of its library or of the checker is a result, too."""
    from funcnet import check_rule

    row = Row(rule.package, "", rule.name, "", NOT_INSTALLED, (), "", None, 0.0, is_expected=True)
    try:
        row = row._replace(version=metadata.version(rule.package))
    except metadata.PackageNotFoundError:
        return row
    try:
        f, args, options = rule.make()
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):  # some functions print
            report = check_rule(f, *args, **options)
            seconds = time.process_time() - start
            error = off_by(f, args, **{k: v for k, v in options.items() if k != "tolerance"})
    except Exception as e:
        why = f"{type(e).__name__}: {e}"[:300]
        return row._replace(verdict=ERROR, why=why, is_expected=False)
    findings = tuple(f"{x.kind} of {x.argument}" if x.argument else x.kind for x in report.findings)
    is_expected = report.verdict == rule.expected_verdict and findings == rule.findings
    by_differences = any(re.search(DECIDED, note) for note in report.warnings)
    return row._replace(
        against="finite differences" if by_differences else report.against.removeprefix("the "),
        verdict=report.verdict,
        findings=findings,
        why=rule.why if is_expected else str(report),
        off_by=error,
        seconds=seconds,
        is_expected=is_expected,
    )


def one_line(text: str) -> str:
    """A text that fits a cell."""
    return " ".join(text.replace("|", "\\|").split())


def environment() -> str:
    """The machine and the versions, in one line."""
    python = platform.python_version()
    return f"On {cpu()} ({os.cpu_count()} cores), cpu, jax {jax.__version__}, Python {python}."


def summary(rows: Sequence[Row]) -> str:
    """How many rules have each verdict, in one line."""
    counts = Counter(row.verdict for row in rows)
    return f"{', '.join(f'{count} {verdict}' for verdict, count in counts.items())}."


@command("check_foreign")
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    config = parse(Config, argv)
    chosen = [rule for rule in rules() if config.only in f"{rule.package} {rule.name}"]
    if not chosen:
        raise ValueError(f"--only must be part of the name of a row, got {config.only!r}")
    if config.write and config.only:
        raise ValueError("--write needs all rows, and --only leaves some out")
    if config.write:
        check_writable("--write", readme.page("foreign"))
    if config.json is not None:
        check_writable("--json", config.json)
    del sys.argv[1:]  # tokamax reads it and rejects unknown options
    rows = []
    print(*HEADER, sep="\n")
    for rule in chosen:
        rows.append(checked(rule))
        print(rows[-1], flush=True)
    print("", summary(rows), environment(), sep="\n")
    if config.json is not None:
        record = {"environment": environment(), "rows": [row._asdict() for row in rows]}
        text = json.dumps(record, indent=1, ensure_ascii=False)
        config.json.write_text(text + "\n", encoding="utf-8")
    if config.write:
        text = "\n".join([f"{environment()} {summary(rows)}", "", *HEADER, *map(str, rows)])
        print(f"written into {readme.write('foreign', text)}")
    return 0 if all(row.is_expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
