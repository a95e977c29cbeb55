"""A plugin of pytest: `pytest --check-rules` proves or refutes every rule that the tests call.

It is installed outside the package `funcnet`, which imports JAX, so that it costs nothing without
the flag.
"""

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

VERDICTS = ("refuted", "undecided", "not checked", "proved")  # in the order of the report
OUTCOMES = {"refuted": "failed", "proved": "passed"}  # of a test; all else is skipped
COLORS = {"refuted": {"red": True}, "proved": {"green": True}}
WIDTH = 100


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("funcnet", "rules of JAX")
    group.addoption(
        "--check-rules",
        action="store_true",
        help="prove or refute every jax.custom_vjp and jax.custom_jvp that the tests call",
    )
    group.addoption(
        "--check-rules-seconds",
        type=float,
        metavar="SECONDS",
        default=60.0,
        help="with --check-rules: the time for all checks (default: 60)",
    )
    group.addoption(
        "--check-rules-except",
        action="append",
        metavar="NAME",
        default=[],
        help="with --check-rules: do not check rules of this name, whose gradient is meant to be "
        "another one; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugin, if the flag is given."""
    if not config.option.check_rules:
        return
    seconds = config.option.check_rules_seconds
    if math.isnan(seconds) or seconds < 0:
        raise pytest.UsageError(f"--check-rules-seconds must be at least 0, got {seconds:g}")
    config.pluginmanager.register(CheckRules(config), "check_rules")


class CheckRules:
    """Records rules while the tests run, then checks them and reports each like a test.

    With pytest-xdist, each worker checks what its own tests called, in the given time, and the
    controller reports what they found.
    """

    def __init__(self, config: pytest.Config):
        self.config = config
        self.outcomes: dict[tuple[Any, ...], dict[str, Any]] = {}  # by rule and signature
        self.finished = self.reporting = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Records, checks and reports; nothing is checked if the tests are stopped."""
        del session
        if self.config.pluginmanager.hasplugin("dsession"):  # the controller of pytest-xdist
            result = yield
        else:
            # Not imported earlier: JAX reads environment variables when it is imported.
            from funcnet.command.recording import Recorder
            from funcnet.command.verdicts import verdicts

            with Recorder() as recorder:
                result = yield
            options = self.config.option
            outcomes = verdicts(recorder, options.check_rules_seconds, options.check_rules_except)
            self._add(outcome._asdict() for outcome in outcomes)
        self.finished = True
        output = getattr(self.config, "workeroutput", None)  # of a worker of pytest-xdist
        if output is not None:
            output["check_rules"] = [*self.outcomes.values()]
        else:
            self.reporting = True
            for outcome in self.outcomes.values():
                self.config.hook.pytest_runtest_logreport(report=self._test_report(outcome))
            self.reporting = False
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Takes what a worker of pytest-xdist found."""
        self._add(getattr(node, "workeroutput", {}).get("check_rules", ()))

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """Counts a rule like a test, without a letter after the progress of the tests."""
        return (report.outcome, "", "") if self.reporting else None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Writes the section."""
        terminalreporter.section("rules")
        if not self.finished:
            terminalreporter.write_line("not checked, because the tests were stopped")
            return
        for verdict, text in self._paragraphs():
            terminalreporter.write_line(text, **COLORS.get(verdict, {"yellow": True}))
        counts = Counter(outcome["verdict"] for outcome in self.outcomes.values())
        counted = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
        seconds = sum(outcome["seconds"] for outcome in self.outcomes.values())
        terminalreporter.write_line(
            f"{counted} in {seconds:.1f} s"
            if self.outcomes
            else "the tests called no jax.custom_vjp or jax.custom_jvp"
        )

    def _add(self, outcomes: Iterable[dict[str, Any]]) -> None:
        """Adds outcomes; for the same rule and signature, the first in VERDICTS counts."""
        for outcome in outcomes:
            key = tuple(outcome[part] for part in ("name", "file", "line", "signature"))
            seen = self.outcomes.setdefault(key, outcome)
            if VERDICTS.index(outcome["verdict"]) < VERDICTS.index(seen["verdict"]):
                self.outcomes[key] = outcome

    def _paragraphs(self) -> Iterator[tuple[str, str]]:
        """The verdict and the text of each paragraph, which joins signatures of one rule."""
        groups: defaultdict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for o in sorted(self.outcomes.values(), key=lambda o: VERDICTS.index(o["verdict"])):
            groups[o["verdict"], o["name"], self._place(o), o["reason"]].append(o)
        for (verdict, name, place, reason), same in groups.items():
            first = same[0]
            parts = [f"{verdict:11}  {name} at {place}"]
            if first["signature"]:
                parts.append(f"({first['signature']})")
            if len(same) > 1:
                parts.append(f"and {len(same) - 1} more")
            if all(o["random"] for o in same):
                parts.append("at random numbers")
            if verdict != "proved" and first["test"]:
                parts.append(f"in {first['test']}")
            text = " ".join(parts) + (f": {reason}" if reason else "")
            yield verdict, _wrapped(text)

    def _test_report(self, o: dict[str, Any]) -> pytest.TestReport:
        """The outcome as the report of a test, for JUnit files and for the exit status."""
        file, _, line = self._place(o).rpartition(":")
        name = f"{o['name']}[{o['signature']}]"
        outcome: Any = OUTCOMES.get(o["verdict"], "skipped")
        longrepr: Any = None
        if outcome == "failed":
            where = f"called by {o['test']}" if o["test"] else "called by the tests"
            at = "at random numbers" if o["random"] else "at the values of the tests"
            longrepr = f"{o['report']}\n  {o['name']} at {file}:{line}, {where}, checked {at}"
        elif outcome == "skipped":
            longrepr = file, int(line), f"rule {o['verdict']}: {o['reason']}"
        return pytest.TestReport(
            f"{file}::{name}", (file, int(line) - 1, name), {"check_rules": 1}, outcome, longrepr,
            "call", duration=o["seconds"],
        )  # fmt: skip

    def _place(self, o: dict[str, Any]) -> str:
        """The definition as "file.py:12", from the root of the tests or of an installed package."""
        path = Path(o["file"])
        if "site-packages" in path.parts:
            path = Path(o["file"].rpartition("site-packages")[2].lstrip("/\\"))
        elif path.is_relative_to(self.config.rootpath):
            path = path.relative_to(self.config.rootpath)
        return f"{path.as_posix()}:{o['line']}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * 13, break_long_words=False)
