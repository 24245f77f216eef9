"""A U-Net: local detail and the whole image at once (Ronneberger et al. 2015, arXiv:1505.04597)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigexp.layers.activations import pointwise
from sigexp.layers.padding import crop_to, pad_to_multiple
from sigexp.models.fit import Shape, at_least, images, same_extent


def block(before: int, after: int) -> nn.Sequential:
    """Two 3x3 convolutions with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """[B, C, H, W] -> [B, D, H, W]; widths: channels at full size, at half size, and so on down."""

    def __init__(self, in_channels: int, out_channels: int, widths: list[int], output: nn.Module):
        super().__init__()
        self.down = nn.ModuleList(block(a, b) for a, b in pairwise([in_channels, *widths]))
        self.up = nn.ModuleList(block(below + here, here) for here, below in pairwise(widths))
        self.head = nn.Conv2d(widths[0], out_channels, 1)
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        extent = x.shape[2:]
        y = pad_to_multiple(x, 2 ** len(self.up))
        seen = []
        for level, down in enumerate(self.down):
            y = down(F.max_pool2d(y, 2) if level else y)
            seen.append(y)
        for up, same in zip(reversed(self.up), reversed(seen[:-1]), strict=True):
            y = up(torch.cat([F.interpolate(y, scale_factor=2, mode="nearest"), same], 1))
        return crop_to(self.output(self.head(y)), extent)


def unet(
    input_shape: Shape,
    target_shape: Shape,
    *,
    levels: int = 6,
    channels: int = 8,
    max_channels: int = 32,
    output_activation: str = "sigmoid",
) -> nn.Module:
    """`levels` halvings and back, with skips; 6 take 128x128 to 2x2, so that every output sees the whole image.

    channels: at full size; they double at each level up to `max_channels`. Images of any size are padded with zeros to
    a multiple of 2^levels.
    """
    images("unet", input_shape, target_shape)
    same_extent("unet", input_shape, target_shape)
    at_least("levels", 1, levels, most=12)
    at_least("channels", 1, channels)
    at_least("max_channels", channels, max_channels)
    widths = [min(channels * 2**level, max_channels) for level in range(levels + 1)]
    return UNet(input_shape[0], target_shape[0], widths, pointwise(output_activation))
