"""Padding that torch.nn lacks, and pooling over all positions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SymmetricPad(nn.Module):
    """Pad every axis behind [B, C] as `scipy.ndimage` does by default (mode 'reflect': d c b a | a b c d | d c b a).

    `nn.ReflectionPad2d` is scipy's 'mirror': it does not repeat the border sample. Any amount works, also more than
    the signal is long.
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            length = x.shape[axis]
            index = torch.arange(-self.before, length + self.after, device=x.device) % (2 * length)
            x = x.index_select(axis, torch.minimum(index, 2 * length - 1 - index))
        return x


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the end of every axis behind [B, C] until its length is a multiple of `multiple`."""
    missing = [-n % multiple for n in x.shape[2:]]
    return F.pad(x, [amount for n in reversed(missing) for amount in (0, n)]) if any(missing) else x


def crop_to(x: Tensor, extent: Sequence[int]) -> Tensor:
    """The first `extent` samples of every axis behind [B, C]."""
    return x[(slice(None), slice(None), *(slice(n) for n in extent))]


class GlobalMax(nn.Module):
    """Maximum over all positions: [B, C, ...] -> [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).amax(2)
