"""Charts of several runs, and what the demonstrations share, drawn by matplotlib: it takes a second or two to load."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.rcParams.update({"font.size": 8, "axes.titlesize": 8})
DPI = 100
LABEL = 0.045  # height of a level's name, as a share of the axes
PIXELS: Mapping[str, Any] = {"interpolation": "nearest"}


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def curves(lines: Mapping[str, Sequence[tuple[int, float]]], levels: Mapping[str, float], metric: str) -> bytes:
    """A metric over samples of training, a line for each name, references as dashed levels with their names."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, points in lines.items():
        axis.plot([x for x, _ in points], [y for _, y in points], marker=".", label=name)
    measured = [y for points in lines.values() for _, y in points]
    positive = [value for value in (*measured, *levels.values()) if value > 0]
    if min(measured, default=0) > 0 and max(positive) > 50 * min(positive):
        axis.set_yscale("log")
        levels = {name: level for name, level in levels.items() if level > 0}
    for level in levels.values():
        axis.axhline(level, color="0.5", linewidth=0.8, linestyle="--")
    name_levels(axis, levels)
    axis.set_xlabel("member-samples")
    axis.set_ylabel(f"{metric}, validation data")
    axis.legend(frameon=False)
    return png(figure)


def name_levels(axis: Axes, levels: Mapping[str, float]) -> None:
    """Names at the right of the axes, each at its level or, where names would meet, right above the one below."""
    axis.autoscale_view()  # else the limits are found when it is drawn
    to_axes = axis.transData + axis.transAxes.inverted()
    below = -1.0
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        below = max(float(to_axes.transform((0, level))[1]), below + LABEL)
        axis.annotate(
            name, (1, below), xycoords="axes fraction", xytext=(3, 0), textcoords="offset points", va="center"
        )
