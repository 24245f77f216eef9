"""Nets that tell shapes apart: images [B, C, H, W] -> logits [B, K].

ReLU stands behind max pooling throughout: max and ReLU commute, so the function is the same, on a fourth of the values.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigexp.layers.padding import GlobalMax
from sigexp.models.fit import MOST_DILATION, MOST_LAYERS, Shape, at_least, classes, images, odd


def vgg(
    input_shape: Shape,
    target_shape: Shape,
    *,
    channels: Sequence[int] = (8, 16, 32),
    head: str = "flatten",
    hidden: int = 100,
    outputs: int | None = None,
) -> nn.Module:
    """The lecture's net after Simonyan and Zisserman 2014: convolution, BatchNorm, ReLU and pooling, thrice.

    head: 'flatten' has a weight for every position in the first of its two linear layers, as in the lecture; 'max'
        takes the maximum over all positions before them.
    outputs: number of logits, by default the number of classes. The lecture's net has 10 for 2 classes.
    """
    images("vgg", input_shape, target_shape)
    number = classes("vgg", input_shape, target_shape)
    logits = number if outputs is None else outputs
    if logits < number:
        raise ValueError(f"model.outputs={outputs}: expected at least the number of classes, {number}")
    at_least("outputs", 1, logits)
    at_least("channels", 1, *channels)
    at_least("hidden", 1, hidden)
    height, width = (n // 2 ** len(channels) for n in input_shape[1:])
    if min(height, width) < 1:
        raise ValueError(f"model=vgg halves images {len(channels)} times; {list(input_shape)} is too small for that")
    layers: list[nn.Module] = []
    for before, after in pairwise([input_shape[0], *channels]):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.MaxPool2d(2), nn.ReLU()]
    heads: dict[str, tuple[nn.Module, int]] = {"flatten": (nn.Flatten(), height * width), "max": (GlobalMax(), 1)}
    if head not in heads:
        raise ValueError(f"model.head={head!r}: expected 'flatten' or 'max'")
    pooled, positions = heads[head]
    first = nn.Linear(channels[-1] * positions, hidden)
    return nn.Sequential(*layers, pooled, first, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, logits))


def fcn(
    input_shape: Shape,
    target_shape: Shape,
    *,
    channels: Sequence[int] = (8, 32, 32, 32),
    dilations: Sequence[int] = (1, 1, 1, 2),
    poolings: int = 2,
) -> nn.Module:
    """Fully convolutional: dilated 3x3 convolutions, then the maximum over all positions, then one linear layer.

    It finds a shape wherever it is, and takes images of any size. Each of the first `poolings` layers halves the image.
    """
    images("fcn", input_shape, target_shape)
    number = classes("fcn", input_shape, target_shape)
    at_least("channels", 1, *channels)
    at_least("dilations", 1, *dilations, most=MOST_DILATION)
    at_least("poolings", 0, poolings, most=MOST_LAYERS)
    if len(channels) != len(dilations):
        raise ValueError(f"model.dilations={list(dilations)}: expected one for each of model.channels={list(channels)}")
    layers: list[nn.Module] = []
    for i, ((before, after), step) in enumerate(zip(pairwise([input_shape[0], *channels]), dilations, strict=True)):
        layers += [nn.Conv2d(before, after, 3, padding=step, dilation=step), nn.BatchNorm2d(after)]
        layers += [nn.MaxPool2d(2)] if i < poolings else []
        layers += [nn.ReLU()] if i + 1 < len(channels) else []
    return nn.Sequential(*layers, GlobalMax(), nn.ReLU(), nn.Linear(channels[-1], number))


class Projection(nn.Module):
    """Sums along both axes, one stack of 1-D convolutions for both, and a head that compares what it found in each."""

    def __init__(
        self, in_channels: int, number: int, channels: Sequence[int], dilations: Sequence[int], kernel_size: int
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(in_channels)]
        for (before, after), step in zip(pairwise([in_channels, *channels]), dilations, strict=True):
            reach = step * (kernel_size // 2)
            layers += [nn.Conv2d(before, after, (1, kernel_size), padding=(0, reach), dilation=(1, step))]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        self.profile = nn.Sequential(*layers)
        hidden = channels[-1]
        self.head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, number))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.sum(3), x.sum(2)
        length = max(x.shape[2:])
        rows, columns = (F.pad(sums, (0, length - sums.shape[-1])) for sums in (rows, columns))
        found = self.profile(torch.stack([rows, columns], 2)).amax(3)  # [B, F, 2]
        return self.head(torch.cat([found.sum(2), (found[..., 0] - found[..., 1]).abs()], 1))


def projection(
    input_shape: Shape,
    target_shape: Shape,
    *,
    channels: Sequence[int] = (16, 32, 32),
    dilations: Sequence[int] = (1, 2, 4),
    kernel_size: int = 5,
) -> nn.Module:
    """Axis sums and 1-D convolutions: the extents of a shape along both axes, compared regardless of their order."""
    images("projection", input_shape, target_shape)
    number = classes("projection", input_shape, target_shape)
    at_least("channels", 1, *channels)
    at_least("dilations", 1, *dilations, most=MOST_DILATION)
    if len(channels) != len(dilations):
        raise ValueError(f"model.dilations={list(dilations)}: expected one for each of model.channels={list(channels)}")
    odd("kernel_size", kernel_size)
    return Projection(input_shape[0], number, channels, dilations, kernel_size)
