"""What `train_lm.py` prints and draws of a run."""

import statistics

import numpy as np
from matplotlib.figure import Figure
from resumable import History
from trained import BLUE, DASHES, ORANGE


def describe(cost: dict[str, float]) -> str:
    """Formats the costs of compiling and running as one line."""
    return (
        f"{cost['tokens per second']:,.0f} tokens per second, "
        f"{cost['temporary bytes'] / 1e6:,.1f} MB of temporary memory, "
        f"compiled in {cost['compile seconds']:.1f} s"
    )


def compare(history: History, costs: dict[str, dict[str, float]]) -> str:
    """Summarises the results of `--rules both`."""
    hand, auto = history["hand"], history["autodiff"]
    ratio = statistics.median(h / a for h, a in zip(hand["seconds"], auto["seconds"], strict=True))
    part = lambda what: costs["hand"][what] / costs["autodiff"][what]
    return (
        f"hand rules compared with autodiff: {ratio:.3f} of the time (median of "
        f"{len(hand['seconds'])} alternating stretches), {part('temporary bytes'):.3f} of the "
        f"temporary memory, {part('compile seconds'):.3f} of the compile time\n"
        f"autodiff reaches {auto['held out'][-1]:.4f} bits per byte; the difference of parameters "
        "begins as a rounding error, which training amplifies"
    )


def plot(history: History, steps: int) -> Figure:
    """Plots bits per byte after each stretch of `steps` steps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in history.items():
        by = f", {name}" if len(history) > 1 else ""
        at = steps * np.arange(1, len(values["seconds"]) + 1)
        for what, colour in {"training": BLUE, "held out": ORANGE}.items():
            line = DASHES[name]
            axes.plot(at, values[what], f".{line}", color=colour, label=f"{what}{by}")
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
