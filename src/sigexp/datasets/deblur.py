"""Blurred, noisy digits -> digits: how much better than the best linear filter can a nonlinear one restore?"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from sigexp.data.digits import digit_source
from sigexp.problem import Batch, Problem, Reference, Sample, Split, blockwise, constant, identity, train_size
from sigexp.ranges import within
from sigexp.signal.gaussian import gaussian_filter, gaussian_kernel
from sigexp.signal.quality import mse, psnr, ssim
from sigexp.signal.wiener import filter_by, kernel_spectrum, mean_power, wiener_spectrum


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
    `mse_interior` leaves out 5 pixels on every side, half of an 11x11 kernel. `wiener` knows blur and noise, and the
    spectrum of the first 1000 training digits. Raises ValueError where a field is out
    of range, or where the source has too few digits.
    """
    widths = tuple(float(s) for s in sigma)
    if len(widths) != 2 or not all(0 <= s <= 10 for s in widths):
        raise ValueError(f"dataset.sigma={list(sigma)}: expected two numbers of pixels, 0..10 (rows, columns)")
    within("dataset.noise", noise, 0, 1000, "a standard deviation, where white is 1")
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
        references={
            "identity": identity(),
            "constant": constant(sample, size),
            "wiener": _wiener(sample, min(1000, sizes["train"] or 1000), (widths[0], widths[1]), noise),
        },
        source=source.source,
    )


def _wiener(sample: Sample, examples: int, sigma: tuple[float, float], noise: float) -> Reference:
    """The Wiener filter of the known blur and noise; the digits' spectrum is the mean over training digits."""
    spectra: list[Tensor] = []
    kernel = torch.from_numpy(gaussian_kernel(sigma))
    circle = [28 + max(28, n) for n in kernel.shape]  # pixels; opposite borders do not see each other

    def predict(inputs: Tensor) -> Tensor:
        if not spectra:
            digits = sample("train", torch.arange(examples)).targets[:, 0].double()
            power = mean_power(digits, circle)
            spectra.append(wiener_spectrum(kernel_spectrum(kernel, circle), power, noise**2 * digits[0].numel()))
        return filter_by(inputs.double(), spectra[0], circle).to(inputs)

    return Reference(predict=predict)
