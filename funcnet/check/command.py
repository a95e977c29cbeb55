"""The command `funcnet`: check a rule, or list those of funcnet."""

import argparse
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp

from funcnet.check.model import check_model
from funcnet.check.profile import profile_rule
from funcnet.check.prove import check_rule
from funcnet.check.specs import DTYPES, GRAMMAR, is_option, parse_argument, parse_option
from funcnet.rule import RULES

PROVED, REFUTED, USAGE = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0 proved, 1 refuted, 2 bad usage."""
    parser = _Parser(prog="funcnet", description="Prove or refute hand-written backward rules.")
    commands = parser.add_subparsers(required=True, metavar="command")

    check = commands.add_parser(
        "check", help="prove or refute the rule of one function",
        description="Exit status: 0 proved, 1 refuted, 2 bad usage.",
    )  # fmt: skip
    check.add_argument("function", help="package.module:function, or file.py:function")
    check.add_argument("arguments", nargs="*", metavar="argument", help=f"{GRAMMAR}; or name=value")
    check.add_argument("--model", action="store_true", help="check_model: name the rule to blame")
    check.add_argument("--profile", action="store_true", help="also measure memory, time, accuracy")
    check.add_argument("--dtypes", default="", help="further dtypes for the accuracy: bf16,f16")
    check.add_argument("--strict", action="store_true", help="as accurate as autodiff, no notes")
    check.add_argument("--seed", type=int, default=0, help="of the random arguments")
    check.add_argument("--json", metavar="FILE", help="write the report there; - for the terminal")
    check.set_defaults(run=_check)

    rules = commands.add_parser("rules", help="list the registered rules, and what they save")
    rules.set_defaults(run=_rules)

    options = _parse(parser, argv)
    try:
        return options.run(options)
    except _UsageError as e:
        sys.stderr.write(f"funcnet: {e}\n")
        return USAGE


class _UsageError(Exception):
    """Bad usage, in one line."""


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand before, between and after the arguments."""
    options, rest = parser.parse_known_args(argv)
    unknown = [
        text for text in rest if text.startswith("-") and len(text) > 1 and not _is_number(text)
    ]
    if unknown or (rest and not hasattr(options, "arguments")):
        parser.error(f"unknown option {(unknown or rest)[0]}")
    if rest:
        options.arguments += rest
    return options


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-\d.*|-\.\d.*", text) is not None


def _check(options: argparse.Namespace) -> int:
    f = _imported(options.function)
    args, static = [], {}
    for i, text in enumerate(options.arguments):
        try:
            if is_option(text):
                name, value = parse_option(text, options.seed + i)
                static[name] = value
            else:
                args.append(parse_argument(text, options.seed + i))
        except ValueError as e:
            raise _UsageError(e) from None
    dtypes = [DTYPES.get(d, d) for d in options.dtypes.split(",") if d]
    try:
        dtypes = [jnp.dtype(d) for d in dtypes]
        if options.model:
            report = check_model(f, *args, **static)
        else:
            report = check_rule(f, *args, dtypes=dtypes, strict=options.strict, **static)
        profile = profile_rule(f, *args, **static) if options.profile else None
    except (TypeError, ValueError) as e:
        raise _UsageError(" ".join(str(e).split())) from None
    if options.json != "-":
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        sys.stdout.write(report.render(color=color) + "\n")
        if profile is not None:
            sys.stdout.write(f"\n{profile}\n")
    if options.json:
        found = report.to_dict() | ({"profile": profile.to_dict()} if profile else {})
        text = json.dumps(found, indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            try:
                Path(options.json).write_text(text, encoding="utf-8")
            except OSError as e:
                raise _UsageError(f"--json {options.json}: {e.strerror}") from None
    return PROVED if report.ok else REFUTED


def _imported(target: str) -> Callable[..., Any]:
    module_name, colon, path = target.rpartition(":")
    if not colon or not module_name or not path:
        raise _UsageError(f"function must be package.module:function, got {target!r}")
    sys.path.insert(0, os.getcwd())
    try:
        if module_name.endswith(".py"):
            sys.path.insert(0, str(Path(module_name).resolve().parent))
            module_name = Path(module_name).stem
        found: Any = importlib.import_module(module_name)
    except Exception as e:  # whatever the module does when it is run
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        raise _UsageError(f"module {module_name} cannot be imported: {reason}") from None
    for name in path.split("."):
        if not hasattr(found, name):
            raise _UsageError(f"module {module_name} has no function {path}")
        found = getattr(found, name)
    if not callable(found):
        raise _UsageError(f"{target} is not a function")
    return found


def _rules(options: argparse.Namespace) -> int:
    del options
    names = sorted(RULES)
    width = max(map(len, names))
    for name in names:
        rule = RULES[name]
        summary = (inspect.getdoc(rule.primal) or "").split("\n")[0]
        sys.stdout.write(f"{name:{width}}  {summary}\n{'':{width}}  {_saved(rule)}\n")
    return PROVED


def _saved(rule: Any) -> str:
    """The sentence of a docstring that tells what is saved."""
    for f in (rule.fwd, rule.primal):
        found = re.search(r"Saves[^.]*\.", " ".join((inspect.getdoc(f) or "").split()))
        if found:
            return found[0]
    return "Residuals not documented."


if __name__ == "__main__":
    sys.exit(main())
