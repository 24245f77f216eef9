"""The Bayer mosaic: a camera sees one colour at each pixel (B. E. Bayer, US patent 3971065, 1976).

The layout is BGGR: blue where row and column are even, red where both are odd, green at the other two.

Axes: [..., 3, H, W], channels R G B third from the end.
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Pixels = TypeVar("Pixels", np.ndarray, Tensor)

RED, GREEN, BLUE = 0, 1, 2


@lru_cache(maxsize=16)
def bayer_masks(rows: int, columns: int) -> np.ndarray:
    """Which pixels see red, green, blue: bool [3, rows, columns], exactly one True at every pixel."""
    odd_row, odd_column = np.arange(rows)[:, None] % 2 == 1, np.arange(columns)[None, :] % 2 == 1
    masks = np.empty((3, rows, columns), bool)
    masks[RED] = odd_row & odd_column
    masks[GREEN] = odd_row ^ odd_column
    masks[BLUE] = ~(odd_row | odd_column)
    masks.flags.writeable = False
    return masks


def mosaic(rgb: Pixels) -> Pixels:
    """What the sensor sees of [..., 3, H, W], as three channels with zeros where a colour was not measured."""
    masks = bayer_masks(*rgb.shape[-2:])
    if isinstance(rgb, Tensor):
        return torch.where(torch.tensor(masks, device=rgb.device), rgb, torch.zeros((), dtype=rgb.dtype))
    return np.where(masks, rgb, rgb.dtype.type(0))


def single_plane(mosaicked: Pixels) -> Pixels:
    """The raw picture [..., H, W] of a mosaic [..., 3, H, W]."""
    return mosaicked.sum(-3)
