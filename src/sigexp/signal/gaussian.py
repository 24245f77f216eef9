"""Gaussian filtering of stacks of images, equal to `scipy.ndimage.gaussian_filter` within float32 rounding.

A Gaussian filter with a fixed border rule is a linear map of each axis: y = A x B^T with banded matrices A and B.
Two matrix products over a whole stack are several times faster than filtering image by image.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
import scipy.ndimage

Border = Literal["reflect", "constant"]


@lru_cache(maxsize=64)
def gaussian_matrix(length: int, sigma: float, border: Border = "reflect") -> np.ndarray:
    """The matrix [length, length] float32 that filters a signal of `length` samples with a Gaussian of `sigma`."""
    impulses = np.eye(length)
    matrix = scipy.ndimage.gaussian_filter1d(impulses, sigma, axis=0, mode=border) if sigma > 0 else impulses
    return matrix.astype(np.float32)


def gaussian_filter(images: np.ndarray, sigma: tuple[float, float] | float, border: Border = "reflect") -> np.ndarray:
    """Filter [..., H, W] with a Gaussian of `sigma` pixels (rows, columns): float32, same shape."""
    rows, columns = (float(sigma),) * 2 if isinstance(sigma, (int, float)) else (float(s) for s in sigma)
    if rows < 0 or columns < 0:
        raise ValueError(f"sigma={sigma}: expected pixels, 0 or more")
    down = gaussian_matrix(images.shape[-2], rows, border)
    across = gaussian_matrix(images.shape[-1], columns, border)
    return down @ (images.astype(np.float32, copy=False) @ across.T)


def gaussian_kernel(sigma: tuple[float, float]) -> np.ndarray:
    """The kernel of `gaussian_filter`, its middle at (h // 2, w // 2): [h, w] float64, cut off at 4 sigma."""

    def taps(width: float) -> np.ndarray:
        impulse = np.zeros(2 * int(4 * width + 0.5) + 1)
        impulse[len(impulse) // 2] = 1
        return scipy.ndimage.gaussian_filter1d(impulse, width, mode="constant") if width > 0 else impulse

    return np.outer(taps(float(sigma[0])), taps(float(sigma[1])))
