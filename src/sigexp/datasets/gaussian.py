"""Impulse images -> Gaussian-filtered images: the linear filter a convolution layer should find."""

from functools import partial

import numpy as np
import torch

from sigexp.problem import Problem, Reference, Split, blockwise, constant, identity, train_size
from sigexp.ranges import within
from sigexp.signal.gaussian import gaussian_filter, gaussian_kernel
from sigexp.signal.quality import mse


def gaussian_impulses(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    image_size: int = 64,
    density: float = 0.02,
    sigma: tuple[float, float] = (4.0, 1.0),
) -> Problem:
    """Pixels that are 1 with probability `density`, filtered by a Gaussian of `sigma` pixels (rows, columns).

    The border reflects, as in `scipy.ndimage.gaussian_filter`, so a zero-padded convolution cannot be exact there:
    `mse_interior` leaves out 4 sigma on every side.
    """

    if not 0 <= density <= 1:
        raise ValueError(f"dataset.density={density}: expected a probability in 0..1")
    within("dataset.image_size", image_size, 4, 4096, "pixels")
    if not all(0 <= width <= 100 for width in sigma):
        raise ValueError(f"dataset.sigma={list(sigma)}: expected pixels, 0..100")

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        images = (rng.random((n, image_size, image_size), dtype=np.float32) < density).astype(np.float32)
        return images[:, None], gaussian_filter(images, sigma)[:, None]

    sample = blockwise(draw, seed=seed)
    border = min(int(4 * max(sigma) + 0.5), (image_size - 1) // 2)
    return Problem(
        kind="image",
        sample=sample,
        sizes={"train": train_size(size), "valid": 500, "test": test_size},
        loss=mse,
        metrics={"mse": mse, "mse_interior": partial(mse, border=border)},
        references={
            "identity": identity(),
            "constant": constant(sample, size),
            "exact": Reference(predict=lambda x: torch.from_numpy(gaussian_filter(x[:, 0].numpy(), sigma))[:, None]),
        },
        source={"signals": "synthetic impulses"},
        kernel=gaussian_kernel(sigma),
    )
