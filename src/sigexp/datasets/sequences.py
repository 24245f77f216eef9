"""Sparse sequences -> filtered sequences: a first-order recursive filter, and Gaussian bumps on spikes."""

from functools import partial

import numpy as np
import torch

from sigexp.problem import Problem, Reference, Split, blockwise, constant, identity, train_size
from sigexp.ranges import within
from sigexp.signal.gaussian import gaussian_kernel, gaussian_matrix
from sigexp.signal.quality import mse
from sigexp.signal.recursive import first_order


def iir(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    length: int = 100,
    density: float = 0.1,
    pole: float = 0.7,
    gain: float = 0.3,
) -> Problem:
    """Impulses of random height -> y[0] = x[0], y[t] = pole y[t-1] + gain x[t-1].

    A sample is uniform in 0..1 with probability `density`, else 0. The filter starts from the first sample, which no
    time-invariant filter does.
    """
    _check(length, density, gain, most=65_536)
    if not abs(pole) <= 1:
        raise ValueError(f"dataset.pole={pole}: expected -1..1, else the filter is not stable")

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        heights = rng.random((n, length), dtype=np.float32)
        impulses = heights * (rng.random((n, length), dtype=np.float32) < density)
        return impulses[:, None], exact(impulses)[:, None]

    def exact(x: np.ndarray) -> np.ndarray:
        return first_order(x, pole=pole, gain=gain).astype(np.float32)

    sample = blockwise(draw, seed=seed, block=1000)
    return Problem(
        kind="sequence",
        sample=sample,
        sizes={"train": train_size(size), "valid": 1000, "test": test_size},
        loss=mse,
        metrics={"mse": mse},
        references={
            "identity": identity(),
            "constant": constant(sample, size),
            "exact": Reference(predict=lambda x: torch.from_numpy(exact(x.numpy()))),
        },
        source={"signals": "synthetic impulses"},
        kernel=first_order(np.eye(1, 2 * length - 1, length - 1)[0], pole=pole, gain=gain),
    )


def spikes(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    length: int = 200,
    density: float = 0.1,
    sigma: float = 3.0,
    gain: float = 4.0,
) -> Problem:
    """Spikes of height 1 with probability `density` -> `gain` times their Gaussian filter of `sigma` samples.

    The border reflects, as in `scipy.ndimage.gaussian_filter1d`; `mse_interior` leaves out 4 sigma at either end.
    """
    _check(length, density, gain, most=4096)
    within("dataset.sigma", sigma, 0, 1000, "samples")
    matrix = np.float32(gain) * gaussian_matrix(length, float(sigma)).T

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        trains = (rng.random((n, 1, length), dtype=np.float32) < density).astype(np.float32)
        return trains, trains @ matrix

    sample = blockwise(draw, seed=seed, block=1000)
    border = min(int(4 * sigma + 0.5), (length - 1) // 2)
    return Problem(
        kind="sequence",
        sample=sample,
        sizes={"train": train_size(size), "valid": 1000, "test": test_size},
        loss=mse,
        metrics={"mse": mse, "mse_interior": partial(mse, border=border)},
        references={
            "identity": identity(),
            "constant": constant(sample, size),
            "exact": Reference(predict=lambda x: x @ torch.from_numpy(matrix).to(x)),
        },
        source={"signals": "synthetic spike trains"},
        kernel=gain * gaussian_kernel((0.0, sigma))[0],
    )


def _check(length: int, density: float, gain: float, most: int) -> None:
    within("dataset.length", length, 2, most, "samples")
    within("dataset.gain", gain, -1000, 1000, "a factor")
    if not 0 <= density <= 1:
        raise ValueError(f"dataset.density={density}: expected a probability in 0..1")
