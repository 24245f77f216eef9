"""Colour spaces: the sRGB curve, and RGB to CIE XYZ under the D65 white (IEC 61966-2-1).

Axes: [..., 3, H, W], channels third from the end.
"""

import torch
from torch import Tensor

# Linear sRGB primaries to XYZ, the digits of `skimage.color.rgb2xyz`.
SRGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
# CIE RGB primaries under the equal-energy white E to XYZ. The lecture held its learned weights against this one,
# which they cannot match: its targets are made with SRGB_TO_XYZ, after the sRGB curve is undone.
CIE_RGB_TO_XYZ = (
    (0.4887180, 0.3106803, 0.2006017),
    (0.1762044, 0.8129847, 0.0108109),
    (0.0000000, 0.0102048, 0.9897952),
)


def srgb_to_linear(rgb: Tensor) -> Tensor:
    """Undo the sRGB curve: values in 0..1 of any shape become proportional to light.

    c / 12.92 for c <= 0.04045, else ((c + 0.055) / 1.055)^2.4.
    """
    return torch.where(rgb > 0.04045, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def linear_to_xyz(linear: Tensor) -> Tensor:
    """Linear RGB [..., 3, H, W] to XYZ of the same shape; white becomes (0.95, 1, 1.09)."""
    matrix = torch.tensor(SRGB_TO_XYZ, dtype=linear.dtype, device=linear.device)
    return (matrix @ linear.flatten(-2)).unflatten(-1, linear.shape[-2:])


def rgb_to_xyz(rgb: Tensor) -> Tensor:
    """sRGB [..., 3, H, W] in 0..1 to XYZ of the same shape, equal to `skimage.color.rgb2xyz`."""
    return linear_to_xyz(srgb_to_linear(rgb))
