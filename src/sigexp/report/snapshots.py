"""The pictures of a run as PNG, also while it goes on: examples, decisions, kernels, the members of the search.

Colours: input grey, target black, output blue, a reference orange; errors and kernels from blue over white to red.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from sigexp.report import canvas, plot
from sigexp.report.canvas import (
    BLACK,
    BLUE,
    GREY,
    OTHERS,
    PALE,
    Canvas,
    Color,
    color_bar,
    colored,
    enlarged,
    fitted,
    legend,
    rgb,
)
from sigexp.report.response import around_middle
from sigexp.report.tiles import BEYOND, fitted_to, half_extent, kernel_scales, shades, tiled
from sigexp.search.records import RoundRecord
from sigexp.signal.response import Response

SIDE = 96  # pixels of an example
DECISION_SIDE = 180
GAP = 6
HEAD = 22  # pixels of a row of names
PANEL = (210, 90)  # width and height of a sequence
MOST_LINES = 2  # channels of a sequence drawn as lines; more are an image
MOST_KERNELS = 48
FLOOR_DB = -60.0


def array(signal: Tensor) -> np.ndarray:
    return signal.detach().float().cpu().numpy()


def largest(values: np.ndarray) -> float:
    """The largest magnitude of what is finite; 1 where that is nothing or 0."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0


def examples(kind: str, columns: Mapping[str, Tensor], *, own_scale: bool = False, side: int = SIDE) -> bytes:
    """Rows of examples: input, output, target, references, and the output's error.

    columns: name -> [N, C, H, W] or [N, C, T]; 'input' and 'target' are always there. A column has one scale, so that
    examples can be compared, and outputs have that of the targets, so that a wrong gain or offset can be seen.
    own_scale: every output has its own, and an error would say nothing. side: pixels of an example.
    """
    if kind == "sequence":
        return sequences(columns)
    cells: dict[str, list[np.ndarray]] = {}
    for name, signals in columns.items():
        like = (signals if name == "input" else columns["target"])[:, 0].flatten()[None]
        alone = own_scale and name != "input"
        images = [rgb(shades(one.nan_to_num(0, 0, 0), None if alone else like)) for one in signals]
        low, high = float(like.min()), float(like.max())
        told = name in ("input", "target") and signals.shape[1] != 3 and not alone and (low, high) != (0.0, 1.0)
        cells[name.replace("_", " ") + (f"\n{low:.2g} to {high:.2g}" if told else "")] = images
    if "output" in columns and not own_scale:
        limit, errors = deviations(array(columns["output"] - columns["target"]))
        cells[f"error\n±{limit:.2g}"] = [colored(one, -limit, limit) for one in errors]
    shown = {name: [enlarged(image, side) for image in images] for name, images in cells.items()}
    widths = [max(image.shape[1] for image in images) for images in shown.values()]
    height, rows = max(image.shape[0] for images in shown.values() for image in images), len(columns["target"])
    head = HEAD + 14 * any("\n" in name for name in shown)
    drawn = Canvas(sum(widths) + GAP * (len(widths) - 1), head + rows * (height + GAP) - GAP)
    left = 0
    for (name, images), width in zip(shown.items(), widths, strict=True):
        for line, words in enumerate(name.split("\n")):
            drawn.text(left + width / 2, 11 + 15 * line, fitted(words, width), "mm", 12, GREY if line else BLACK)
        for row, image in enumerate(images):
            drawn.paste(image, left, head + row * (height + GAP))
        left += width + GAP
    return drawn.png(full_color=columns["target"].shape[1] == 3)


def deviations(error: np.ndarray) -> tuple[float, np.ndarray]:
    """Errors [N, C, H, W] as [N, H, W], the mean over channels, and three times their root mean square."""
    squares = np.square(error[np.isfinite(error)], dtype=np.float64)  # of a net that diverges, too large for float32
    return 3 * math.sqrt(float(squares.mean())) if squares.any() else 1e-12, error.mean(1)


def decisions(images: Tensor, captions: Sequence[str], wrong: Sequence[bool] = ()) -> bytes:
    """Images [N, C, H, W] in rows of four, each under its caption, which is red where the decision is wrong."""
    shown = [enlarged(rgb(shades(image)), DECISION_SIDE) for image in images]
    wide, (height, width) = min(4, len(shown)), shown[0].shape[:2]
    drawn = Canvas(wide * (width + GAP) - GAP, -(-len(shown) // wide) * (height + HEAD))
    for i, (image, caption) in enumerate(zip(shown, captions, strict=True)):
        left, top = i % wide * (width + GAP), i // wide * (height + HEAD)
        color = canvas.RED if wrong and wrong[i] else BLACK
        drawn.text(left + width / 2, top + HEAD / 2, fitted(caption, width), "mm", 12, color)
        drawn.paste(image, left, top + HEAD)
    return drawn.png(full_color=images.shape[1] == 3)


def sequences(columns: Mapping[str, Tensor]) -> bytes:
    """Three panels a row: the input; output, target and references over each other; the output's error."""
    others = [name for name in columns if name not in ("input", "output", "target")]
    over = [("target", columns["target"], canvas.LIGHT, 5)]
    over += [(name, columns[name], OTHERS[i % len(OTHERS)], 1) for i, name in enumerate(others)]
    panels: list[list[tuple[str, Tensor, Color, int]]] = [[("input", columns["input"], GREY, 1)], over]
    if "output" in columns:
        over.append(("output", columns["output"], BLUE, 1))
        panels.append([("output - target", columns["output"] - columns["target"], canvas.RED, 1)])
    (width, height), rows, left = PANEL, len(columns["target"]), 36
    named = [[(n.replace("_", " "), GREY if c == canvas.LIGHT else c) for n, _, c, _ in panel] for panel in panels]
    lines = max(len(legend_lines(entries, width)) for entries in named)
    head = HEAD + 15 * (lines - 1)
    drawn = Canvas(len(panels) * (width + left + GAP), head + rows * (height + 2 * GAP))
    for column, signals in enumerate(panels):
        start = column * (width + left + GAP) + left
        for line, entries in enumerate(legend_lines(named[column], width)):
            legend(drawn, start, HEAD / 2 + 15 * line, entries)
        for row in range(rows):
            top = head + row * (height + 2 * GAP)
            sequence_panel(drawn, start, top, [(array(s[row]), color, thick) for _, s, color, thick in signals])
    return drawn.png()


def legend_lines(entries: Sequence[tuple[str, Color]], width: float) -> list[list[tuple[str, Color]]]:
    """Names and colours in lines no wider than `width` pixels; a name that is wider has its own."""
    lines: list[list[tuple[str, Color]]] = [[]]
    for entry in entries:
        if lines[-1] and canvas.legend_width([*lines[-1], entry]) > width:
            lines.append([])
        lines[-1].append(entry)
    return lines


def sequence_panel(drawn: Canvas, left: int, top: int, signals: Sequence[tuple[np.ndarray, Color, int]]) -> None:
    """Signals [C, T] over each other; of many channels the last signal as an image."""
    width, height = PANEL
    last = signals[-1][0]
    if len(last) > MOST_LINES:
        limit = largest(last)
        image = canvas.cv2.resize(colored(last[::-1], -limit, limit), PANEL, interpolation=canvas.cv2.INTER_AREA)
        drawn.paste(image, left, top)
        return
    finite = np.concatenate([signal[np.isfinite(signal)] for signal, _, _ in signals])
    bounds = [float(finite.min()), float(finite.max())] if len(finite) else [0.0, 1.0]
    x = plot.Axis(0, max(1, last.shape[-1] - 1), left, left + width)
    y = plot.axis(bounds, top + height, top)
    drawn.frame(left, top, left + width, top + height)
    for value in bounds:
        drawn.text(left - 4, y.at(value), plot.short(float(f"{value:.2g}")), "rm", 10, GREY)
    for signal, color, thick in signals:
        for channel in signal:
            drawn.signal(x, y, channel, color, thick)


def confusion(counts: np.ndarray, labels: Sequence[str]) -> bytes:
    """Counts [K, K]: rows are what examples are, columns what the model says; shares of a row in colour."""
    count, size, left, top = len(counts), 84 if len(counts) <= 6 else 44, 130, 56
    drawn = Canvas(left + count * size + 10, top + count * size + 26)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = float(np.trace(counts)) / max(float(counts.sum()), 1.0)
    drawn.text(left, 14, f"{counts.sum():.0f} examples, {100 * (1 - right):.3g} % wrong", "lm", 13)
    for i, label in enumerate(labels):
        middle = i * size + size / 2
        drawn.text(left - 8, top + middle, fitted(label, left - 16), "rm")
        drawn.text(left + middle, top - 10, fitted(label, size), "mm")
    drawn.text(left + count * size / 2, top + count * size + 14, "columns: what the model says", "mm", 11, GREY)
    scale = np.array([[255, 255, 255], [160, 200, 235], [20, 70, 140]], np.float32)
    for i, j in np.ndindex(counts.shape):
        x, y = left + j * size, top + i * size
        drawn.paste(np.tile(colored(shares[i, j], 0, 1, scale), (size, size, 1)), x, y)
        drawn.frame(x, y, x + size, y + size)
        color = canvas.WHITE if shares[i, j] > 0.6 else BLACK
        drawn.text(x + size / 2, y + size / 2, f"{counts[i, j]:.0f}", "mm", 14 if count <= 6 else 10, color)
    return drawn.png()


def kernels(name: str, weight: Tensor) -> bytes:
    """A layer's weights, zero in white: kernels [D, C, h, w] or [D, C, T] side by side, a matrix as is."""
    values = array(weight)
    if values.ndim == 2:
        limit = largest(values)
        image, words = values / limit, f"from {-limit:.2g} to {limit:.2g}"
    else:
        planes = values.reshape(-1, *values.shape[2:])[:MOST_KERNELS]
        scales, words = kernel_scales(planes)
        image = planes / scales
    if values.ndim > 3:
        wide = min(12, math.ceil(math.sqrt(len(image))))
        image = tiled([list(image[i : i + wide]) for i in range(0, len(image), wide)], np.nan)
    shown = enlarged(colored(image, -1, 1), 400)
    if shown.shape[0] < 24:  # a single row
        shown = shown.repeat(24 // shown.shape[0] + 1, 0)
    drawn = Canvas(max(420, shown.shape[1]), HEAD + shown.shape[0])
    shape = "x".join(map(str, values.shape))
    drawn.text(2, HEAD / 2, fitted(f"{name} [{shape}], {words}", 415), "lm")
    drawn.paste(shown, 0, HEAD)
    return drawn.png()


def kernel_beside_true(response: Response, true: np.ndarray) -> bytes | None:
    """The learned impulse response beside the true one [h, w] or [T], and the gain of both over frequency.

    None where the model is not nearly linear or not of one channel each.
    """
    impulse = response.impulse
    if impulse is None or tuple(impulse.shape[:2]) != (1, 1):
        return None
    far = max(1, min(half_extent(true) + BEYOND, min(impulse.shape[2:]) // 2 - 1))
    learned, expected = around_middle(impulse[0, 0], true.ndim, far), fitted_to(true, 2 * far + 1)
    distance = float(np.linalg.norm(learned - expected) / np.linalg.norm(expected))
    drawn = Canvas(3 * 300 + 330 if true.ndim == 2 else 700, 310)
    drawn.text(4, 12, f"impulse response: the difference is {100 * distance:.2g} % of the true kernel's norm", "lm", 13)
    if true.ndim == 2:
        limit, rest = float(np.abs(expected).max()), learned - expected
        most = float(np.abs(rest).max()) or 1e-30
        for i, (name, values, bound) in enumerate(
            (("learned", learned, limit), ("true", expected, limit), ("learned - true", rest, most))
        ):
            drawn.text(300 * i + 135, 36, f"{name}, ±{bound:.2g}", "mm")
            shown = enlarged(colored(values, -bound, bound), 250)
            drawn.paste(shown, 300 * i + 4, 48)
            drawn.frame(300 * i + 4, 48, 300 * i + 4 + shown.shape[1], 48 + shown.shape[0])
        gains(drawn, learned.sum(0), expected.sum(0), 960, "gain in dB by cycles per pixel, along rows")
        return drawn.png()
    x = plot.axis([-far, far], 50, 330)
    y = plot.axis([*learned.tolist(), *expected.tolist()], 260, 56)
    drawn.axes(plot.Axis(-far, far, x.start, x.end), y, "samples from the impulse")
    drawn.signal(x, y, expected, PALE, 4)
    drawn.signal(x, y, learned, BLUE)
    legend(drawn, 52, 40, (("true", GREY), ("learned", BLUE)))
    gains(drawn, learned, expected, 410, "gain in dB by cycles per sample")
    return drawn.png()


def gains(drawn: Canvas, learned: np.ndarray, expected: np.ndarray, left: int, name: str) -> None:
    """|frequency response| of two kernels [T], zero frequency on the left."""
    rates = np.linspace(0, 0.5, 128)
    at = np.arange(len(learned)) - len(learned) // 2
    waves = np.exp(-2j * np.pi * rates[:, None] * at)
    levels = [np.maximum(20 * np.log10(np.abs(waves @ k).clip(1e-12)), FLOOR_DB) for k in (expected, learned)]
    x = plot.Axis(0, 0.5, left, left + 260)
    y = plot.axis([float(v) for both in levels for v in (both.min(), both.max())], 260, 56)
    drawn.axes(x, y, "", "")
    drawn.text(left + 130, 294, name, "mb", 12)
    drawn.signal(x, y, levels[0], PALE, 4)
    drawn.signal(x, y, levels[1], BLUE)
    legend(drawn, left + 2, 40, (("true", GREY), ("learned", BLUE)))


def members(rounds: Sequence[RoundRecord]) -> bytes | None:
    """Validation loss over the samples of the search: a dot for every member and round, coloured by its learning rate;
    the line of descent of the best member. None where every member diverged."""
    all_members = [(done.total_samples, member) for done in rounds for member in done.members]
    everyone = [(total, m) for total, m in all_members if math.isfinite(m.valid_loss)]
    if not everyone:
        return None
    places = {m.id: (total, m.valid_loss) for total, m in everyone}
    parents = {m.id: m.parent for _, m in everyone}
    drawn = Canvas(760, 430)
    losses = [loss for _, loss in places.values()]
    least = min(losses)
    # What is far off would leave nothing to see of the others; it stays at the upper edge.
    most = min(max(losses), max(float(np.quantile(losses, 0.9)) * 3, least * 10) if least > 0 else max(losses))
    x = plot.axis([done.total_samples for done in rounds], 78, 620, from_zero=True)
    y = plot.axis([least, most], 376, 40, log=least > 0 and most > 4 * least)
    drawn.axes(x, y, "member-samples of the search", "validation loss, a dot for every member and round")
    rates = [math.log10(m.hparams["lr"]) for _, m in everyone]
    low, high = min(rates), max(rates)
    colors = colored(np.array(rates), low, high, canvas.VIRIDIS)
    for (total, member), color in zip(everyone, colors.tolist(), strict=True):
        drawn.dot(x.at(total), y.at(min(member.valid_loss, most)), (color[0], color[1], color[2]), 4)
    descent: list[tuple[int, float]] = []
    here: int | None = rounds[-1].best.id
    while here is not None and here in places:
        descent.append(places[here])
        here = parents[here]
    if descent:
        drawn.line(np.array([[x.at(t), y.at(min(v, most))] for t, v in descent]), canvas.RED, 2)
        drawn.text(x.at(descent[0][0]) + 8, y.at(min(descent[0][1], most)), "best", "lm", 12, canvas.RED)
    drawn.text(687, 84, "learning rate", "mm")
    color_bar(drawn, 680, 100, 200, (f"{10**high:.2g}", f"{10**low:.2g}"), canvas.VIRIDIS)
    return drawn.png()
