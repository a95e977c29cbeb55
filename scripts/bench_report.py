"""The tables and plots of `bench.py`, from what it measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

Row = Mapping[str, Any]

OWN = ("hand", "autodiff", "checkpoint")
NAMES = {"hand": "by hand", "checkpoint": "checkpoint", "flax": "Flax"}
# Of Okabe and Ito, for all kinds of colour vision; markers differ too.
STYLES: dict[str, dict[str, Any]] = {
    "hand": {"color": "#0072B2", "marker": "o"},
    "autodiff": {"color": "#D55E00", "marker": "s"},
    "checkpoint": {"color": "#009E73", "marker": "^"},
    "flax": {"color": "#CC79A7", "marker": "D"},
    "tokamax": {"color": "#000000", "marker": "v"},
    "its products": {"color": "#56B4E9", "marker": "P"},
}
PLAIN = lambda x, _: f"{x:g}"
NO_LINE: dict[str, Any] = {"linestyle": "none"}


def table(rows: Sequence[Row]) -> str:
    """Ratios of time, and bytes, for the documentation."""
    lines = [
        "| rule | sizes | forward | time / autodiff | time / checkpoint | time / peer "
        "| temporary MB: hand, autodiff, checkpoint | chain, bytes: hand, autodiff, checkpoint |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        columns = row["candidates"]
        peers = [f"{spread(c)} {NAMES.get(k, k)}" for k, c in columns.items() if k not in OWN]
        cells = [
            f"`{row['rule']}`{row['case'].removeprefix(row['rule'])}",
            sizes(row),
            row["forward"],
            spread(columns["autodiff"]),
            spread(columns["checkpoint"]),
            ", ".join(peers),
            each(row, "temporary_bytes", megabytes),
            each(row, "chain_bytes", "{:.1f}".format),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def details(rows: Sequence[Row]) -> str:
    """What the other table leaves out."""
    lines = [
        "| rule | µs by hand | kept MB: hand, autodiff, checkpoint "
        "| compilation, s: hand, autodiff, checkpoint | target: time, temporary | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, median, high = row["candidates"]["hand"]["µs"]
        cells = [
            row["case"],
            f"{median:.0f} ({low:.0f}, {high:.0f})",
            each(row, "kept_bytes", megabytes),
            each(row, "compile_seconds", "{:.2f}".format),
            target(row),
            verdict(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def line(row: Row) -> str:
    """What is printed when a case has been measured."""
    columns = row["candidates"]
    ratios = [f"{NAMES.get(k, k)} {spread(c)}" for k, c in columns.items() if k != "hand"]
    text = (
        f"{row['case']}: time / {', '.join(ratios)}; MB {each(row, 'temporary_bytes', megabytes)}"
    )
    return f"{text}; {verdict(row)} {target(row)}" if row["own_target"] else text


def growth_line(study: Row) -> str:
    """What is printed when a growth has been measured."""
    power = lambda p: "–" if p is None else f"{p:.2f}"
    powers = [
        f"{NAMES.get(k, k)} {power(p['time'])}, {power(p['temporary_bytes'])}"
        for k, p in study["powers"].items()
    ]
    return f"  powers of {study['size']} in time, temporary bytes: {'; '.join(powers)}"


def verdict(row: Row) -> str:
    """Whether the medians reach the target."""
    return "reached" if row["reached"] else "missed"


def target(row: Row) -> str:
    """Such as "≤ 0.75, ≤ 0.5"."""
    bounds = (row["target"][k] for k in ("time", "temporary"))
    return ", ".join("–" if bound is None else f"≤ {bound:g}" for bound in bounds)


def sizes(row: Row) -> str:
    """Such as "n 512, c 1024"."""
    return ", ".join(f"{k} {n}" for k, n in row["sizes"].items())


def spread(column: Row) -> str:
    """The ratio of time: median and quartiles."""
    low, median, high = column["hand / this"]
    return f"{median:.2f} ({low:.2f}, {high:.2f})"


def each(row: Row, key: str, show: Callable[[float], str]) -> str:
    """A number of the rule, of autodiff and of autodiff with checkpoint."""
    values = [row["candidates"][name][key] for name in OWN]
    if all(value is None for value in values):
        return ""
    return ", ".join("–" if value is None else show(value) for value in values)


def megabytes(n: float) -> str:
    """Such as "16.8"; small numbers in one digit."""
    return f"{n / 1e6:.1f}" if n == 0 or n >= 5e4 else f"{n / 1e6:.0e}"


def plot(rows: Sequence[Row]) -> Figure:
    """Ratios of time with their quartiles, and temporary bytes, of all cases."""
    figure = Figure(figsize=(11, 1.6 + 0.28 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, row in enumerate(rows):
        for name, c in row["candidates"].items():
            y = i + 0.14 * (list(STYLES).index(name) - (len(STYLES) - 1) / 2)
            style = STYLES[name] | NO_LINE | {"markersize": 3.5}
            if name != "hand":
                low, median, high = c["hand / this"]
                error = [[median - low], [high - median]]
                left.errorbar(median, y, xerr=error, elinewidth=0.8, **style)
            if name in OWN and c["temporary_bytes"] is not None:
                right.plot(c["temporary_bytes"] / 1e6, y, **style)
        if row["own_target"] and row["target"]["time"]:
            left.plot(row["target"]["time"], i, "|", color="black", markersize=11)
    left.set_yticks(range(len(rows)), [f"{row['case']} ({sizes(row)})" for row in rows], fontsize=7)
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xscale("log")
    left.axvline(1, color="gray", linewidth=0.8)
    left.xaxis.set_major_formatter(PLAIN)
    left.set_xlabel("time by hand / time of the other, with quartiles (| target)")
    right.set_xscale("symlog", linthresh=0.01)  # it may be 0
    right.set_xlim(-0.003, None)
    right.xaxis.set_major_formatter(PLAIN)
    right.xaxis.set_minor_locator(NullLocator())
    right.set_xlabel("temporary memory (MB)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    legend(figure, left, {name for row in rows for name in row["candidates"]})
    return figure


def plot_growth(study: Row) -> Figure:
    """Time and temporary bytes over a size, both logarithmic."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, c in study["candidates"].items():
        medians = [q[1] for q in c["µs"]]
        errors = [[q[1] - q[0] for q in c["µs"]], [q[2] - q[1] for q in c["µs"]]]
        style = STYLES[name] | {"markersize": 5}
        left.errorbar(study["values"], medians, yerr=errors, elinewidth=0.8, **style)
        if None not in c["temporary_bytes"]:
            right.plot(study["values"], [n / 1e6 for n in c["temporary_bytes"]], **style)
    rest = ", ".join(f"{k} {n}" for k, n in study["rest"].items())
    figure.suptitle(f"{study['case']}{f' ({rest})' if rest else ''}")
    left.set(ylabel="time of value and gradient (µs)", yscale="log")
    right.set_yscale("symlog", linthresh=0.01)  # it may be 0
    right.yaxis.set_major_formatter(PLAIN)
    right.set(ylabel="temporary memory (MB)", ylim=(-0.003, None))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel(study["size"])
        axes.set_xticks(study["values"], [f"{n:,}" for n in study["values"]])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    legend(figure, left, study["candidates"])
    return figure


def legend(figure: Figure, axes: Axes, names: Any) -> None:
    """What the markers mean, below the axes."""
    present = [name for name in STYLES if name in names]
    marks = [axes.plot([], [], **STYLES[name], **NO_LINE)[0] for name in present]
    labels = [NAMES.get(name, name) for name in present]
    figure.legend(marks, labels, loc="outside lower center", ncols=len(present))
