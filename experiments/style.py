"""How the figures look: colours for all kinds of colour vision, light grids, no data covered."""

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito, Color Universal Design, 2008. Lines differ in their dashes too.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MAP = "cividis"  # of ordered numbers

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}


def panels(
    rows: int, columns: int, *, width: float = 9.0, height: float | None = None, **options: Any
) -> tuple[Figure, Any]:
    """A figure and an array of rows × columns axes.

    Args:
      rows: Rows of panels.
      columns: Columns of panels.
      width: Of the figure, in inches.
      height: Of the figure; by default the panels are 3 : 2.
      **options: Of `Figure.subplots`.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width, height or rows * width / columns * 2 / 3 + 0.4))
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def stacked(heights: tuple[float, ...], width: float, height: float) -> tuple[Figure, Any]:
    """A figure and parts of it below each other, for `parts[i].subplots(…)`."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width, height))
        return figure, figure.subfigures(len(heights), 1, height_ratios=heights)


def line(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line of a panel."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def label(axes: Axes, title: str = "", x: str = "", y: str = "", **options: Any) -> None:
    """Names a panel and its axes."""
    axes.set(title=title, xlabel=x, ylabel=y, **options)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The legend of one panel, for all of them, where it covers no data."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
