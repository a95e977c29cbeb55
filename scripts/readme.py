"""Generated parts of the README files.

    python scripts/readme.py    corrects the links to rules

A link to a rule, [`relu`](activations.py#L82), leads to the line of its definition; it may be
written as [`relu`](activations.py). Tables stand between `<!-- NAME: begin -->` and
`<!-- NAME: end -->`, and are written by their own programs (`--write`).
"""

import inspect
import os
import re
from pathlib import Path

from funcnet import RULES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "funcnet").rglob("README.md")),
    ROOT / "scripts" / "README.md",
]


def page(name: str) -> Path:
    """The file that has this part.

    Raises:
      ValueError: If none has.
    """
    for path in PAGES:
        if _part(name).search(path.read_text(encoding="utf-8")):
            return path
    raise ValueError(f"no README.md has a part <!-- {name}: begin --> … <!-- {name}: end -->")


def text(name: str) -> str:
    """The text of a part; raises a ValueError if no file has it."""
    found = _part(name).search(page(name).read_text(encoding="utf-8"))
    return found[0].removeprefix(found[1]).removesuffix(found[2]).rstrip("\n") if found else ""


def write(name: str, text: str) -> Path:
    """Puts the text in place of a part, and returns the file that has it.

    Raises:
      ValueError: If no file has it.
    """
    path = page(name)
    old = path.read_text(encoding="utf-8")
    path.write_text(_part(name).sub(lambda m: f"{m[1]}{text}\n{m[2]}", old), encoding="utf-8")
    return path


def linked(page: Path) -> str:
    """The text of a page, in which each link to a rule leads to the line of its definition."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        if name not in RULES:
            return match[0]
        f = RULES[name].primal
        lines, first = inspect.getsourcelines(f)
        line = first + next(i for i, text in enumerate(lines) if text.startswith("def "))
        file = os.path.relpath(inspect.getfile(f), page.parent)
        return f"[`{name}`]({Path(file).as_posix()}#L{line})"

    return re.sub(r"\[`(\w+)`\]\([^)\s]*?\.py(?:#L\d+)?\)", link, page.read_text(encoding="utf-8"))


def _part(name: str) -> re.Pattern[str]:
    return re.compile(f"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(linked(each), encoding="utf-8")
