"""Classical demosaicing by OpenCV: bilinear, variable number of gradients (VNG) and edge-aware (EA).

VNG: Chang, Cheung, Pang, 'Color filter array recovery using a threshold-based variable number of gradients', 1999.

OpenCV names a layout by the four pixels that start at row 1, column 1: our BGGR is its COLOR_BayerRG2RGB. Any other
of its four codes swaps colours and ends at 11 to 15 dB. Its VNG takes 8 bits only, so all three methods get the
mosaic rounded to 8 bits, which costs nothing on photographs of 8 bits and at most 1/510 a pixel elsewhere.
"""

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from sigexp.signal.bayer import single_plane

Method = Literal["bilinear", "vng", "edge_aware"]

CODES = {
    "bilinear": cv2.COLOR_BayerRG2RGB,
    "vng": cv2.COLOR_BayerRG2RGB_VNG,
    "edge_aware": cv2.COLOR_BayerRG2RGB_EA,
}
PADDING = 8  # even, so that mirroring keeps the layout; enough for VNG on the smallest picture


def demosaic(mosaicked: Tensor, method: Method) -> Tensor:
    """RGB [B, 3, H, W] in 0..1 out of BGGR mosaics [B, 3, H, W] in 0..1 (zeros where not measured).

    The picture is mirrored about its edge pixels by 8 pixels, which continues the layout, so that OpenCV's own
    treatment of borders falls outside.
    """
    if method not in CODES:
        raise ValueError(f"demosaicing method {method!r}: expected one of {', '.join(CODES)}")
    planes = single_plane(mosaicked.detach().cpu()).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    inner = slice(PADDING, -PADDING)
    full = [cv2.demosaicing(np.pad(plane, PADDING, mode="reflect"), CODES[method])[inner, inner] for plane in planes]
    rgb = torch.from_numpy(np.stack(full)).permute(0, 3, 1, 2)
    return rgb.to(mosaicked) / 255
