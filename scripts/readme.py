"""Generated parts of README.md, each between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def write(name: str, text: str) -> None:
    """Puts the text in place of a part.

    Raises:
      ValueError: If README.md has no such part.
    """
    readme = README.read_text(encoding="utf-8")
    part = re.compile(f"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    if not part.search(readme):
        raise ValueError(f"README.md has no part <!-- {name}: begin --> … <!-- {name}: end -->")
    README.write_text(part.sub(lambda m: f"{m[1]}{text}\n{m[2]}", readme), encoding="utf-8")
