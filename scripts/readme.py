"""Generated parts of README files, each between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "funcnet").rglob("README.md"))]


def page(name: str) -> Path:
    """The file that has this part.

    Raises:
      ValueError: If none has.
    """
    for path in PAGES:
        if _part(name).search(path.read_text(encoding="utf-8")):
            return path
    raise ValueError(f"no README.md has a part <!-- {name}: begin --> … <!-- {name}: end -->")


def write(name: str, text: str) -> Path:
    """Puts the text in place of a part, and returns the file that has it.

    Raises:
      ValueError: If no file has it.
    """
    path = page(name)
    old = path.read_text(encoding="utf-8")
    path.write_text(_part(name).sub(lambda m: f"{m[1]}{text}\n{m[2]}", old), encoding="utf-8")
    return path


def _part(name: str) -> re.Pattern[str]:
    return re.compile(f"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
