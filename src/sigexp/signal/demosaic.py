"""Classical demosaicing: bilinear, variable number of gradients (VNG) and edge-aware (EA) by OpenCV, Malvar and Menon.

VNG: Chang, Cheung, Pang, 'Color filter array recovery using a threshold-based variable number of gradients', 1999.

OpenCV names a layout by the four pixels that start at row 1, column 1: our BGGR is its COLOR_BayerRG2RGB. Any other
of its four codes swaps colours and ends at 11 to 15 dB. Its VNG takes 8 bits only, so its three methods get the
mosaic rounded to 8 bits, which costs nothing on photographs of 8 bits and at most 1/510 a pixel elsewhere. Malvar and
Menon take it as it is.
"""

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from sigexp.signal.bayer import single_plane
from sigexp.signal.malvar import malvar
from sigexp.signal.menon import menon

Method = Literal["bilinear", "vng", "edge_aware", "malvar", "menon"]

CODES = {
    "bilinear": cv2.COLOR_BayerRG2RGB,
    "vng": cv2.COLOR_BayerRG2RGB_VNG,
    "edge_aware": cv2.COLOR_BayerRG2RGB_EA,
}
METHODS: tuple[Method, ...] = ("bilinear", "vng", "edge_aware", "malvar", "menon")
PADDING = 16  # even, so that mirroring keeps the layout; more than any of the methods reaches


def demosaic(mosaicked: Tensor, method: Method) -> Tensor:
    """RGB [B, 3, H, W] in 0..1 out of BGGR mosaics [B, 3, H, W] in 0..1 (zeros where not measured).

    The picture is mirrored about its edge pixels by 16 pixels, which continues the layout, so that no method's own
    treatment of borders shows.
    """
    if method not in METHODS:
        raise ValueError(f"demosaicing method {method!r}: expected one of {', '.join(METHODS)}")
    planes = single_plane(mosaicked.detach().cpu()).clamp(0, 1)
    planes = torch.from_numpy(np.pad(planes.numpy(), ((0, 0), (PADDING,) * 2, (PADDING,) * 2), mode="reflect"))
    full = by_opencv(planes, CODES[method]) if method in CODES else {"malvar": malvar, "menon": menon}[method](planes)
    return full[..., PADDING:-PADDING, PADDING:-PADDING].clamp(0, 1).to(mosaicked)


def by_opencv(planes: Tensor, code: int) -> Tensor:
    """RGB [B, 3, H, W] of raw pictures [B, H, W] in 0..1."""
    rounded = planes.mul(255).round().to(torch.uint8).numpy()
    full = np.stack([cv2.demosaicing(plane, code) for plane in rounded])
    return torch.from_numpy(full).permute(0, 3, 1, 2).to(planes) / 255
