"""The gallery in README.md: the question, the figure and the first claim of each experiment.

`python -m experiments all --docs` writes it. The pictures are in the folder gallery; README.md has
the gallery between the lines BEGIN and END.
"""

import html
import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from experiments.page import Entry, title
from scripts.command_line import write

HERE = Path(__file__).parent
BEGIN, END = "<!-- gallery: begin -->", "<!-- gallery: end -->"
GALLERY = re.compile(f"(?<={BEGIN}\n).*?(?={END})", re.DOTALL)
WIDTH = 700  # of a figure on the page, in CSS pixels; the pictures have 3/2 as many
COLOURS = 64  # of a picture: a figure has a few colours, and shades of them at the edges


def check_gallery(folder: Path) -> None:
    """Raises a ValueError if the gallery of this folder cannot be written, before all runs.

    Args:
      folder: The folder with README.md and the folder of the pictures, if that exists.
    """
    readme, pictures = folder / "README.md", folder / "gallery"
    try:
        if len(GALLERY.findall(readme.read_text(encoding="utf-8"))) != 1:
            raise ValueError(f"--docs needs one line {BEGIN} and one line {END} in {readme}")
        for place in [folder, *([pictures] if pictures.exists() else [])]:
            tempfile.TemporaryFile(dir=place).close()
    except OSError as e:
        raise ValueError(f"--docs cannot write the gallery of {folder}: {e.strerror}") from None


def write_gallery(entries: Sequence[Entry], folder: Path) -> None:
    """Writes the pictures and the part of README.md, and deletes pictures that are unused then.

    Args:
      entries: The results of the experiments.
      folder: The folder with README.md; see `check_gallery`.
    """
    pictures = {f"{entry.name}.png": small(entry.png) for entry in entries}
    readme, gallery = folder / "README.md", folder / "gallery"
    text = "\n".join(map(_section, entries))
    page = GALLERY.sub(lambda _: f"\n{text}\n", readme.read_text(encoding="utf-8"))
    gallery.mkdir(exist_ok=True)
    for name, png in pictures.items():
        write(gallery / name, lambda file, png=png: file.write(png))
    write(readme, lambda file: file.write(page.encode()))
    for path in gallery.iterdir():
        if path.name not in pictures:
            path.unlink()


def small(png: bytes) -> bytes:
    """The picture with a palette of a few colours, which takes about a third of the bytes."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    # The least frequent colours are thin lines; this method keeps them, the default does not.
    method = Image.Quantize.MAXCOVERAGE
    picture = picture.quantize(COLOURS, method, kmeans=3, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def _section(entry: Entry) -> str:
    question, claim = title(entry.docstring), html.escape(str(entry.claims[0]), quote=False)
    alt = html.escape(f"The figure of {entry.name}")
    return (
        f"### [{question}]({entry.name}.py)\n\n"
        f'<img src="gallery/{entry.name}.png" width="{WIDTH}" alt="{alt}">\n\n'
        f"{claim}\n"
    )
