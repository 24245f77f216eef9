"""What models of several seeds have in common: their impulse response beside the true one, their frequency response.

For nearly linear models of one input and one output channel, or of as many outputs as inputs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sigexp.report.figures import png
from sigexp.report.response import around_middle, decibels
from sigexp.report.tiles import BEYOND, fitted_to, half_extent
from sigexp.signal.response import Response

MOST_CHANNELS = 4


def kernel(responses: Sequence[Response], true: np.ndarray) -> bytes | None:
    """The learned impulse response, [h, w] or [T], beside the true one with the same scale, and their difference.

    The median over seeds, sample by sample; of sequences a line for each seed. None where it is not one by one channel.
    """
    if any(r.impulse is None or r.impulse.shape[:2] != (1, 1) for r in responses):
        return None
    far = min(half_extent(true) + BEYOND, *(min(r.sensitivity.shape) // 2 - 1 for r in responses))
    learned = np.stack([around_middle(r.impulse[0, 0], true.ndim, far) for r in responses])  # type: ignore[index]
    expected = fitted_to(true, 2 * far + 1)
    off = float(np.linalg.norm(np.median(learned, 0) - expected) / np.linalg.norm(expected))
    draw = _kernel_images if true.ndim == 2 else _kernel_lines
    figure = draw(learned, expected)
    figure.suptitle(f"learned (median over {len(responses)} seeds) and true; distance {100 * off:.2g} % of its norm")
    return png(figure)


def _kernel_images(learned: np.ndarray, expected: np.ndarray) -> Figure:
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    middle = np.median(learned, 0)
    far = len(expected) // 2
    edge = (-far - 0.5, far + 0.5, far + 0.5, -far - 0.5)
    for axis, (name, shown) in zip(
        figure.subplots(1, 3),
        {"learned": middle, "true": expected, "learned - true": middle - expected}.items(),
        strict=True,
    ):
        limit = float(np.abs(shown if "-" in name else expected).max()) or 1.0
        image = axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=edge, interpolation="nearest")
        axis.set_title(name)
        figure.colorbar(image, ax=axis, shrink=0.7)
    return figure


def _kernel_lines(learned: np.ndarray, expected: np.ndarray) -> Figure:
    figure = Figure(figsize=(8.4, 2.8), layout="constrained")
    both, rest = figure.subplots(1, 2)
    offset = np.arange(len(expected)) - len(expected) // 2
    both.plot(offset, expected, color="black", linewidth=3.5, alpha=0.35, label="true")
    for seed, one in enumerate(learned):
        both.plot(offset, one, linewidth=1, color=f"C{seed}", label=f"learned, {seed + 1} of {len(learned)}")
        rest.plot(offset, one - expected, linewidth=1, color=f"C{seed}")
    both.legend(frameon=False)
    both.set_xlabel("samples from the impulse")
    rest.set_title("learned - true")
    return figure


def band(responses: Sequence[Response], true: np.ndarray | None, labels: Sequence[str] = ()) -> bytes | None:
    """Gain over frequency, along each axis at frequency 0 of the other: median over seeds, band from least to largest.

    From each input channel to the output channel of the same number; the true kernel's dashed. None where a model is
    not nearly linear, has no such pairs, or answers to all frequencies alike.
    """
    gains = [response.gains() for response in responses]
    shapes = {tuple(found.shape) for found in gains if found is not None}
    if None in gains or len(shapes) != 1 or all(set(r.field or ()) == {1} for r in responses):
        return None
    shape = shapes.pop()
    if shape[0] != shape[1] or shape[0] > MOST_CHANNELS:
        return None
    stack = np.stack([found.numpy() for found in gains if found is not None])  # [seeds, D, C, H, W] or [.., T]
    axes = len(shape) - 2
    figure = Figure(figsize=(4.2 * axes, 3.0), layout="constrained")
    names = ("down the columns", "along the rows") if axes == 2 else ("",)
    for i, panel in enumerate(figure.subplots(1, axes, squeeze=False)[0]):
        cut = stack.take(stack.shape[3 + (1 - i)] // 2, 3 + (1 - i)) if axes == 2 else stack
        _draw_band(panel, np.stack([cut[:, c, c] for c in range(shape[0])], 1), labels)
        if true is not None:
            line = true.sum(1 - i) if axes == 2 else true
            rates = np.linspace(0, 0.5, 200)
            at = np.arange(len(line)) - len(line) // 2
            gain = np.abs(np.exp(-2j * np.pi * rates[:, None] * at) @ line)
            panel.plot(rates, decibels(torch.from_numpy(gain)), "--", color="black", linewidth=1, label="true kernel")
        panel.set_xlabel(f"cycles per {'pixel ' + names[i] if axes == 2 else 'sample'}")
        panel.set_ylabel("gain in dB")
        panel.margins(x=0)
        panel.legend(frameon=False)
    return png(figure)


def _draw_band(panel: Axes, gains: np.ndarray, labels: Sequence[str]) -> None:
    """Gains [seeds, channels, F], zero frequency in the middle."""
    length = gains.shape[2]
    rates = (np.arange(length) - length // 2) / length
    levels = decibels(torch.from_numpy(gains[..., rates >= 0]))
    for channel in range(levels.shape[1]):
        name = labels[channel] if channel < len(labels) else f"channel {channel}" if levels.shape[1] > 1 else "learned"
        median = np.median(levels[:, channel], 0)
        panel.plot(rates[rates >= 0], median, color=f"C{channel}", linewidth=1.2, label=name)
        low, high = levels[:, channel].min(0), levels[:, channel].max(0)
        panel.fill_between(rates[rates >= 0], low, high, color=f"C{channel}", alpha=0.25, linewidth=0)
