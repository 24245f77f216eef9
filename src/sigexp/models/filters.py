"""Convolution filters, linear and with a nonlinearity: every output has its input's extent, at any size.

Shapes: images (C, H, W) or sequences (C, T); `separable` and `separable_sigmoid` take images only, `fc` anything.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from sigexp.layers.activations import pointwise
from sigexp.layers.color import LinearizeSRGB
from sigexp.layers.fft_conv import MOST_CHANNEL_PAIRS, SMALLEST_KERNEL, FFTConv2d
from sigexp.layers.residual import Residual, kaiming, zero
from sigexp.models.fit import (
    BATCH_NORM,
    CONVOLUTION,
    MOST_DILATION,
    Shape,
    at_least,
    images,
    odd,
    same_extent,
    two,
)

FC_MOST_WEIGHTS = 2**28  # 1 GB of float32 a member


def linear(input_shape: Shape, target_shape: Shape, *, kernel_size: int = 15) -> nn.Module:
    """One convolution: the general FIR filter."""
    rank = same_extent("linear", input_shape, target_shape)
    return convolution(rank, input_shape[0], target_shape[0], odd("kernel_size", kernel_size))


def convolution(rank: int, in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    """A zero-padded convolution over `rank` axes, in two of them by FFT where that is quicker."""
    if rank == 2 and kernel_size >= SMALLEST_KERNEL and in_channels * out_channels <= MOST_CHANNEL_PAIRS:
        return FFTConv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return CONVOLUTION[rank](in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def separable(input_shape: Shape, target_shape: Shape, *, kernel_size: int = 15) -> nn.Module:
    """A convolution down the columns, then one along the rows: an FIR filter of rank 1 where there is one channel."""
    images("separable", input_shape, target_shape)
    same_extent("separable", input_shape, target_shape)
    reach = odd("kernel_size", kernel_size) // 2
    return nn.Sequential(
        nn.Conv2d(input_shape[0], target_shape[0], (kernel_size, 1), padding=(reach, 0)),
        nn.Conv2d(target_shape[0], target_shape[0], (1, kernel_size), padding=(0, reach)),
    )


def fc(input_shape: Shape, target_shape: Shape) -> nn.Module:
    """Every output from every input: a linear layer. It works at the size it was made for only."""
    weights = prod(input_shape) * prod(target_shape)
    if weights > FC_MOST_WEIGHTS:
        raise ValueError(
            f"model=fc would need {weights:.2g} weights, {4e-9 * weights:.0f} GB a member, for inputs "
            f"{list(input_shape)} and targets {list(target_shape)}; choose a convolution"
        )
    flat = nn.Linear(prod(input_shape), prod(target_shape))
    return nn.Sequential(nn.Flatten(), flat, nn.Unflatten(1, tuple(target_shape)))


def conv1x1(input_shape: Shape, target_shape: Shape) -> nn.Module:
    """A matrix applied to the channels of every sample."""
    conv = CONVOLUTION[same_extent("conv1x1", input_shape, target_shape)]
    return conv(input_shape[0], target_shape[0], 1)


def conv1x1_degamma(input_shape: Shape, target_shape: Shape) -> nn.Module:
    """The sRGB curve undone, then a matrix applied to the channels: exact for CIE XYZ."""
    conv = CONVOLUTION[same_extent("conv1x1_degamma", input_shape, target_shape)]
    return nn.Sequential(LinearizeSRGB(), conv(input_shape[0], target_shape[0], 1))


def nin(
    input_shape: Shape,
    target_shape: Shape,
    *,
    hidden: int = 16,
    activation: str = "sigmoid",
    output_activation: str = "sigmoid",
) -> nn.Module:
    """A two-layer perceptron at every sample ("network in network", Lin et al. 2013, arXiv:1312.4400)."""
    conv = CONVOLUTION[same_extent("nin", input_shape, target_shape)]
    at_least("hidden", 1, hidden)
    return nn.Sequential(
        conv(input_shape[0], hidden, 1),
        pointwise(activation),
        conv(hidden, target_shape[0], 1),
        pointwise(output_activation),
    )


def deep(
    input_shape: Shape,
    target_shape: Shape,
    *,
    channels: int = 64,
    kernel_size: int = 5,
    output_kernel_size: int | None = None,
    activation: str = "sigmoid",
) -> nn.Module:
    """Convolution, nonlinearity, convolution: it sees kernel_size + output_kernel_size - 1 samples along an axis.

    output_kernel_size: None takes `kernel_size`.
    """
    rank = same_extent("deep", input_shape, target_shape)
    at_least("channels", 1, channels)
    second = odd("output_kernel_size", kernel_size if output_kernel_size is None else output_kernel_size)
    return nn.Sequential(
        convolution(rank, input_shape[0], channels, odd("kernel_size", kernel_size)),
        pointwise(activation),
        convolution(rank, channels, target_shape[0], second),
    )


def dilated(
    input_shape: Shape,
    target_shape: Shape,
    *,
    channels: int = 32,
    dilations: Sequence[int] = (1, 2, 4, 4, 2, 1),
) -> nn.Module:
    """A stack of dilated 3-tap convolutions that corrects its input: it starts as the identity.

    It sees 1 + 2 * sum(dilations) samples along an axis. Where inputs and targets differ in channels, a learned
    matrix on the channels takes the identity's place.
    """
    conv = CONVOLUTION[same_extent("dilated", input_shape, target_shape)]
    at_least("channels", 1, channels)
    at_least("dilations", 1, *dilations, most=MOST_DILATION)
    if len(dilations) < 2:
        raise ValueError(f"model.dilations={list(dilations)}: expected at least two layers")
    widths = [input_shape[0], *[channels] * (len(dilations) - 1), target_shape[0]]
    layers: list[nn.Module] = []
    for (before, after), step in zip(pairwise(widths), dilations, strict=True):
        layers += [kaiming(conv(before, after, 3, padding=step, dilation=step)), nn.LeakyReLU(0.1)]
    zero(layers[-2])
    same = input_shape[0] == target_shape[0]
    return Residual(nn.Sequential(*layers[:-1]), nn.Identity() if same else conv(input_shape[0], target_shape[0], 1))


def conv_bn(input_shape: Shape, target_shape: Shape, *, channels: int = 16, kernel_size: int = 7) -> nn.Module:
    """The lecture's net for boundaries: convolution, ReLU, 1x1 convolution, sigmoid, with batch normalisation."""
    rank = same_extent("conv_bn", input_shape, target_shape)
    conv, norm = CONVOLUTION[rank], BATCH_NORM[rank]
    at_least("channels", 1, channels)
    return nn.Sequential(
        conv(input_shape[0], channels, odd("kernel_size", kernel_size), padding=kernel_size // 2),
        norm(channels),
        nn.ReLU(),
        conv(channels, target_shape[0], 1),
        norm(target_shape[0]),
        nn.Sigmoid(),
    )


def separable_sigmoid(
    input_shape: Shape, target_shape: Shape, *, channels: Sequence[int] = (16, 32), kernel_size: int = 15
) -> nn.Module:
    """The lecture's net for the median: a bank of separable filters, sigmoid, 1x1 convolution, sigmoid."""
    images("separable_sigmoid", input_shape, target_shape)
    same_extent("separable_sigmoid", input_shape, target_shape)
    down, across = two("channels", channels)
    reach = odd("kernel_size", kernel_size) // 2
    return nn.Sequential(
        nn.Conv2d(input_shape[0], down, (kernel_size, 1), padding=(reach, 0)),
        nn.Conv2d(down, across, (1, kernel_size), padding=(0, reach)),
        nn.Sigmoid(),
        nn.Conv2d(across, target_shape[0], 1),
        nn.Sigmoid(),
    )
