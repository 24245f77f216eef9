"""What a trained net looks at: how far, how evenly over the frame, and how much like a linear filter.

Receptive fields by gradients after W. Luo, Y. Li, R. Urtasun, R. Zemel, 'Understanding the effective receptive field in
deep convolutional neural networks', 2016 (arXiv:1701.04128). A net is any map of signals [B, C, H, W] or [B, C, T] to
signals of the same extent; to be exact, let it compute in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Net = Callable[[Tensor], Tensor]
NEARLY_LINEAR = 0.1  # superposition error below which an impulse response says something
OF_LARGEST = 0.0455  # share of the largest sensitivity that counts as seen (Luo et al.: 1 - 95.45 %)
ROUNDING = 1e-12  # share of the largest sensitivity that is rounding in float64
EPSILON = 1e-3  # height of the impulses that a net's derivative is taken with
FRAME_VALUES = 2**13  # that all but superposition is measured on, but two frames at least
ENLARGED_VALUES = 2**16  # largest frame that is looked at twice as large, so that its borders do not show


@dataclass(frozen=True)
class Response:
    """What was measured of a net; extents are those of the frames it was measured on.

    shift_error: rms change of the middle of the output when the input moves by one sample and the output is moved
        back, over the output's deviation. 0 for a convolution.
    superposition_error: rms difference between the output of a mean of two inputs and the mean of both outputs, over
        half the rms difference of those. 0 for a linear net with or without bias.
    sensitivity: rms over inputs of the derivative of the middle output, all channels, [H, W] or [T].
    field: samples along every axis that the middle output depends on; None where it reaches the border.
    effective_radius: of a disc (a segment) as large as what has at least 4.55 % of the largest sensitivity, in samples.
    impulse: derivative of every output by the middle input, mean over inputs, [D, C, H, W] or [D, C, T]; None where
        the superposition error is 0.1 or more.
    """

    shift_error: float
    superposition_error: float
    sensitivity: Tensor
    field: tuple[int, ...] | None
    effective_radius: float
    impulse: Tensor | None

    def gains(self) -> Tensor | None:
        """|frequency response| of the impulse response, zero frequency in the middle."""
        if self.impulse is None:
            return None
        axes = tuple(range(2, self.impulse.ndim))
        return torch.fft.fftshift(torch.fft.fftn(self.impulse, dim=axes).abs(), axes)

    def numbers(self) -> dict[str, Any]:
        """What result.json says of it. Radius in samples, frequency in cycles per sample along every axis."""
        found: dict[str, Any] = {
            "shift_error": self.shift_error,
            "superposition_error": self.superposition_error,
            "receptive_field": list(self.field) if self.field else None,
            "effective_radius": self.effective_radius,
        }
        gains = self.gains()
        if self.impulse is None or gains is None:
            return found
        place = np.unravel_index(int(gains.argmax()), gains.shape)[2:]  # torch's loads sympy first
        frequency = [abs(int(i) - n // 2) / n for i, n in zip(place, gains.shape[2:], strict=True)]
        return {
            **found,
            "dc_gain": self.impulse.flatten(2).sum(2).tolist(),
            "largest_gain": float(gains.max()),
            "largest_gain_frequency": frequency,
        }


def measure(net: Net, inputs: Tensor) -> Response:
    """Measure a net on examples [B, C, H, W] or [B, C, T], at least two. Raises ValueError for other shapes."""
    if inputs.ndim not in (3, 4) or len(inputs) < 2:
        raise ValueError(f"inputs {list(inputs.shape)}: expected two or more signals [B, C, T] or images [B, C, H, W]")
    frames = enlarged(net, inputs)
    frames = frames[: max(2, FRAME_VALUES // frames[0].numel())]
    seen = sensitivity(net, frames)
    bent = superposition_error(net, inputs)
    impulse = impulse_response(net, frames) if bent < NEARLY_LINEAR else None
    return Response(shift_error(net, frames), bent, seen, receptive_field(seen), effective_radius(seen), impulse)


def enlarged(net: Net, inputs: Tensor) -> Tensor:
    """Inputs mirrored about their border samples to twice the extent, where the net takes them and they are small.

    By an even number of samples, so that a mosaic keeps its phase.
    """
    sides = [n // 4 * 2 for n in reversed(inputs.shape[2:])]
    if 2 ** (inputs.ndim - 2) * inputs[0].numel() > ENLARGED_VALUES:
        return inputs
    frames = F.pad(inputs, [amount for n in sides for amount in (n, n)], mode="reflect")
    try:
        with torch.no_grad():
            return frames if net(frames[:1]).shape[2:] == frames.shape[2:] else inputs
    except RuntimeError:  # a net for one size
        return inputs


def middle(signals: Tensor) -> tuple[Any, ...]:
    """Index of the middle sample: [B, C, ...] -> [B, C]."""
    return (slice(None), slice(None), *(n // 2 for n in signals.shape[2:]))


def sensitivity(net: Net, inputs: Tensor) -> Tensor:
    """Rms over inputs of the derivative of the middle output by every input sample, all channels: [H, W] or [T].

    Channels of either side are summed in power, so that they do not cancel.
    """
    x = inputs.clone().requires_grad_()
    power = torch.zeros(inputs.shape[2:], dtype=inputs.dtype)
    with torch.enable_grad():
        outputs = net(x)[middle(inputs)].sum(0)
        for output in outputs if outputs.requires_grad else ():
            (slope,) = torch.autograd.grad(output, x, retain_graph=True)
            power += slope.square().sum(1).mean(0)
    return power.sqrt()


def receptive_field(seen: Tensor) -> tuple[int, ...] | None:
    """Twice the reach of a sensitivity map from its middle, plus 1, along every axis; None where it meets a border."""
    where = (seen > ROUNDING * seen.max()).nonzero()
    if not len(where):
        return None
    extents = []
    for axis, length in enumerate(seen.shape):
        first, last = int(where[:, axis].min()), int(where[:, axis].max())
        if first == 0 or last == length - 1:
            return None
        extents.append(2 * max(length // 2 - first, last - length // 2) + 1)
    return tuple(extents)


def effective_radius(seen: Tensor) -> float:
    """The radius in samples of a disc, or half the length of a segment, with as many samples as count as seen."""
    count = int((seen >= OF_LARGEST * seen.max()).sum()) if seen.max() > 0 else 0
    return (count / torch.pi) ** 0.5 if seen.ndim == 2 else count / 2


def shift_error(net: Net, inputs: Tensor) -> float:
    """Rms over shifts by one sample along each axis of the change of the output's middle third, over its deviation."""
    inner = (slice(None), slice(None), *(slice(n // 3, n - n // 3) for n in inputs.shape[2:]))
    with torch.no_grad():
        plain = net(inputs)
        moved = [net(inputs.roll(1, axis)).roll(-1, axis) for axis in range(2, inputs.ndim)]
    change = torch.stack([(one - plain)[inner].square().mean() for one in moved]).mean()
    return _ratio(change, plain[inner].var())


def superposition_error(net: Net, inputs: Tensor) -> float:
    """How far the output of the mean of two inputs is from the mean of the outputs, over half the outputs' difference.

    Means stay where the inputs are, which sums do not, and a bias does not matter.
    """
    half = len(inputs) // 2
    a, b = inputs[:half], inputs[half : 2 * half]
    with torch.no_grad():
        of_a, of_b, of_mean = net(a), net(b), net((a + b) / 2)
    return _ratio((of_mean - (of_a + of_b) / 2).square().mean(), ((of_a - of_b) / 2).square().mean())


def _ratio(power: Tensor, of: Tensor) -> float:
    return float((power / of).sqrt()) if of > 0 else float("inf") if power > 0 else 0.0


def impulse_response(net: Net, inputs: Tensor) -> Tensor:
    """Derivative of every output by the middle sample of every input channel, mean over inputs: [D, C, ...]."""
    responses = []
    for channel in range(inputs.shape[1]):
        impulse = torch.zeros_like(inputs[:1])
        impulse[(0, channel, *middle(inputs)[2:])] = EPSILON
        with torch.no_grad():
            responses.append((net(inputs + impulse) - net(inputs - impulse)).mean(0) / (2 * EPSILON))
    return torch.stack(responses, 1)
