"""The command `funcnet`: check a rule, or list the rules of funcnet."""

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from funcnet.check.failures import line
from funcnet.check.model import check_model
from funcnet.check.prove import check_rule
from funcnet.command.base import USAGE, check_writable, command, say
from funcnet.command.specs import DTYPES, GRAMMAR, is_option, parse_argument, parse_option
from funcnet.profile.devices import device_named
from funcnet.profile.profile_rule import profile_rule
from funcnet.rule import RULES

PROVED, REFUTED, UNDECIDED = 0, 1, 2
OF_RULE = ("strict", "dtypes", "truth", "intent")  # the options of check_rule alone
EXAMPLES = """examples:
  funcnet check funcnet.ops:softmax 'f32[8,16]' axis=0
  funcnet check my_rules.py:loss 'f32[8,10]' 'i32[8]<10' eps=1e-5 --profile
  funcnet check my_model.py:loss 'f32[784,10]' 'f32[8,784]' --model
  funcnet check my_rules.py:rounded 'f32[8]' --truth my_rules.py:identity
  funcnet check funcnet.ops:gelu 'bf16[8192,4096]' --profile --device tpu:v5e

exit status: 0 proved, 1 refuted, 2 undecided, bad usage, or the function cannot be run"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line, without the usage."""
        say(self.prog, message)
        sys.exit(USAGE)


@command("funcnet")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0 proved, 1 refuted, 2 undecided or bad usage."""
    parser = _Parser(prog="funcnet", description="Prove or refute hand-written backward rules.")
    commands = parser.add_subparsers(required=True, metavar="command")

    check = commands.add_parser(
        "check", help="prove or refute the rule of one function",
        description="Proves or refutes the hand-written rule of one function, at random arguments.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    check.add_argument("function", help="package.module:function, or file.py:function")
    check.add_argument("arguments", nargs="*", metavar="argument", help=f"{GRAMMAR}; or name=value")
    check.add_argument(
        "--model", action="store_true", help="name the wrong rules that a function calls"
    )
    check.add_argument("--profile", action="store_true", help="also measure memory, time, accuracy")
    check.add_argument(
        "--device", help="profile for this accelerator, such as tpu:v5e, instead of checking"
    )
    check.add_argument(
        "--truth", metavar="FUNCTION", help="compare with the gradient of this function instead"
    )
    check.add_argument(
        "--intent", metavar="FUNCTION",
        help="compare with the cotangents that this function of the arguments and dy returns",
    )  # fmt: skip
    check.add_argument("--dtypes", help="further dtypes for the accuracy: bf16,f16")
    check.add_argument(
        "--strict", action="store_true", help="require the accuracy of autodiff, and no notes"
    )
    check.add_argument("--seed", type=int, default=0, help="seed of random arguments, at least 0")
    check.add_argument("--json", metavar="FILE", help="write the report to FILE; - is stdout")
    check.set_defaults(run=_check)

    rules = commands.add_parser("rules", help="list the registered rules, and what they save")
    rules.set_defaults(run=_rules)

    options = _parse(parser, argv)
    return options.run(options)


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses options before, between and after the arguments."""
    options, rest = parser.parse_known_args(argv)
    unknown = [
        text for text in rest if text.startswith("-") and len(text) > 1 and not _is_number(text)
    ]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    if rest and not hasattr(options, "arguments"):
        parser.error(f"unknown argument {rest[0]}")
    if rest:
        options.arguments += rest
    return options


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-\d.*|-\.\d.*", text) is not None


def _check(options: argparse.Namespace) -> int:
    if options.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {options.seed}")
    of_rule = [f"--{name}" for name in OF_RULE if getattr(options, name) not in (None, False)]
    if options.model and of_rule:
        raise ValueError(f"--model does not take {of_rule[0]}")
    if options.device is not None:
        device_named("--device", options.device)
        if options.model or of_rule:
            raise ValueError(f"--device does not take {[*of_rule, '--model'][0]}")
    if options.json not in (None, "-"):
        check_writable("--json", Path(options.json))
    args, static = _arguments(options)
    how: dict[str, Any] = {}
    if not options.model:
        names = (options.dtypes or "").split(",")
        how = {"strict": options.strict, "dtypes": [DTYPES.get(d, d) for d in names if d]}
    f = _imported("function", options.function)
    for name in ("truth", "intent"):
        if getattr(options, name) is not None:
            how[name] = _imported(f"--{name}", getattr(options, name))
    if options.device is not None:
        return _profile(options, f, args, static)
    try:
        report = (check_model if options.model else check_rule)(f, *args, **how, **static)
        profile = profile_rule(f, *args, **static) if options.profile else None
    except (Exception, SystemExit) as e:  # the function may raise anything
        raise ValueError(_reason(e, options.function.rpartition(":")[2])) from None
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = report.render(color=color) + "\n" + (f"\n{profile}\n" if profile else "")
    found = report.to_dict() | ({"profile": profile.to_dict()} if profile else {})
    _write(options, text, found)
    return {"proved": PROVED, "refuted": REFUTED, "undecided": UNDECIDED}[report.verdict]


def _profile(
    options: argparse.Namespace, f: Callable[..., Any], args: list[Any], static: dict[str, Any]
) -> int:
    """Compiles for an accelerator; nothing is computed, so nothing is checked."""
    try:
        profile = profile_rule(f, *args, device=options.device, **static)
    except (Exception, SystemExit) as e:  # the function may raise anything
        raise ValueError(_reason(e, options.function.rpartition(":")[2])) from None
    _write(options, f"{profile}\n", {"profile": profile.to_dict()})
    return PROVED


def _write(options: argparse.Namespace, text: str, as_json: dict[str, Any]) -> None:
    """Prints a text and writes the JSON file, or prints the JSON alone if its file is "-"."""
    if options.json != "-":
        sys.stdout.write(text)
    if options.json is None:
        return
    found = json.dumps(as_json, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(found)
    else:
        Path(options.json).write_text(found, encoding="utf-8")


def _arguments(options: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments."""
    args, static = [], {}
    for i, text in enumerate(options.arguments):
        if is_option(text):
            name, value = parse_option(text, options.seed + i)
            if name in static:
                raise ValueError(f"argument {text!r}: {name} was given before")
            if name in OF_RULE:
                raise ValueError(f"argument {text!r}: this is the option --{name}")
            static[name] = value
        else:
            args.append(parse_argument(text, options.seed + i, draw=options.device is None))
    return args, static


def _imported(what: str, target: str) -> Callable[..., Any]:
    """The function that `target` names; `what` names the argument of the command."""
    module_name, colon, path = target.rpartition(":")
    if not colon or not module_name or not path:
        raise ValueError(f"{what} must be package.module:function, got {target!r}")
    sys.path.insert(0, os.getcwd())
    try:
        is_file = module_name.endswith(".py")
        found: Any = (_run_file if is_file else importlib.import_module)(module_name)
    except (Exception, SystemExit) as e:  # the module may raise anything
        raise ValueError(f"module {module_name} cannot be imported: {_reason(e)}") from None
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"module {module_name} has no function {path}")
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{target} is not a function")
    return found


def _run_file(file: str) -> ModuleType:
    """Imports a file as a module, even if it has the name of another module (json.py)."""
    path = Path(file).resolve()
    sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {path.parent}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a module")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reason(e: BaseException, function: str = "") -> str:
    """The exception in words, with the innermost line of a user's file that led to it."""
    funcnet, python = Path(__file__).parents[1], Path(os.__file__).parent
    files = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(e.__traceback__)]
    is_ours = isinstance(e, TypeError | ValueError) and files[-1][0].is_relative_to(funcnet)
    users = [
        f" ({file.name}:{number})"
        for file, number in files
        if file.is_file()
        and not (file.is_relative_to(funcnet) or file.is_relative_to(python))
        and "site-packages" not in file.parts
    ]
    by = f"{function} raises " if function else ""
    return (str(e) if is_ours else by + line(e)) + "".join(users[-1:])


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
    """The sentence of a docstring that lists the saved residuals."""
    for f in (rule.fwd, rule.primal):
        found = re.search(r"Saves[^.]*\.", " ".join((inspect.getdoc(f) or "").split()))
        if found:
            return found[0]
    return "Residuals not documented."


if __name__ == "__main__":
    sys.exit(main())
