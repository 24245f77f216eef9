"""What a trained model looks at, measured on validation examples, and its picture."""

import copy

import numpy as np
from torch import Tensor, nn

from sigexp.problem import Problem
from sigexp.report import canvas, plot
from sigexp.report.canvas import Canvas, colored, enlarged
from sigexp.report.plot import Axis
from sigexp.report.tiles import tiled
from sigexp.signal.response import Response, measure

VALUES = 2**16  # input values measured on, so that it takes a second or two at most
MOST_PANELS = 9  # pairs of channels shown
FLOOR_DB = -60.0
SIDE, MARGIN = 250, 24  # pixels of an image, and to its left
WIDE, TALL = 350, 312  # of a panel with its title and what is below
COLORS = (canvas.BLUE, *canvas.OTHERS)


def measured(model: nn.Module, problem: Problem) -> Response | None:
    """What a model looks at; None where its outputs are no signals of its inputs' extent."""
    shape, target = problem.shapes()
    if problem.kind == "class" or shape[1:] != target[1:]:
        return None
    count = max(2, min(8, VALUES // int(np.prod(shape))))
    inputs = problem.examples("valid", 0, min(count, problem.sizes["valid"] or count)).inputs
    net = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    return measure(net, inputs.double()) if len(inputs) >= 2 else None


def picture(response: Response) -> bytes:
    """Sensitivity of the middle output, impulse response and frequency response of a nearly linear model, as PNG."""
    linear = response.impulse is not None
    drawn = Canvas((3 if linear else 1) * WIDE, (26 if linear else 42) + TALL)
    field = "beyond the frame" if response.field is None else f"{'x'.join(map(str, response.field))} samples"
    seen = f"sees {field}, effective radius {response.effective_radius:.1f}"
    errors = f"shift error {response.shift_error:.2g}, superposition error {response.superposition_error:.2g}"
    for line, words in enumerate([f"{seen}; {errors}"] if linear else [seen, errors]):
        drawn.text(drawn.width / 2, 12 + 16 * line, words, "mm", 13)
    (_show_images if response.sensitivity.ndim == 2 else _show_lines)(drawn, drawn.height - TALL, response)
    return drawn.png()


def reach(response: Response) -> int:
    """How far around the middle pictures go: what is seen, or four effective radii, and never beyond the frame."""
    wanted = max(response.field) // 2 + 1 if response.field else int(4 * response.effective_radius) + 2
    return max(1, min(wanted, min(response.sensitivity.shape) // 2 - 1))


def around_middle(signals: Tensor, axes: int, far: int) -> np.ndarray:
    """The samples at most `far` from the middle along the last `axes` axes."""
    for axis in range(-axes, 0):
        signals = signals.narrow(axis, signals.shape[axis] // 2 - far, 2 * far + 1)
    return signals.detach().float().cpu().numpy()


def decibels(gains: Tensor) -> np.ndarray:
    return np.maximum(20 * np.log10(gains.float().cpu().numpy().clip(1e-12)), FLOOR_DB)


def grid(planes: np.ndarray) -> np.ndarray:
    """[D, C, H, W] as one image, outputs down and inputs across."""
    return tiled([list(row) for row in planes], np.nan)


def few(planes: Tensor) -> Tensor:
    """The first output and input channels, nine pairs at most."""
    outputs = planes[: max(1, MOST_PANELS // min(planes.shape[1], MOST_PANELS))]
    return outputs[:, :MOST_PANELS]


def _show_images(drawn: Canvas, top: int, response: Response) -> None:
    far, gains = reach(response), response.gains()
    around = f"{-far} to {far} samples"
    seen = around_middle(response.sensitivity, 2, far)
    seen = seen / max(float(seen.max()), 1e-30)
    _image(drawn, 0, top, seen, (0, 1), canvas.HEAT, "sensitivity of the middle output", around)
    if response.impulse is None or gains is None:
        return
    impulse = grid(around_middle(few(response.impulse), 2, far))
    limit = float(np.nanmax(np.abs(impulse))) or 1.0
    shades, pairs = canvas.BLUE_WHITE_RED, caption(response)
    _image(drawn, WIDE, top, impulse, (-limit, limit), shades, "impulse response", pairs or around)
    levels = grid(decibels(few(gains)))
    bounds = (float(np.nanmin(levels)), float(np.nanmax(levels)))
    words = pairs or "-0.5 to 0.5 cycles per pixel"
    _image(drawn, 2 * WIDE, top, levels, bounds, canvas.VIRIDIS, "gain in dB", words)


def _image(
    drawn: Canvas, left: int, top: int, values: np.ndarray, bounds: tuple[float, float], scale: np.ndarray, title: str,
    below: str,
) -> None:  # fmt: skip
    shown = enlarged(colored(values, *bounds, scale), SIDE)
    height, width = shown.shape[:2]
    left += MARGIN
    drawn.text(left + width / 2, top + 12, title)
    drawn.paste(shown, left, top + 24)
    drawn.frame(left, top + 24, left + width, top + 24 + height)
    drawn.text(left + width / 2, top + 24 + height + 4, below, "mt", 11, canvas.GREY)
    canvas.color_bar(drawn, left + width + 10, top + 24, height, (f"{bounds[1]:.2g}", f"{bounds[0]:.2g}"), scale)


def _show_lines(drawn: Canvas, top: int, response: Response) -> None:
    far, gains = reach(response), response.gains()
    seen = around_middle(response.sensitivity, 1, far)[None]
    _lines(drawn, 0, top, seen, (-far, far), "sensitivity of the middle output", "samples from it")
    if response.impulse is None or gains is None:
        return
    impulse = around_middle(few(response.impulse), 1, far)
    impulse = impulse.reshape(-1, impulse.shape[-1])
    positive = gains.shape[-1] // 2
    heights = decibels(few(gains))[..., positive:].reshape(impulse.shape[0], -1)
    last = (heights.shape[1] - 1) / gains.shape[-1]
    pairs = caption(response)
    title = f"impulse response, {pairs}" if pairs else "impulse response"
    _lines(drawn, WIDE, top, impulse, (-far, far), title, "samples from the impulse")
    _lines(drawn, 2 * WIDE, top, heights, (0, last), "gain in dB", "cycles per sample")


def _lines(
    drawn: Canvas, left: int, top: int, lines: np.ndarray, across: tuple[float, float], title: str, below: str
) -> None:
    """Lines [N, T] over what is across."""
    x = Axis(*across, left + 62, left + WIDE - 16)
    y = plot.axis([float(lines.min()), float(lines.max())], top + 24 + SIDE, top + 28)
    drawn.axes(x, y, below)
    drawn.text((x.start + x.end) / 2, top + 12, title)
    for i, line in enumerate(lines):
        drawn.signal(x, y, line, COLORS[i % len(COLORS)])


def caption(response: Response) -> str:
    assert response.impulse is not None
    outputs, inputs = response.impulse.shape[:2]
    return "" if outputs == inputs == 1 else f"outputs by inputs ({outputs} x {inputs})"
