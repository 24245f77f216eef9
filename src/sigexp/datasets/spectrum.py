"""Sinusoids in noise -> their windowed spectrum; tone bursts in noise -> their power over time and frequency, and a
control: their energy over time, to which all frequencies contribute alike."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from sigexp.problem import Problem, Reference, Split, blockwise, constant, train_size
from sigexp.ranges import within
from sigexp.signal.quality import mse
from sigexp.signal.spectra import gabor, sliding_energy, sliding_power, windowed_dft

MOST_TONES = 20


def spectrum(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    length: int = 128,
    tones: tuple[int, int] = (1, 3),
    amplitude: tuple[float, float] = (0.2, 1.0),
    frequency: tuple[float, float] = (0.0, 0.5),
    noise: float = 0.1,
) -> Problem:
    """Some sinusoids in noise [1, T] -> real and imaginary part of the Hann-windowed DFT [2, T / 2 + 1].

    The number of sinusoids, their amplitudes, frequencies (cycles per sample) and phases are uniform, the ends of
    `tones` included. The target is a linear map of the noisy input; noise alone has bins of mean power noise^2.
    """
    _check(length, noise, frequency, tones=tones, amplitude=amplitude)
    time = np.arange(length)

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        height = _heights(rng, n, tones, amplitude)
        rate, phase = rng.uniform(*frequency, height.shape), rng.random(height.shape)
        sinusoids = height * np.sin(2 * np.pi * (rate * time + phase))
        signals = _in_noise(sinusoids, rng, noise)
        return signals, exact(signals)

    def exact(signals: np.ndarray) -> np.ndarray:
        return windowed_dft(signals[:, 0]).astype(np.float32)

    sample = blockwise(draw, seed=seed, block=500)
    return Problem(
        kind="sequence",
        sample=sample,
        sizes={"train": train_size(size), "valid": 1000, "test": test_size},
        loss=mse,
        metrics={"mse": mse},
        references={
            "constant": constant(sample, size),
            "exact": Reference(predict=lambda x: torch.from_numpy(exact(x.numpy()))),
        },
        source={"signals": "synthetic sinusoids"},
        labels=("real", "imaginary"),
    )


def spectrum_power(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    length: int = 128,
    bands: int = 16,
    taps: int = 31,
    tones: tuple[int, int] = (1, 3),
    amplitude: tuple[float, float] = (0.5, 1.0),
    sigma: tuple[float, float] = (4.0, 16.0),
    frequency: tuple[float, float] = (0.03, 0.47),
    noise: float = 0.1,
) -> Problem:
    """Tone bursts in noise [1, T] -> their power around every sample in equal frequency bands [bands, T].

    A burst is a Gabor function; the number of bursts, their heights, places, lengths (`sigma`, in samples),
    frequencies (cycles per sample) and phases are uniform. The power is that of a sliding Hann window of `taps`
    samples, zeros beyond the ends, 1 for a steady sinusoid of amplitude 1 in the middle of its band; `mse_interior`
    leaves out half a window at either end.
    """
    within("dataset.bands", bands, 1, 1024, "a whole number")
    _check(length, noise, frequency, tones=tones, amplitude=amplitude, sigma=sigma)

    def exact(signals: np.ndarray) -> np.ndarray:
        return sliding_power(signals[:, 0], bands=bands, taps=taps)

    return _bursts(exact, seed, size, test_size, length, taps, tones, amplitude, sigma, frequency, noise)


def spectrum_energy(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    length: int = 128,
    taps: int = 31,
    tones: tuple[int, int] = (1, 3),
    amplitude: tuple[float, float] = (0.5, 1.0),
    sigma: tuple[float, float] = (4.0, 16.0),
    frequency: tuple[float, float] = (0.03, 0.47),
    noise: float = 0.1,
) -> Problem:
    """The tone bursts of `spectrum_power` [1, T] -> their energy around every sample [1, T]: a control without reward
    for telling frequencies apart.

    The energy is that under the same window, 1 for a steady sinusoid of amplitude 1.
    """
    _check(length, noise, frequency, tones=tones, amplitude=amplitude, sigma=sigma)

    def exact(signals: np.ndarray) -> np.ndarray:
        return sliding_energy(signals[:, 0], taps=taps)[:, None]

    return _bursts(exact, seed, size, test_size, length, taps, tones, amplitude, sigma, frequency, noise)


def _bursts(
    exact: Callable[[np.ndarray], np.ndarray],
    seed: int,
    size: int | str,
    test_size: int,
    length: int,
    taps: int,
    tones: tuple[int, int],
    amplitude: tuple[float, float],
    sigma: tuple[float, float],
    frequency: tuple[float, float],
    noise: float,
) -> Problem:
    """Tone bursts in noise -> what `exact` makes of them under a window of `taps`."""
    if not 3 <= taps <= 1023 or taps % 2 == 0:
        raise ValueError(f"dataset.taps={taps}: expected an odd number of samples, 3..1023")
    if not sigma[0] > 0:
        raise ValueError(f"dataset.sigma={list(sigma)}: expected samples, more than 0")
    time = np.arange(length)

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        height = _heights(rng, n, tones, amplitude)
        mu, width = rng.uniform(0, length - 1, height.shape), rng.uniform(*sigma, height.shape)
        rate, phase = rng.uniform(*frequency, height.shape), rng.random(height.shape)
        bursts = height * gabor(time, mu=mu, sigma=width, frequency=rate, phase=phase)
        signals = _in_noise(bursts, rng, noise)
        return signals, exact(signals)

    sample = blockwise(draw, seed=seed, block=100)
    border = min(taps // 2, (length - 1) // 2)
    return Problem(
        kind="sequence",
        sample=sample,
        sizes={"train": train_size(size), "valid": 1000, "test": test_size},
        loss=mse,
        metrics={"mse": mse, "mse_interior": partial(mse, border=border)},
        references={
            "constant": constant(sample, size),
            "exact": Reference(predict=lambda x: torch.from_numpy(exact(x.numpy()))),
        },
        source={"signals": "synthetic tone bursts"},
    )


def _heights(rng: np.random.Generator, n: int, tones: tuple[int, int], amplitude: tuple[float, float]) -> np.ndarray:
    """Amplitudes [n, most tones, 1], those beyond an example's own number of tones 0."""
    count = rng.integers(tones[0], tones[1] + 1, (n, 1))
    heights = rng.uniform(amplitude[0], amplitude[1], (n, tones[1]))
    return (heights * (np.arange(tones[1]) < count))[..., None]


def _in_noise(parts: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Sum of [B, tones, T] over the tones plus noise: [B, 1, T] float32."""
    clean = parts.sum(1, keepdims=True).astype(np.float32)
    return clean + np.float32(noise) * rng.standard_normal(clean.shape, dtype=np.float32)


def _check(length: int, noise: float, frequency: tuple[float, float], **ranges: tuple[float, float]) -> None:
    within("dataset.length", length, 4, 4096, "samples")
    within("dataset.noise", noise, 0, 1000, "a standard deviation")
    if len(frequency) != 2 or not 0 <= frequency[0] <= frequency[1] <= 0.5:
        raise ValueError(f"dataset.frequency={list(frequency)}: expected [least, largest] in 0..0.5 cycles per sample")
    for name, ends in ranges.items():
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1000:
            raise ValueError(f"dataset.{name}={list(ends)}: expected [least, largest], 0..1000")
    if ranges["tones"][1] > MOST_TONES:
        raise ValueError(f"dataset.tones={list(ranges['tones'])}: expected at most {MOST_TONES}")
