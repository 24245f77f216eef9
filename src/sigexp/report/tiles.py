"""Signals and kernels as arrays that can be drawn."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

UNEQUAL = 4.0  # times the usual kernel: beside a larger one the others would be pale
BEYOND = 2  # samples shown around a true kernel
NEGLIGIBLE = 1e-4  # of a kernel's largest value


def shades(image: Tensor, like: Tensor | None = None) -> np.ndarray:
    """One image [C, H, W] as RGB [H, W, 3] in 0..1: colours as they are, a single channel in grey between the extremes
    of `like` (by default its own)."""
    array = image.detach().float().cpu().numpy()
    if array.shape[0] == 3:
        return array.transpose(1, 2, 0).clip(0, 1)
    scale = image if like is None else like
    low, high = float(scale[0].min()), float(scale[0].max())
    grey = ((array[0] - low) / max(high - low, 1e-6)).clip(0, 1)
    return np.repeat(grey[:, :, None], 3, axis=2)


def tiled(rows: Sequence[Sequence[np.ndarray]], fill: float = 1.0) -> np.ndarray:
    """Images of one size, [H, W] or [H, W, 3], as one, with a gap between them: axes are slow, and images are not.

    A gap is a 32nd of an image, at least a pixel; where images are missing from the last row there is gap.
    """
    first = rows[0][0]
    (height, width), gap = first.shape[:2], max(1, max(first.shape[:2]) // 32)
    extent = (len(rows) * (height + gap) - gap, max(map(len, rows)) * (width + gap) - gap)
    whole = np.full((*extent, *first.shape[2:]), fill, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            whole[i * (height + gap) :, j * (width + gap) :][:height, :width] = image
    return whole


def kernel_weights(model: nn.Module) -> tuple[str, Tensor] | None:
    """The first convolution or fully connected layer worth a picture: its name and weight."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            return name or "convolution", module.weight.detach()
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
            return name or "convolution", module.weight.detach()
        if isinstance(module, nn.Linear):
            return name or "linear", module.weight.detach()
    return None


def kernel_scales(planes: np.ndarray) -> tuple[np.ndarray, str]:
    """What the kernels [N, ...] are divided by to lie in -1..1, [N, 1, ...], and that in words.

    One scale for all, unless one of them would leave the others pale: then each has its own.
    """
    largest = np.abs(planes).max(axis=tuple(range(1, planes.ndim)), keepdims=True)
    limit, usual = float(largest.max()) or 1.0, float(np.median(largest))
    if limit > UNEQUAL * usual > 0:
        return np.where(largest > 0, largest, 1.0), f"each scaled to its own largest, {usual:.2g} to {limit:.2g}"
    return np.full_like(largest, limit), f"from {-limit:.2g} to {limit:.2g}"


def half_extent(kernel: np.ndarray) -> int:
    """How far from the middle, along any axis, a kernel has samples that matter."""
    where = np.argwhere(np.abs(kernel) > NEGLIGIBLE * np.abs(kernel).max())
    return int(np.abs(where - np.array(kernel.shape) // 2).max())


def fitted_to(true: np.ndarray, length: int) -> np.ndarray:
    """The middle `length` (odd) samples along every axis, zeros where there are fewer."""
    for axis, n in enumerate(true.shape):
        extra, cut = max(0, (length - n) // 2), max(0, (n - length) // 2)
        widths = [(extra, extra) if i == axis else (0, 0) for i in range(true.ndim)]
        true = np.pad(true.take(range(cut, n - cut), axis), widths)
    return true
