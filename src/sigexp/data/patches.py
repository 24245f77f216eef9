"""Square patches of images, at random places and several scales, and whole images for testing.

The photograph of a patch is drawn first, each equally likely, then the scale and the place. A large photograph
therefore has no more weight than a small one, in a fixed set as in a stream.

Axes: n patches, C = 3 channels R G B, H W pixels.
"""

import threading
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from sigexp.data.images import ImageSource
from sigexp.problem import Batch, Draw, Sample, Split, blockwise

Task = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # RGB [n, 3, H, W] -> inputs, targets [n, C, H, W]
Patches = Callable[[np.random.Generator, Split, int], np.ndarray]  # -> RGB [n, 3, size, size]


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Integer pixels as float32 in 0..1; float pixels as they are."""
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32, copy=False)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def downsample(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks of `factor` x `factor` pixels of [H, W, 3], incomplete blocks cut off: float32 in 0..1."""
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    whole_blocks = to_float(image[: rows * factor, : columns * factor])
    return cv2.resize(whole_blocks, (columns, rows), interpolation=cv2.INTER_AREA)


def check_sizes(source: ImageSource, minimum: int, reduction: int = 1) -> None:
    """Raise a ValueError that names the first image with fewer than `minimum` rows or columns after `reduction`."""
    for split, shapes in source.shapes.items():
        for name, (rows, columns) in zip(source.names[split], shapes, strict=True):
            if min(rows, columns) // reduction < minimum:
                after = f" ({columns // reduction}x{rows // reduction} after downsampling)" if reduction > 1 else ""
                unreduced = ", dataset.scale=full" if reduction > 1 else ""
                raise ValueError(
                    f"{name}: {columns}x{rows} pixels{after}, too small for dataset.patch_size={minimum}; "
                    f"take smaller patches{unreduced} or larger images"
                )


def check_patches(patch_size: int, scales: Sequence[int], minimum: int = 2) -> None:
    if patch_size < minimum:
        raise ValueError(f"dataset.patch_size={patch_size}: expected at least {minimum} pixels")
    if not 1 <= len(scales) <= 16 or min(scales) < 1 or 1 not in scales:
        raise ValueError(
            f"dataset.scales={list(scales)}: expected whole factors of downsampling, 1 among them, such as [1, 2, 4]"
        )


def patch_sampler(
    source: ImageSource, *, size: int, scales: Sequence[int] = (1,), flips: bool = False, reduction: int = 1
) -> Patches:
    """A function `patches(rng, split, n)` that draws RGB patches [n, 3, size, size], float32 in 0..1.

    reduction: every image is first downsampled by this factor, as if the photographs were smaller.
    scales: training patches come from the image downsampled by one of these factors, each equally likely among those
        that leave room for a patch. Other splits use the image as it is, as testing does.
    flips: training patches are mirrored and transposed at random, all eight symmetries equally likely.
    """
    lock = threading.Lock()
    pyramids: dict[Split, list[list[np.ndarray]]] = {}

    def levels(image: np.ndarray, factors: Sequence[int]) -> list[np.ndarray]:
        fitting = [f * reduction for f in factors if min(image.shape[:2]) // (f * reduction) >= size]
        return [image if f == 1 else downsample(image, f) for f in fitting]

    def patches(rng: np.random.Generator, split: Split, n: int) -> np.ndarray:
        training = split == "train"
        with lock:
            if split not in pyramids:
                factors = scales if training else (1,)
                pyramids[split] = [levels(image, factors) for image in source.images(split)]
        pyramid = pyramids[split]
        image = rng.integers(len(pyramid), size=n)
        level, row, column = rng.random((3, n))
        symmetry = rng.integers(8, size=n)
        out = np.empty((n, size, size, 3), np.float32)
        for k, i in enumerate(image):
            pixels = pyramid[i][int(level[k] * len(pyramid[i]))]
            top, left = int(row[k] * (pixels.shape[0] - size + 1)), int(column[k] * (pixels.shape[1] - size + 1))
            out[k] = to_float(pixels[top : top + size, left : left + size])
        planes = np.ascontiguousarray(out.transpose(0, 3, 1, 2))
        return flip(planes, symmetry) if flips and training else planes

    return patches


def flip(patches: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    """Square patches [n, C, S, S], each under one of the eight symmetries 0..7 of the square, 0 leaving it as it is."""
    out = patches.copy()
    for bit, turn in enumerate((lambda x: x[..., ::-1, :], lambda x: x[..., ::-1], lambda x: x.swapaxes(-1, -2))):
        chosen = (symmetry >> bit) & 1 == 1
        out[chosen] = turn(out[chosen])
    return out


def whole_images(source: ImageSource, split: Split, index: np.ndarray, reduction: int = 1) -> np.ndarray:
    """Whole RGB images [n, 3, H, W], float32 in 0..1; several at once where they are of one size."""
    images = source.images(split)
    chosen = [downsample(images[i], reduction) if reduction > 1 else to_float(images[i]) for i in index]
    if len({image.shape for image in chosen}) > 1:
        raise ValueError(f"the images of split {split!r} differ in size: ask for one at a time")
    return np.ascontiguousarray(np.stack(chosen).transpose(0, 3, 1, 2))


def image_sample(
    source: ImageSource, draw: Draw, task: Task, *, seed: int, reduction: int = 1, whole: Split = "test"
) -> Sample:
    """Examples by index: `task` of the whole test images in split `whole`, and what `draw` draws in the others."""
    drawn = blockwise(draw, seed=seed)

    def sample(split: Split, index: Tensor) -> Batch:
        if split != whole:
            return drawn(split, index)
        inputs, targets = task(whole_images(source, "test", index.numpy(), reduction))
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    return sample


def image_count(source: ImageSource, limit: int | None) -> int:
    """How many test images are used: all of them, or at most `limit`, the dataset's `test_size`."""
    if limit is not None and limit < 1:
        raise ValueError(f"dataset.test_size={limit}: expected at least 1, or null for all test images")
    available = len(source.names["test"])
    return available if limit is None else min(limit, available)
