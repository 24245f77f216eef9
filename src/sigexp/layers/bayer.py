"""The four phases of a Bayer mosaic as planes, and demosaicing as a convolution on them.

A mosaic [B, 1, H, W] becomes planes [B, 4, H/2, W/2] by pixel_unshuffle: plane 2i + j holds the pixels of row phase i
and column phase j. On planes a convolution treats every phase by itself, which demosaicing needs: what is missing
differs from phase to phase. Colour c at phase (i, j) is output channel 4c + 2i + j, as pixel_shuffle wants it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigexp.layers.residual import zero

NEIGHBOUR = 0.9  # correlation of red with green and of green with blue
REACH_PX = 20.0  # distance over which the correlation of two pixels falls to 1/e
NOISE = 1e-4  # variance of what no neighbour can tell, against that of a pixel


def covariance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of pixels p [N, 3] and q [M, 3], each (row, column, colour): NEIGHBOUR^|colours| exp(-distance / REACH_PX)."""
    apart = p[:, None] - q[None]
    return NEIGHBOUR ** np.abs(apart[..., 2]) * np.exp(-np.hypot(apart[..., 0], apart[..., 1]) / REACH_PX)


def demosaicing_planes(pattern: str) -> Tensor:
    """The linear minimum-mean-square-error demosaicing of a Markov random field, as a kernel on planes: [12, 4, 3, 3].

    Each colour of the four pixels in the middle is estimated from the 6x6 measured ones around: w = K^-1 k, with K
    their covariance and k that with the estimated one. Known pixels stay as they are. Within 0.1 dB of the 5x5 kernels
    that least squares finds on photographs. pattern: colours of the phases 00, 01, 10, 11.
    """
    grid = [(y, x) for y in range(-2, 4) for x in range(-2, 4)]
    measured = np.array([(y, x, "RGB".index(pattern[2 * (y % 2) + x % 2])) for y, x in grid], float)
    wanted = np.array([(i, j, c) for c in range(3) for i in range(2) for j in range(2)], float)
    known = covariance(measured, measured) + NOISE * np.eye(len(grid))
    solved = np.linalg.solve(known, covariance(measured, wanted)).T  # [12, 36]
    weight = solved.reshape(12, 3, 2, 3, 2).transpose(0, 2, 4, 1, 3)  # plane row, phase row, plane column, phase column
    return torch.from_numpy(weight.reshape(12, 4, 3, 3).copy()).float()


class ColourPreservingConv(nn.Conv2d):
    """A 3x3 convolution on planes through which a constant colour passes unchanged, or not at all.

    [B, 4, h + 2, w + 2] -> [B, D, h, w]. The weights of every output sum to 0 over each colour's planes, whatever the
    parameters are. With `passes`, D = 12 and every output gets the local mean of its own colour besides. A net with
    only such layers at its input cannot learn which colours are frequent, and does not err where they are others.
    """

    average: Tensor  # [4, 4]: over the planes of a plane's colour
    passing: Tensor  # [D, 4]: what of each plane reaches each output besides

    def __init__(self, pattern: str, channels: int, *, passes: bool = False):
        super().__init__(4, channels, 3, bias=False)
        colours = torch.tensor(["RGB".index(letter) for letter in pattern])
        same = (colours[:, None] == colours[None]).float()
        own = (torch.arange(3).repeat_interleave(4)[:, None] == colours[None]).float()
        self.register_buffer("average", same / same.sum(1, keepdim=True))
        self.register_buffer("passing", own / own.sum(1, keepdim=True) / 9 if passes else torch.zeros(channels, 4))

    def forward(self, x: Tensor) -> Tensor:
        means = self.weight.mean((2, 3)) @ self.average
        return F.conv2d(x, self.weight + (self.passing - means)[..., None, None])


def demosaicing_layer(pattern: str) -> nn.Module:
    """A convolution on planes that starts as `demosaicing_planes`: [B, 4, h + 2, w + 2] -> [B, 12, h, w]."""
    layer = zero(ColourPreservingConv(pattern, 12, passes=True))
    with torch.no_grad():
        layer.get_parameter("weight").copy_(demosaicing_planes(pattern))
    return layer
