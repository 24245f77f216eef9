"""Starts that know the data: a two-layer net that begins as the best linear filter of the pixels it sees.

A random start has to find that filter first, which gradient descent does slowly and, where the layers are badly
conditioned, never quite; from there on every step is what the nonlinearity gains.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sigexp.bounds import Convolution, same_extent
from sigexp.layers.chain import chain
from sigexp.problem import Batch
from sigexp.signal import least_squares

EXAMPLES = 2000  # of the training data, that the filter is fitted to
LINEAR_RMS = 0.3  # of what enters the nonlinearity where it stands for the filter: nearly a straight line there
FEATURE_RMS = 8.0  # of what enters it elsewhere, where a sigmoid is nearly a step
RIDGE = 1e-8  # of the equations' mean diagonal


@dataclass(frozen=True)
class TwoLayers:
    """Convolution, smooth nonlinearity, convolution."""

    first: Convolution
    nonlinearity: nn.Module
    second: Convolution

    @property
    def window(self) -> tuple[int, int]:
        """Taps along each axis that the two see together; a sequence is an image one pixel high."""
        (h, w), (i, j) = _kernel(self.first), _kernel(self.second)
        return h + i - 1, w + j - 1


def two_layers(model: nn.Module) -> TwoLayers:
    """The layers of a model that can start as a linear filter; a ValueError says why another cannot."""
    layers = chain(model)
    if len(layers) != 3 or not (same_extent(layers[0]) and same_extent(layers[2])):
        raise ValueError(
            "trainer.start=least_squares is for two convolutions with a nonlinearity between them (model=deep); "
            "use trainer.start=random"
        )
    found = TwoLayers(*layers)  # type: ignore[arg-type]
    if _at_zero(found.nonlinearity)[1] is None:
        raise ValueError(
            "trainer.start=least_squares needs a nonlinearity that is smooth at 0 with a slope there, such as "
            "centred_sigmoid or tanh"
        )
    needed = _linear_channels(found)
    if found.first.out_channels < needed:
        raise ValueError(f"trainer.start=least_squares needs model.channels of {needed} at least")
    return found


def least_squares_filter(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The best linear filter of what `model` sees: kernel [D, C, h, w] and bias [D], float64, fitted to `batch`."""
    inputs, targets = (part[:, :, None] if part.ndim == 3 else part for part in batch)
    return least_squares.fit_convolution(inputs, targets, two_layers(model).window)


def begin(model: nn.Module, kernel: Tensor, bias: Tensor, inputs: Tensor) -> None:
    """Give the model weights with which it computes the filter [D, C, h, w], but for the nonlinearity's slight bend.

    Some channels are random filters so weak that the nonlinearity is nearly a straight line, and the second layer
    combines them with the least weights that give the kernel: with fewer, larger ones the first steps of an optimizer
    would destroy it. The other channels are random filters far into the bend, which do not reach the output yet.
    inputs: examples that set the scales.
    """
    layers = two_layers(model)
    first, second = layers.first, layers.second
    (h, w), (i, j) = _kernel(first), _kernel(second)
    value, slope = _at_zero(layers.nonlinearity)
    assert slope is not None
    assert first.bias is not None
    assert second.bias is not None
    few = _linear_channels(layers)
    filters = torch.randn(first.out_channels, first.in_channels, h, w)
    filters[few:] = _without_means(filters[few:])
    with torch.no_grad():
        first.weight.copy_(filters.view_as(first.weight))
        first.bias.zero_()
        strength = first(inputs).transpose(0, 1).flatten(1).square().mean(1).sqrt()
        wanted = torch.full_like(strength, FEATURE_RMS)
        wanted[:few] = LINEAR_RMS
        scale = torch.where(strength > 0, wanted / strength, 1.0)
        first.weight.mul_(scale.view(-1, *[1] * (first.weight.ndim - 1)))
        filters = first.weight.view_as(filters)[:few].double() * slope
        # Column (d, y, x): what a weight 1 of the second layer at tap (y, x) of channel d adds to the kernel.
        reach = filters.new_zeros(first.in_channels, *layers.window, few, i, j)
        for y in range(i):
            for x in range(j):
                reach[:, y : y + h, x : x + w, :, y, x] = filters.permute(1, 2, 3, 0)
        reach = reach.flatten(3).flatten(0, 2)
        gram = reach @ reach.T
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        taps = reach.T @ torch.linalg.solve(gram + ridge, kernel.flatten(1).T)
        out = torch.zeros(second.out_channels, first.out_channels, i, j, dtype=taps.dtype)
        out[:, :few] = taps.T.view(-1, few, i, j)
        second.weight.copy_(out.view_as(second.weight))
        second.bias.copy_(bias - value * out.sum((1, 2, 3)))


def _without_means(filters: Tensor) -> Tensor:
    """Filters [D, C, h, w] that see no constant, not even on every second pixel, as of one colour in a mosaic."""
    filters = filters.clone()
    for y in range(min(2, filters.shape[2])):
        for x in range(min(2, filters.shape[3])):
            phase = filters[:, :, y::2, x::2]
            phase -= phase.mean((2, 3), keepdim=True)
    return filters


def _kernel(layer: Convolution) -> tuple[int, int]:
    height, width = (1, *layer.kernel_size)[-2:]
    return height, width


def _linear_channels(layers: TwoLayers) -> int:
    """How many stand for the filter: twice as many as give the second layer a weight for each of its taps."""
    (height, width), (i, j) = layers.window, _kernel(layers.second)
    return 2 * math.ceil(layers.first.in_channels * height * width / (i * j))


def _at_zero(function: nn.Module) -> tuple[float, float | None]:
    """Value and slope at 0; no slope where there is a corner or it is flat."""
    step = 1e-4
    points = torch.tensor([-step, 0.0, step], dtype=torch.float64)
    with torch.no_grad():
        below, value, above = function(points).tolist()
    left, right = (value - below) / step, (above - value) / step
    smooth = abs(left - right) < 1e-2 * max(abs(left), abs(right))
    return value, (left + right) / 2 if smooth else None
