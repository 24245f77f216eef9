"""RGB -> XYZ: a map that is the same at every pixel, a power curve followed by a 3x3 matrix."""

import numpy as np
import torch

from sigexp.data.images import image_source
from sigexp.data.patches import check_patches, check_sizes, image_count, image_sample, patch_sampler
from sigexp.problem import Problem, Reference, Split, constant, identity, train_size
from sigexp.signal import color
from sigexp.signal.quality import mse


def rgb_to_xyz(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int | None = None,
    images: str = "photographs",
    patch_size: int = 32,
    scales: tuple[int, ...] = (1, 2, 4),
) -> Problem:
    """Patches of photographs in sRGB [3, H, W] in 0..1, and the same in CIE XYZ (D65); tested on whole photographs.

    XYZ reaches 1.089 at white, so the peak signal-to-noise ratio, which clips to 0..1, is left out.
    """
    source = image_source(images)
    check_patches(patch_size, scales)
    check_sizes(source, patch_size)
    patches = patch_sampler(source, size=patch_size, scales=scales)

    def task(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rgb, color.rgb_to_xyz(torch.from_numpy(rgb)).numpy()

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        return task(patches(rng, split, n))

    sample = image_sample(source, draw, task, seed=seed)
    return Problem(
        kind="image",
        sample=sample,
        sizes={"train": train_size(size), "valid": 256, "test": image_count(source, test_size)},
        loss=mse,
        metrics={"mse": mse},
        references={
            "identity": identity(),
            "constant": constant(sample, size),
            "exact": Reference(predict=color.rgb_to_xyz),
        },
        source=source.source,
        ragged=("test",) if source.ragged else (),
        labels=("X", "Y", "Z"),
    )
