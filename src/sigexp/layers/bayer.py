"""The four phases of a Bayer mosaic as planes, and demosaicing as a convolution on them.

A mosaic [B, 1, H, W] becomes planes [B, 4, H/2, W/2] by pixel_unshuffle: plane 2i + j holds the pixels of row phase i
and column phase j. On planes a convolution treats every phase by itself, which demosaicing needs: what is missing
differs from phase to phase. Colour c at phase (i, j) is output channel 4c + 2i + j, as pixel_shuffle wants it.
"""

import torch
from torch import Tensor, nn

from sigexp.layers.residual import zero

BILINEAR = {  # weights of the known neighbours of one colour, 3x3, where the others are zero
    "R": ((1, 2, 1), (2, 4, 2), (1, 2, 1)),
    "G": ((0, 1, 0), (1, 4, 1), (0, 1, 0)),
    "B": ((1, 2, 1), (2, 4, 2), (1, 2, 1)),
}


def bilinear_planes(pattern: str) -> Tensor:
    """Bilinear demosaicing as a kernel on planes: [12, 4, 3, 3]; pattern: colours of phases 00, 01, 10, 11."""
    weight = torch.zeros(12, 4, 3, 3)
    for c, colour in enumerate("RGB"):
        for out in range(4):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    y, x = out // 2 + dy, out % 2 + dx  # where the neighbour lies, phase (0, 0) being the origin
                    phase = 2 * (y % 2) + x % 2
                    if pattern[phase] == colour:
                        weight[4 * c + out, phase, 1 + y // 2, 1 + x // 2] += BILINEAR[colour][1 + dy][1 + dx] / 4
    return weight


def bilinear_layer(pattern: str) -> nn.Module:
    """A convolution on planes that starts as bilinear demosaicing: [B, 4, h + 2, w + 2] -> [B, 12, h, w]."""
    layer = zero(nn.Conv2d(4, 12, 3))
    with torch.no_grad():
        layer.get_parameter("weight").copy_(bilinear_planes(pattern))
    return layer
