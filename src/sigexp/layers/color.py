"""Colour curves as layers."""

import torch
from torch import Tensor, nn

SRGB_KNEE = 0.04045  # below it the curve of IEC 61966-2-1 is a straight line


class LinearizeSRGB(nn.Module):
    """Undo the sRGB curve of IEC 61966-2-1: display values in 0..1, any shape, to linear light."""

    def forward(self, x: Tensor) -> Tensor:
        # The clamp keeps the power's gradient finite where its branch is not taken.
        curved = ((x.clamp_min(SRGB_KNEE) + 0.055) / 1.055) ** 2.4
        return torch.where(x > SRGB_KNEE, curved, x / 12.92)
