"""Directional demosaicing with a decision afterwards and a refining step.

D. Menon, S. Andriani, G. Calvagno, 'Demosaicing with directional filtering and a posteriori decision', IEEE
Transactions on Image Processing 16(1), 2007. Green is interpolated along the rows and along the columns; at every pixel
the direction with the smoother colour differences around it is kept, and the other colours follow it.

Axes: B pictures, H W pixels. Pictures are taken as periodic, so the outer 12 pixels are of use only where they repeat.
"""

import torch
from torch import Tensor

from sigexp.signal.bayer import BLUE, GREEN, RED, bayer_masks

ROWS, COLUMNS = -1, -2  # axes: along the rows, along the columns


def _at(x: Tensor, offset: int, axis: int) -> Tensor:
    """x at `offset` pixels further along an axis."""
    return x.roll(-offset, axis)


def _beside(x: Tensor, axis: int, reach: int = 1) -> Tensor:
    """The mean of both neighbours `reach` pixels away."""
    return (_at(x, -reach, axis) + _at(x, reach, axis)) / 2


def _three(x: Tensor, axis: int) -> Tensor:
    return (2 * _beside(x, axis) + x) / 3


def menon(planes: Tensor) -> Tensor:
    """RGB [B, 3, H, W] of raw BGGR pictures [B, H, W]; not clipped."""
    masks = torch.tensor(bayer_masks(*planes.shape[-2:]), device=planes.device)
    red_rows = masks[RED].any(1, keepdim=True)
    along_rows, along_columns = (_green(planes, masks[GREEN], axis) for axis in (ROWS, COLUMNS))
    in_rows = _roughness(planes, along_columns, COLUMNS) >= _roughness(planes, along_rows, ROWS)
    green = torch.where(in_rows, along_rows, along_columns)
    red, blue = (
        _colour(torch.where(masks[c], planes, torch.zeros_like(planes)), green, masks, c, rows)
        for c, rows in ((RED, red_rows), (BLUE, ~red_rows))
    )
    difference = red - blue
    across = torch.where(in_rows, _beside(difference, ROWS), _beside(difference, COLUMNS))
    red = torch.where(masks[BLUE], planes + across, red)
    blue = torch.where(masks[RED], planes - across, blue)
    return _refine(planes, red, green, blue, masks, in_rows, red_rows)


def _green(planes: Tensor, measured: Tensor, axis: int) -> Tensor:
    interpolated = _beside(planes, axis) + (planes - _beside(planes, axis, 2)) / 2
    return torch.where(measured, planes, interpolated)


def _roughness(planes: Tensor, green: Tensor, axis: int) -> Tensor:
    """How much the differences of measured colours to green change along an axis, around every pixel."""
    difference = planes - green  # 0 where green was measured
    change = (difference - _at(difference, 2, axis)).abs()
    across = COLUMNS if axis == ROWS else ROWS
    far, near = (_at(change, -reach, across) + _at(change, reach, across) for reach in (2, 1))
    same = 3 * change + far
    return same + _at(same, -2, axis) + _at(near, -1, axis)


def _colour(known: Tensor, green: Tensor, masks: Tensor, colour: int, rows: Tensor) -> Tensor:
    """Red or blue at green pixels as well: green plus the mean difference of the neighbours where it was measured."""
    found = known
    for axis, where in ((ROWS, rows), (COLUMNS, ~rows)):
        value = green + _beside(known, axis) - _beside(green, axis)
        found = torch.where(masks[GREEN] & where, value, found)
    return found


def _refine(
    planes: Tensor, red: Tensor, green: Tensor, blue: Tensor, masks: Tensor, in_rows: Tensor, red_rows: Tensor
) -> Tensor:
    """Smooth the colour differences along the direction that was chosen; measured values stay."""

    def smooth(x: Tensor) -> Tensor:
        return torch.where(in_rows, _three(x, ROWS), _three(x, COLUMNS))

    at_red, at_blue = planes - smooth(red - green), planes - smooth(blue - green)
    green = torch.where(masks[RED], at_red, torch.where(masks[BLUE], at_blue, green))
    refined = []
    for colour, rows in ((red, red_rows), (blue, ~red_rows)):
        difference = colour - green
        along = torch.where(rows, _beside(difference, ROWS), _beside(difference, COLUMNS))
        refined.append(torch.where(masks[GREEN], green + along, colour))
    red, blue = refined
    across = smooth(red - blue)
    red, blue = torch.where(masks[BLUE], blue + across, red), torch.where(masks[RED], red - across, blue)
    return torch.stack([red, green, blue], 1)
