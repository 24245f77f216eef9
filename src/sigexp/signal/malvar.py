"""Demosaicing with a 5x5 linear filter for every colour and place in the mosaic.

H. S. Malvar, L. He, R. Cutler, 'High-quality linear interpolation for demosaicing of Bayer-patterned color images',
2004, figure 2: bilinear interpolation plus a multiple of the Laplacian of the colour that was measured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sigexp.signal.bayer import BLUE, GREEN, RED, bayer_masks

# In eighths. At a measured colour's pixel, of another colour: green; the one measured in the same row as this green
# pixel; in the same column; diagonally.
GREEN_THERE = ((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0))
IN_ROW = ((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0))
IN_COLUMN = tuple(zip(*IN_ROW, strict=True))
DIAGONAL = ((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0))


def malvar(planes: Tensor) -> Tensor:
    """RGB [B, 3, H, W] of raw BGGR pictures [B, H, W], zeros beyond their borders; not clipped."""
    kernels = torch.tensor([GREEN_THERE, IN_ROW, IN_COLUMN, DIAGONAL]).to(planes) / 8
    green, in_row, in_column, diagonal = F.conv2d(planes[:, None], kernels[:, None], padding=2).unbind(1)
    masks = torch.tensor(bayer_masks(*planes.shape[-2:]), device=planes.device)
    red_rows = masks[RED].any(1, keepdim=True)
    out = torch.stack([planes, torch.where(masks[GREEN], planes, green), planes], 1)
    for colour, rows in ((RED, red_rows), (BLUE, ~red_rows)):
        beside = torch.where(rows, in_row, in_column)  # at green pixels
        elsewhere = torch.where(masks[GREEN], beside, diagonal)
        out[:, colour] = torch.where(masks[colour], planes, elsewhere)
    return out
