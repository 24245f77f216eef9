"""Bayer mosaic -> RGB photograph: demosaicing, which every colour camera does."""

from functools import partial
from typing import Literal

import numpy as np

from sigexp.data.images import image_source
from sigexp.data.patches import check_patches, check_sizes, image_count, image_sample, patch_sampler
from sigexp.problem import Problem, Reference, Split, constant, identity, train_size
from sigexp.signal.bayer import mosaic
from sigexp.signal.demosaic import METHODS, demosaic
from sigexp.signal.quality import mse, psnr, ssim

BORDER = 4  # pixels cut from every side before judging, as is usual for demosaicing
SMALLEST_PATCH = 20  # what the border leaves of it holds the 11x11 window of SSIM


def bayer_mosaic(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int | None = None,
    images: str = "photographs",
    scale: Literal["half", "full"] = "half",
    patch_size: int = 32,
    scales: tuple[int, ...] = (1, 2, 4),
    flips: bool = True,
) -> Problem:
    """BGGR mosaics [3, H, W] in 0..1, zeros where a colour was not measured, and the photographs [3, H, W].

    scale: 'half' downsamples every photograph by 2 first, which hides the demosaicing its own camera did.
    Patches are mirrored before the mosaic is made, so the layout is always BGGR. Tested on whole photographs, cut to
    an even number of rows and columns; PSNR is per photograph, clipped to 0..1, 4 pixels cut from every side.
    """
    if scale not in ("half", "full"):
        raise ValueError(f"dataset.scale={scale}: expected 'half' or 'full'")
    if patch_size % 2:
        raise ValueError(f"dataset.patch_size={patch_size}: expected an even number, as the mosaic repeats every 2")
    reduction = {"half": 2, "full": 1}[scale]
    source = image_source(images)
    check_patches(patch_size, scales, minimum=SMALLEST_PATCH)
    check_sizes(source, patch_size, reduction)
    patches = patch_sampler(source, size=patch_size, scales=scales, flips=flips, reduction=reduction)

    def task(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = rgb.shape[2] // 2 * 2, rgb.shape[3] // 2 * 2
        even = np.ascontiguousarray(rgb[:, :, :rows, :columns])
        return mosaic(even), even

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        return task(patches(rng, split, n))

    sample = image_sample(source, draw, task, seed=seed, reduction=reduction)
    return Problem(
        kind="image",
        sample=sample,
        sizes={"train": train_size(size), "valid": 256, "test": image_count(source, test_size)},
        loss=mse,
        metrics={
            "psnr": partial(psnr, border=BORDER),
            "mse": mse,
            "mse_interior": partial(mse, border=BORDER),
            "ssim": partial(ssim, border=BORDER),
        },
        references={
            "identity": identity(),
            "constant": constant(sample, size),
            **{method: Reference(predict=partial(demosaic, method=method)) for method in METHODS},
        },
        source=source.source,
        ragged=("test",) if source.ragged else (),
        labels=("R", "G", "B"),
    )
