"""Nets on the window around every pixel, for filters that no convolution is: images (C, H, W) -> (D, H, W).

Borders and the place of an even window, half a pixel up and left, are those of `scipy.ndimage`.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from sigexp.layers.padding import SymmetricPad
from sigexp.layers.rank import RankFilter
from sigexp.layers.residual import kaiming
from sigexp.models.fit import Shape, at_least, images, refuse, same_extent

MOST_SORTED = 16  # pixels along each axis: 256 planes and some 4,000 comparisons of them


def rank(input_shape: Shape, target_shape: Shape, *, window: int = 4) -> nn.Module:
    """Each window's values in order, then one weight for every rank: median, minimum, maximum or mean."""
    images("rank", input_shape, target_shape)
    same_extent("rank", input_shape, target_shape)
    if input_shape[0] != target_shape[0]:
        raise refuse("rank", "filters every channel by itself", input_shape, target_shape)
    at_least("window", 1, window, most=MOST_SORTED)
    return RankFilter(window)


def mlp(input_shape: Shape, target_shape: Shape, *, window: int = 5, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    """A perceptron with ReLU on the values of each window."""
    images("mlp", input_shape, target_shape)
    same_extent("mlp", input_shape, target_shape)
    at_least("window", 1, window, most=255)
    at_least("hidden", 1, *hidden)
    widths = [input_shape[0], *hidden]
    layers: list[nn.Module] = [SymmetricPad(window // 2, (window - 1) // 2)]
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [kaiming(nn.Conv2d(before, after, 1 if i else window)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], target_shape[0], 1))
