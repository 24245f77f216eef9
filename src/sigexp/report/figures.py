"""Pictures of examples, predictions and learned kernels, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

matplotlib.rcParams.update({"font.size": 8, "axes.titlesize": 8})
DPI = 100
LABEL = 0.045  # height of a level's name, as a share of the axes
UNEQUAL = 4.0  # times the usual kernel: beside a larger one the others would be pale
PIXELS: Mapping[str, Any] = {"interpolation": "nearest"}


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def room(figure: Figure, lines: int = 1) -> None:
    """For axes without ticks below titles of some lines; a layout engine takes longer than all the drawing."""
    width, height = figure.get_size_inches()
    top = 1 - (0.08 + 0.14 * lines) / height
    figure.subplots_adjust(0.05 / width, 0.05 / height, 1 - 0.05 / width, top, wspace=0.04)


def shades(image: Tensor, like: Tensor | None = None) -> np.ndarray:
    """One image [C, H, W] as RGB [H, W, 3] in 0..1: colours as they are, a single channel in grey between the extremes
    of `like` (by default its own)."""
    array = image.detach().float().cpu().numpy()
    if array.shape[0] == 3:
        return array.transpose(1, 2, 0).clip(0, 1)
    scale = image if like is None else like
    low, high = float(scale[0].min()), float(scale[0].max())
    grey = ((array[0] - low) / max(high - low, 1e-6)).clip(0, 1)
    return np.repeat(grey[:, :, None], 3, axis=2)


def tiled(rows: Sequence[Sequence[np.ndarray]], fill: float = 1.0) -> np.ndarray:
    """Images of one size, [H, W] or [H, W, 3], as one, with a gap between them: axes are slow, and images are not.

    A gap is a 32nd of an image, at least a pixel; where images are missing from the last row there is gap.
    """
    first = rows[0][0]
    (height, width), gap = first.shape[:2], max(1, max(first.shape[:2]) // 32)
    extent = (len(rows) * (height + gap) - gap, max(map(len, rows)) * (width + gap) - gap)
    whole = np.full((*extent, *first.shape[2:]), fill, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            whole[i * (height + gap) :, j * (width + gap) :][:height, :width] = image
    return whole


def example_rows(kind: str, columns: Mapping[str, Tensor]) -> bytes:
    """A grid of signals: a column per name ('input', 'output', 'target', a reference), a row per example.

    Columns hold [N, C, H, W] or [N, C, T].
    """
    if kind == "sequence":
        return sequence_rows(columns)
    rows = len(columns["target"])
    height, width = next(iter(columns.values())).shape[-2:]
    figure = Figure(figsize=(1.7 * len(columns), 1.7 * height / width * rows + 0.2))
    room(figure, lines=2)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, (name, images) in zip(axes, columns.items(), strict=True):
        # One scale for a column, so that examples can be compared, and outputs on that of the targets, so that a wrong
        # gain or offset can be seen.
        like = (images if name == "input" else columns["target"])[:, 0].flatten()[None]
        axis.imshow(tiled([[shades(image, like)] for image in images]), **PIXELS)
        axis.set_axis_off()
        low, high = float(like.min()), float(like.max())
        told = name in ("input", "target") and images.shape[1] != 3 and (low, high) != (0.0, 1.0)
        axis.set_title(f"{name}\n{low:.3g} to {high:.3g}" if told else name)
    return png(figure)


def class_grid(images: Tensor, captions: Sequence[str]) -> bytes:
    """Images [N, C, H, W] in rows of four, each under its caption."""
    wide = min(4, len(images))
    high = -(-len(images) // wide)
    figure = Figure(figsize=(2.0 * wide, 2.2 * high), layout="tight")
    axes = figure.subplots(high, wide, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(shades(image), **PIXELS)
        axis.set_title(caption)
    return png(figure)


def sequence_rows(columns: Mapping[str, Tensor]) -> bytes:
    """Sequences [N, C, T] as lines over samples, one panel per example and channel count; many channels as an image."""
    rows = len(next(iter(columns.values())))
    lines = {name: s for name, s in columns.items() if s.shape[1] <= 2}
    pictures = {name: s for name, s in columns.items() if s.shape[1] > 2}
    lengths = sorted({s.shape[-1] for s in lines.values()}, reverse=True)
    panels = [{n: s for n, s in lines.items() if s.shape[-1] == length} for length in lengths]
    wide = len(panels) + len(pictures)
    figure = Figure(figsize=(4.5 * wide if wide > 1 else 8, 1.7 * rows + 0.3), layout="tight")
    axes = figure.subplots(rows, wide, squeeze=False)
    styles = {
        "target": {"linewidth": 3.5, "alpha": 0.35, "color": "black"},
        "input": {"linewidth": 0.8, "color": "0.6"},
    }
    for row in range(rows):
        for axis, panel in zip(axes[row], panels, strict=False):
            for name, signals in panel.items():
                for channel, signal in enumerate(signals[row].detach().float().cpu().numpy()):
                    label = name if channel == 0 else None
                    axis.plot(signal, label=label, **styles.get(name, {"linewidth": 1.1}))
            axis.margins(x=0)
            if row == 0:
                axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, fontsize=7, frameon=False)
        for axis, (name, signals) in zip(axes[row][len(panels) :], pictures.items(), strict=True):
            axis.imshow(signals[row].detach().float().cpu().numpy(), aspect="auto", origin="lower")
            axis.set_title(name)
    return png(figure)


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


def kernel_weights(model: nn.Module) -> tuple[str, Tensor] | None:
    """The first convolution or fully connected layer worth a picture: its name and weight."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            return name or "convolution", module.weight.detach()
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
            return name or "convolution", module.weight.detach()
        if isinstance(module, nn.Linear):
            return name or "linear", module.weight.detach()
    return None


def kernel_scales(planes: np.ndarray) -> tuple[np.ndarray, str]:
    """What the kernels [N, ...] are divided by to lie in -1..1, [N, 1, ...], and that in words.

    One scale for all, unless one of them would leave the others pale: then each has its own.
    """
    largest = np.abs(planes).max(axis=tuple(range(1, planes.ndim)), keepdims=True)
    limit, usual = float(largest.max()) or 1.0, float(np.median(largest))
    if limit > UNEQUAL * usual > 0:
        return np.where(largest > 0, largest, 1.0), f"each scaled to its own largest, {usual:.2g} to {limit:.2g}"
    return np.full_like(largest, limit), f"from {-limit:.2g} to {limit:.2g}"


def kernels(name: str, weight: Tensor, most: int = 64) -> bytes:
    """A layer's kernels as a grid, zero in the middle of the colours."""
    array = weight.float().cpu().numpy()
    style: dict[str, Any] = {"cmap": "RdBu_r", "interpolation": "nearest"}
    if array.ndim == 2:
        limit = float(np.abs(array).max()) or 1.0
        figure = Figure(figsize=(5, 4.5), layout="tight")
        axis = figure.subplots()
        step = max(1, max(array.shape) // 512)
        shown = axis.imshow(array[::step, ::step], aspect="auto", vmin=-limit, vmax=limit, **style)
        axis.set_title(f"{name}: {array.shape[0]} x {array.shape[1]}")
        figure.colorbar(shown)
        return png(figure)
    planes = array.reshape(-1, *array.shape[2:])[:most]
    scales, words = kernel_scales(planes)
    planes = planes / scales
    wide = min(8, len(planes))
    high = -(-len(planes) // wide)
    figure = Figure(figsize=(max(3.5, 1.1 * wide), max(3.0, 1.1 * high) + 0.3))
    room(figure)
    axis = figure.subplots()
    axis.set_axis_off()
    if planes.ndim == 2:
        taps = np.linspace(-0.4, 0.4, planes.shape[1])
        for number, plane in enumerate(planes):
            column, middle = number % wide, -(number // wide)
            axis.plot([column - 0.4, column + 0.4], [middle, middle], color="0.7", linewidth=0.5)
            axis.plot(column + taps, middle + 0.45 * plane, color="C0", linewidth=1)
    else:
        rows = [list(planes[i : i + wide]) for i in range(0, len(planes), wide)]
        axis.imshow(tiled(rows, np.nan), vmin=-1, vmax=1, **style)
    axis.set_title(f"{name}: {' x '.join(map(str, array.shape))}, {words}")
    return png(figure)
