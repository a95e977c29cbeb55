"""The result of a check, for display in a terminal or a notebook, and as JSON."""

import html
import json
import math
import sys
import textwrap
import time
from typing import Any, NamedTuple

from funcnet.check.subject import type_name

WIDTH = 100

KINDS = {
    "value": "the value that fwd returns differs from that of the function",
    "structure": "the number or the pytree of the cotangents differs from that of the arguments",
    "shape": "the shape of a cotangent differs from that of its argument",
    "dtype": "the dtype of a cotangent differs from that of its argument",
    "none": "bwd returns None for a floating argument whose gradient is not zero",
    "gradient": "a cotangent differs from the reference by more than rounding",
    "kink": "a cotangent differs from the reference only at ties or corners",
    "linearity": "bwd is not linear in the cotangent of the output",
    "second derivative": "the derivative of the gradient is wrong",
    "nonfinite": "a cotangent is infinite or nan where the reference is finite",
    "accuracy": "the formula is right, but loses digits that the reference keeps",
    "jit": "right eagerly, but wrong or an error under jax.jit",
    "vmap": "wrong or an error under jax.vmap over some of the arguments",
    "scan": "wrong or an error in jax.lax.scan",
    "remat": "wrong or an error under jax.checkpoint",
    "sharding": "wrong or an error with sharded arguments, or in jax.shard_map",
    "batch size": "right for this leading size, but wrong for another",
    "determinism": "two calls with the same arguments differ",
    "tracer": "the rule uses a traced value that is neither an argument nor a residual",
    "error": "the rule raises an exception",
    "note": "a note, which counts as a finding with strict=True",
}
"""The kinds of findings and their meaning."""


class CheckFailed(AssertionError):
    """A rule was refuted; the message is the report."""


class Finding(NamedTuple):
    """One mistake in a rule."""

    kind: str  # a key of `KINDS`
    argument: str  # "x", "params['w']", or an output: "out", "out[1]"
    message: str  # the comparison, the place of the largest error, and its usual cause
    measured: float  # error divided by what rounding explains; nan if nothing was measured
    allowed: float = 1.0  # the limit of `measured`

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"

    @property
    def text(self) -> str:
        """The argument, if there is one, and the message."""
        return f"{self.argument}: {self.message}" if self.argument else self.message


class Culprit(NamedTuple):
    """A wrong cotangent of a rule, which makes the gradient of a model wrong."""

    rule: str  # the name of the function
    where: str  # the line that calls it: "file.py:12"
    argument: str  # the argument of the rule whose cotangent is wrong
    error: float  # max |error| / max |gradient| of the model, with only this cotangent by rule

    def __str__(self) -> str:
        return f"{self.rule} at {self.where}: {self.argument} (relative error {self.error:.1e})"


class Row(NamedTuple):
    """The comparison of one cotangent with its reference."""

    argument: str
    type: str
    error: float = math.nan  # in the wide dtype, divided by what rounding explains
    finite: float = math.nan  # relative distance of the rule from finite differences
    ulp_hand: float = math.nan  # root mean square error in the working dtype, in ulps
    ulp_auto: float = math.nan
    verdict: str = ""


class Report(NamedTuple):
    """The result of `check_rule` or `check_model`.

    A report is true if the rule is proved. A failing `assert check_rule(f, x)` prints the table.
    """

    name: str
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    checked: tuple[str, ...]  # the checks that were run
    seconds: float
    culprits: tuple[Culprit, ...] = ()
    undecided: tuple[str, ...] = ()  # what could not be compared, and why
    against: str = "autodiff"  # the reference: "autodiff", "the truth" or "the intent"

    @property
    def verdict(self) -> str:
        """The verdict at these arguments: "proved", "refuted" or "undecided".

        A rule is undecided if nothing was found, but something could not be compared.
        """
        return "refuted" if self.findings else "undecided" if self.undecided else "proved"

    @property
    def ok(self) -> bool:
        """Whether the rule is proved at these arguments."""
        return self.verdict == "proved"

    def __bool__(self) -> bool:
        return self.ok

    def raise_if_failed(self) -> None:
        """Raises `CheckFailed`, with the report as message, unless the rule is proved."""
        if not self.ok:
            raise CheckFailed("\n" + str(self))

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers; nonfinite numbers become None."""
        plain = {
            "name": self.name,
            "ok": self.ok,
            "verdict": self.verdict,
            "seconds": self.seconds,
            "against": self.against,
            "rows": [row._asdict() for row in self.rows],
            "findings": [finding._asdict() for finding in self.findings],
            "culprits": [culprit._asdict() for culprit in self.culprits],
            "undecided": list(self.undecided),
            "warnings": list(self.warnings),
            "checked": list(self.checked),
        }
        return finite_json(plain)

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        return self.render(color=False)

    __repr__ = __str__

    def render(self, *, color: bool) -> str:
        """The report as text of at most 100 columns.

        Args:
          color: Whether to write ANSI colours.
        """
        paint = _paint if color else lambda text, _: text
        verdict = paint(self.verdict, COLORS[self.verdict])
        lines = [f"{self.name}: {verdict} ({self.seconds:.1f} s)"]
        lines += table(_header(self.against), [_cells(row) for row in self.rows])
        for culprit in self.culprits:
            lines += _wrap(paint("culprit", "red"), "culprit", str(culprit))
        for f in self.findings:
            lines += _wrap(paint(f.kind, "red"), f.kind, f.text)
        for reason in self.undecided:
            lines += _wrap(paint("undecided", "yellow"), "undecided", reason)
        for warning in self.warnings:
            lines += _wrap(paint("note", "yellow"), "note", warning)
        lines += _wrap("checked", "checked", ", ".join(self.checked)) if self.checked else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cell = lambda tag, text: f"<{tag}>{html.escape(text)}</{tag}>"
        row = lambda tag, cells: f"<tr>{''.join(cell(tag, c) for c in cells)}</tr>"
        color = {"proved": "#2a7f3b", "refuted": "#b3261e", "undecided": "#8a6d00"}[self.verdict]
        items = [("culprit", str(c)) for c in self.culprits]
        items += [(f.kind, f.text) for f in self.findings]
        items += [("undecided", reason) for reason in self.undecided]
        items += [("note", w) for w in self.warnings]
        head = f'<b style="color:{color}">{self.verdict}</b> ({self.seconds:.1f} s)'
        body = row("th", _header(self.against)) + "".join(row("td", _cells(r)) for r in self.rows)
        notes = "".join(f"<li>{cell('b', kind)} {html.escape(text)}</li>" for kind, text in items)
        checked = f"<p>checked: {html.escape(', '.join(self.checked))}</p>" if self.checked else ""
        top = f"<p>{cell('b', self.name)}: {head}</p>"
        return f"{top}<table>{body}</table><ul>{notes}</ul>{checked}"


COLORS = {"proved": "green", "refuted": "red", "undecided": "yellow"}


def _header(against: str) -> tuple[str, ...]:
    ulp = f"ulp {against.removeprefix('the ')}"
    return ("argument", "type", "error/rounding", "finite diff.", "ulp hand", ulp, "verdict")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.argument,
        row.type,
        number(row.error),
        number(row.finite),
        number(row.ulp_hand),
        number(row.ulp_auto),
        row.verdict,
    )


def number(x: float) -> str:
    """A number in a few characters: "0.12", "34", "5.6e+07"; a dash for nan."""
    if math.isnan(x):
        return "–"
    if x == 0 or 0.01 <= abs(x) < 1000:
        return f"{x:.2g}" if abs(x) < 100 else f"{x:.0f}"
    return f"{x:.1e}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of aligned columns; the first two are shortened to fit the terminal."""
    if not rows:
        return []
    rows = [header, *rows]
    widths = [max(len(r[i]) for r in rows) for i in range(len(header))]
    for i in (0, 1):
        excess = 2 * len(widths) + sum(widths) - WIDTH
        widths[i] = max(min(widths[i], 12), widths[i] - max(0, excess))
    rows = [(_shorten(r[0], widths[0]), _shorten(r[1], widths[1]), *r[2:]) for r in rows]
    sides = ["<", "<", *">" * (len(header) - 3), "<"]
    line = lambda r: "  ".join(f"{c:{s}{w}}" for c, s, w in zip(r, sides, widths, strict=True))
    return [f"  {line(r)}".rstrip() for r in rows]


def _shorten(text: str, width: int) -> str:
    half = width // 2
    return text if len(text) <= width else f"{text[: width - half - 1]}…{text[-half:]}"


def _wrap(painted: str, label: str, text: str) -> list[str]:
    text, *code = text.split("\n")  # lines of code stay whole
    first, indent = f"  {label}: ", "      "
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent)
    return [lines[0].replace(label, painted, 1), *lines[1:], *(indent + line for line in code)]


def _paint(text: str, color: str) -> str:
    return f"\033[{ {'red': 31, 'green': 32, 'yellow': 33}[color] }m{text}\033[0m"


def finite_json(tree: Any) -> Any:
    """Replaces nan and infinities, which JSON does not have, by None."""
    if isinstance(tree, dict):
        return {k: finite_json(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite_json(v) for v in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


class Log:
    """The results of a check so far; used by the modules of this package."""

    def __init__(self, subject: Any):
        self.subject = subject
        self.progress = Progress(subject.name)
        self.findings: list[Finding] = []
        self.warnings: list[str] = []
        self.culprits: list[Culprit] = []
        self.undecided: list[str] = []
        self.against = "autodiff"
        pairs = zip(subject.names, subject.floats, strict=True)
        self.rows = {name: Row(name, type_name(leaf)) for name, leaf in pairs}

    def find(self, kind: str, argument: str, message: str, measured: float = math.nan) -> None:
        """Records a finding, once per kind and argument."""
        if not any((f.kind, f.argument) == (kind, argument) for f in self.findings):
            self.findings.append(Finding(kind, argument, message, measured))

    def add_to_last(self, sentence: str) -> None:
        """Adds a sentence, unless it is empty, to the message of the last finding."""
        if sentence:
            last = self.findings[-1]
            self.findings[-1] = last._replace(message=f"{last.message}. {sentence}")

    def warn(self, message: str) -> None:
        """Records a warning, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def undecide(self, reason: str) -> None:
        """Records what could not be compared, once."""
        if reason not in self.undecided:
            self.undecided.append(reason)

    def row(self, name: str, **values: Any) -> None:
        """Sets numbers in the row of an argument."""
        self.rows[name] = self.rows[name]._replace(**values)

    def report(self) -> Report:
        """The report on everything recorded."""
        wrong = {f.argument: f.kind for f in reversed(self.findings)}
        rows = (r._replace(verdict=wrong.get(r.argument, "ok")) for r in self.rows.values())
        return Report(
            self.subject.name,
            tuple(rows),
            tuple(self.findings),
            tuple(self.warnings),
            tuple(self.progress.done),
            self.progress.seconds,
            tuple(self.culprits),
            tuple(self.undecided),
            self.against,
        )


class Progress:
    """A status line on the terminal, shown once a check has taken two seconds."""

    def __init__(self, name: str):
        self.name, self.start, self.done = name, time.perf_counter(), []
        self.shown = False

    def __call__(self, what: str) -> None:
        """Reports that the step `what` begins."""
        self.done.append(what)
        if sys.stderr.isatty() and self.seconds > 2:
            sys.stderr.write(f"\r\033[K{self.name}: {what} ({self.seconds:.0f} s)")
            sys.stderr.flush()
            self.shown = True

    def end(self) -> None:
        """Clears the status line."""
        if self.shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start
