"""Grey photographs or isolated dots -> their median filter: a map no linear layer can be.

The median leaves nothing of dots that are fewer than half of every window, where an average leaves a smear. On
photographs the two are nearly the same, so a net can do well there without having found the median: photographs and
dots are both tested, whichever was trained on.
"""

import math
from functools import partial
from typing import Literal

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from sigexp.data.images import image_source
from sigexp.data.patches import check_patches, check_sizes, image_count, image_sample, patch_sampler
from sigexp.problem import Problem, Reference, Split, constant, identity, train_size
from sigexp.ranges import within
from sigexp.signal.quality import mse, psnr
from sigexp.signal.rank import median_filter

MOST_WINDOW = 15  # pixels: its sorting network has some thousand comparators
DOT_IMAGES = 200  # in the test set of dots


def median_photographs(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int | None = None,
    images: str = "photographs",
    signals: Literal["photographs", "dots", "mixture"] = "photographs",
    window: int = 4,
    patch_size: int = 32,
    scales: tuple[int, ...] = (1, 2, 4),
    dots_size: int = 64,
    density: float = 0.02,
) -> Problem:
    """Grey images [1, H, W] in 0..1, the mean of the channels, and the median of every `window` x `window` pixels.

    signals: what is trained on: patches of photographs, images of `dots_size` whose pixels are 1 with probability
        `density`, or patches and dots of `patch_size` in turn. The same signals (photographs for a mixture) make
        the split 'test', and the others a further test set, 'dots' or 'photographs'.
    test_size: test images of the split 'test' at most; whole test photographs, or images of dots.
    """
    _check(signals, test_size, window, density, patch_size, dots_size)
    source = image_source(images)
    check_patches(patch_size, scales)
    check_sizes(source, patch_size)
    patches = patch_sampler(source, size=patch_size, scales=scales)

    def dots(rng: np.random.Generator, n: int, side: int) -> np.ndarray:
        return (rng.random((n, 1, side, side), dtype=np.float32) < density).astype(np.float32)

    def with_median(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return grey, median_filter(grey, window)

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        if signals == "dots" or split == "dots":
            return with_median(dots(rng, n, dots_size))
        grey = patches(rng, split, n).mean(1, keepdims=True)
        if signals == "mixture":
            grey[1::2] = dots(rng, n // 2, patch_size)
        return with_median(grey)

    if signals == "dots":
        whole, counts = "photographs", {"test": test_size or DOT_IMAGES, "photographs": image_count(source, None)}
    else:
        whole, counts = "test", {"test": image_count(source, test_size), "dots": DOT_IMAGES}
    sample = image_sample(source, draw, lambda rgb: with_median(rgb.mean(1, keepdims=True)), seed=seed, whole=whole)
    return Problem(
        kind="image",
        sample=sample,
        sizes={"train": train_size(size), "valid": 256, **counts},
        loss=mse,
        metrics={"mse": mse, "mse_interior": partial(mse, border=window), "psnr": partial(psnr, border=window)},
        references={
            "identity": identity(),
            "constant": constant(sample, size),
            "gaussian": Reference(predict=partial(shifted_gaussian, window=window)),
            "exact": Reference(predict=partial(exact_median, window=window)),
        },
        source={**source.source, "dots": "synthetic"},
        ragged=(whole,) if source.ragged else (),
        labels=("grey",),
    )


def _check(signals: str, test_size: int | None, window: int, density: float, patch_size: int, dots_size: int) -> None:
    if signals not in ("photographs", "dots", "mixture"):
        raise ValueError(f"dataset.signals={signals}: expected 'photographs', 'dots' or 'mixture'")
    if test_size is not None and test_size < 1:
        raise ValueError(f"dataset.test_size={test_size}: expected at least 1, or null for the usual number")
    if not 0 <= density <= 1:
        raise ValueError(f"dataset.density={density}: expected a probability in 0..1")
    within("dataset.dots_size", dots_size, 5, 1024, "pixels")
    largest = min(MOST_WINDOW, (min(patch_size, dots_size) - 1) // 2)
    if not 2 <= window <= largest:
        raise ValueError(
            f"dataset.window={window}: expected 2..{largest} pixels, as a border of this width is cut from both sides"
        )


def exact_median(grey: Tensor, *, window: int) -> Tensor:
    """The median filter of [B, 1, H, W] itself."""
    return torch.from_numpy(median_filter(grey.cpu().numpy(), window)).to(grey.device)


def shifted_gaussian(grey: Tensor, *, window: int) -> Tensor:
    """A Gaussian about as wide as the window (sigma a quarter of it), half a pixel up and left if it is even."""
    sigma, shift = window / 4, 0.5 * (window % 2 == 0)
    reach = math.ceil(4 * sigma)
    offsets = np.arange(-reach - int(2 * shift), reach + 1) + shift
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    filtered = grey.cpu().numpy()
    for axis in (-2, -1):
        filtered = scipy.ndimage.correlate1d(filtered, weights / weights.sum(), axis=axis, mode="reflect")
    return torch.from_numpy(filtered).to(grey.device)
