"""Blurred, noisy digits -> digits: how much better than the best linear filter can a nonlinear one restore?"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from sigexp.data.digits import digit_source
from sigexp.problem import Batch, Problem, Split, blockwise, constant, identity, train_size
from sigexp.signal.gaussian import gaussian_filter
from sigexp.signal.quality import mse, psnr, ssim


def blurred_digits(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    digits: str = "synthetic",
    sigma: tuple[float, float] = (2.0, 0.5),
    noise: float = 0.02,
) -> Problem:
    """Digits in 0..1, filtered by a Gaussian of `sigma` pixels (rows, columns), with white noise of deviation `noise`.

    Example i of a fixed set is digit i of its split; a training stream takes digits at random, with fresh noise.
    `mse_interior` leaves out 5 pixels on every side, half of an 11x11 kernel. Raises ValueError where a field is out
    of range, or where the source has too few digits.
    """
    widths = tuple(float(s) for s in sigma)
    if len(widths) != 2 or not all(0 <= s < np.inf for s in widths):
        raise ValueError(f"dataset.sigma={list(sigma)}: expected two numbers of pixels, 0 or more (rows, columns)")
    if not 0 <= noise < np.inf:
        raise ValueError(f"dataset.noise={noise}: expected a standard deviation, 0 or more, where white is 1")
    source = digit_source(digits)
    sizes = {"train": train_size(size), "valid": min(500, source.sizes["valid"]), "test": test_size}
    source.check("train", "dataset.size", sizes["train"] or 1)
    source.check("test", "dataset.test_size", test_size)

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        which = rng.integers(source.sizes[split], size=n)
        return rng.standard_normal((n, 1, 28, 28), dtype=np.float32), which

    noise_and_digit = blockwise(draw, seed=seed)

    def sample(split: Split, index: Tensor) -> Batch:
        white, which = noise_and_digit(split, index)
        if sizes[split] is not None:
            which = index % source.sizes[split]  # `constant` looks at 250 examples, however few digits there are
        clean = source.images(split)[which.numpy(), None].astype(np.float32) / 255
        blurred = torch.from_numpy(gaussian_filter(clean, (widths[0], widths[1])))
        return Batch(blurred + noise * white, torch.from_numpy(clean))

    return Problem(
        kind="image",
        sample=sample,
        sizes=sizes,
        loss=mse,
        metrics={"psnr": psnr, "mse": mse, "mse_interior": partial(mse, border=5), "ssim": ssim},
        references={"identity": identity(), "constant": constant(sample, size)},
        source=source.source,
    )
