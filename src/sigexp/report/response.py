"""What a trained model looks at, measured on validation examples, and its picture."""

import copy

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from sigexp.problem import Problem
from sigexp.report.figures import png, tiled
from sigexp.signal.response import Response, measure

VALUES = 2**16  # input values measured on, so that it takes a second or two at most
MOST_PANELS = 9  # pairs of channels shown
FLOOR_DB = -60.0
ROOM = {"left": 0.04, "right": 0.98, "bottom": 0.13, "top": 0.84, "wspace": 0.18}  # of the figure, for the panels
ROOM_ONE = {"left": 0.12, "right": 0.92, "bottom": 0.1, "top": 0.79}


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
    panels = 1 if response.impulse is None else 3
    figure = Figure(figsize=(3.6 * panels, 3.4))
    figure.subplots_adjust(**(ROOM if panels > 1 else ROOM_ONE))  # a layout engine takes longer than all the drawing
    axes = figure.subplots(1, panels, squeeze=False)[0]
    show = _show_images if response.sensitivity.ndim == 2 else _show_lines
    show(figure, list(axes), response)
    field = "beyond the frame" if response.field is None else f"{'x'.join(map(str, response.field))} samples"
    figure.suptitle(
        f"sees {field}, effective radius {response.effective_radius:.1f}"
        + ("\n" if panels == 1 else "; ")
        + f"shift error {response.shift_error:.2g}, superposition error {response.superposition_error:.2g}"
    )
    return png(figure)


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


def _show_images(figure: Figure, axes: list[Axes], response: Response) -> None:
    far = reach(response)
    seen = around_middle(response.sensitivity, 2, far)
    edge = (-far - 0.5, far + 0.5)
    shown = axes[0].imshow(seen / max(float(seen.max()), 1e-30), cmap="magma", extent=(*edge, edge[1], edge[0]))
    axes[0].set_title("sensitivity of the middle output, of its largest")
    figure.colorbar(shown, ax=axes[0], shrink=0.8)
    gains = response.gains()
    if response.impulse is None or gains is None:
        return
    impulse = grid(around_middle(few(response.impulse), 2, far))
    limit = float(np.nanmax(np.abs(impulse))) or 1.0
    shown = axes[1].imshow(impulse, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[1].set_title("impulse response" + caption(response))
    figure.colorbar(shown, ax=axes[1], shrink=0.8)
    one = gains.shape[0] == gains.shape[1] == 1
    shown = axes[2].imshow(grid(decibels(few(gains))), extent=(-0.5, 0.5, 0.5, -0.5) if one else None)
    axes[2].set_title("gain in dB" + (", by cycles per pixel" if one else caption(response)))
    figure.colorbar(shown, ax=axes[2], shrink=0.8)
    for axis in axes[1:] if not one else axes[1:2]:
        axis.set_xticks([])
        axis.set_yticks([])


def _show_lines(figure: Figure, axes: list[Axes], response: Response) -> None:
    far = reach(response)
    offset = np.arange(-far, far + 1)
    axes[0].plot(offset, around_middle(response.sensitivity, 1, far))
    axes[0].set_title("sensitivity of the middle output")
    axes[0].set_xlabel("samples from it")
    gains = response.gains()
    if response.impulse is None or gains is None:
        return
    frequency = (np.arange(gains.shape[-1]) - gains.shape[-1] // 2) / gains.shape[-1]
    impulse, heights = around_middle(few(response.impulse), 1, far), decibels(few(gains))
    for output, channel in np.ndindex(impulse.shape[:2]):
        axes[1].plot(offset, impulse[output, channel])
        axes[2].plot(frequency[frequency >= 0], heights[output, channel, frequency >= 0])
    axes[1].set_title("impulse response" + caption(response))
    axes[1].set_xlabel("samples from the impulse")
    axes[2].set_title("gain in dB")
    axes[2].set_xlabel("cycles per sample")


def caption(response: Response) -> str:
    assert response.impulse is not None
    outputs, inputs = response.impulse.shape[:2]
    return "" if outputs == inputs == 1 else f", outputs by inputs ({outputs} x {inputs})"
