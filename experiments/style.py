"""The style of the figures: colour-blind-safe colours, light grids, legends that cover no data."""

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The palette of Okabe & Ito, Color Universal Design, 2008. Lines also differ in their dashes.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLUE, RED, GREEN, BLACK, ORANGE, PINK, SKY)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MAP = "cividis"  # colour map for ordered values

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}


def panels(
    rows: int, columns: int, *, width: float = 7.0, height: float | None = None, **options: Any
) -> tuple[Figure, Any]:
    """A figure and an array of rows × columns axes.

    Args:
      rows: Number of rows of panels.
      columns: Number of columns of panels.
      width: Width of the figure in inches.
      height: Height of the figure in inches; by default the panels have the ratio 3 : 2.
      **options: Passed to `Figure.subplots`.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width, height or rows * width / columns * 2 / 3 + 0.4))
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def stacked(heights: tuple[float, ...], width: float, height: float) -> tuple[Figure, Any]:
    """A figure and its subfigures, one below the other, for `parts[i].subplots(…)`."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width, height))
        return figure, figure.subfigures(len(heights), 1, height_ratios=heights)


def line(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line of a panel."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def label(axes: Axes, title: str = "", x: str = "", y: str = "", **options: Any) -> None:
    """Sets the title and the axis labels of a panel."""
    axes.set(title=title, xlabel=x, ylabel=y, **options)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Draws the legend of one panel below the figure, for all panels, so that it covers no data."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
