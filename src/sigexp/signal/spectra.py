"""Short-time spectra of sequences, and the Gabor functions that a learned filter bank may come to resemble.

Frequencies are in cycles per sample, so that 0.5 is the Nyquist frequency. Axes: B sequences, T samples, F bands.
"""

import numpy as np
import scipy.ndimage
import scipy.signal


def hann(length: int, *, periodic: bool = False) -> np.ndarray:
    """Hann window of `length` samples, float64: periodic for a transform, symmetric for a filter."""
    return scipy.signal.windows.hann(length, sym=not periodic)


def windowed_dft(x: np.ndarray) -> np.ndarray:
    """Real and imaginary part of the Hann-windowed DFT of [..., T]: [..., 2, T // 2 + 1] float64.

    X[k] = sum_t w[t] x[t] exp(-2 pi i k t / T) / sqrt(sum_t w[t]^2): noise of variance 1 has bins of mean power 1.
    """
    window = hann(x.shape[-1], periodic=True)
    spectrum = np.fft.rfft(x * (window / np.sqrt((window**2).sum())), axis=-1)
    return np.stack([spectrum.real, spectrum.imag], axis=-2)


def band_frequencies(bands: int) -> np.ndarray:
    """Middles of `bands` equal parts of 0..0.5 cycles per sample: [F]."""
    return (np.arange(bands) + 0.5) / (2 * bands)


def sliding_power(x: np.ndarray, *, bands: int, taps: int) -> np.ndarray:
    """Power of [B, T] in F bands around every sample, zeros beyond the ends: [B, F, T] float32.

    P[f, t] = |sum_j w[j] x[t + j] exp(-2 pi i f j)|^2 / (sum w / 2)^2 with a Hann window w of `taps` (odd) samples
    around t: a steady sinusoid of amplitude 1 has power 1 at its own frequency.
    """
    if taps < 3 or taps % 2 == 0:
        raise ValueError(f"taps={taps}: expected an odd number of at least 3")
    window = _sliding_window(taps)
    at = np.arange(taps) - taps // 2
    kernel = window[:, None] * np.exp(-2j * np.pi * at[:, None] * band_frequencies(bands)) / (window.sum() / 2)
    filters = np.concatenate([kernel.real, kernel.imag], axis=1).astype(np.float32)
    padded = np.pad(x.astype(np.float32, copy=False), ((0, 0), (taps // 2, taps // 2)))
    parts = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=1) @ filters  # [B, T, 2 F]
    power = parts[..., :bands] ** 2 + parts[..., bands:] ** 2
    return np.ascontiguousarray(power.swapaxes(1, 2))


def sliding_energy(x: np.ndarray, *, taps: int) -> np.ndarray:
    """Energy of [B, T] around every sample, zeros beyond the ends: [B, T] float32.

    E[t] = sum_j w[j]^2 x[t + j]^2 / (sum w^2 / 2) with the window w of `sliding_power`, whose powers at all
    frequencies add up to it (Parseval): 1 for a steady sinusoid of amplitude 1.
    """
    if taps < 3 or taps % 2 == 0:
        raise ValueError(f"taps={taps}: expected an odd number of at least 3")
    weights = _sliding_window(taps) ** 2
    energy = scipy.ndimage.correlate1d(x.astype(np.float64) ** 2, 2 * weights / weights.sum(), axis=-1, mode="constant")
    return energy.astype(np.float32)


def _sliding_window(taps: int) -> np.ndarray:
    """Hann window of `taps` samples without the two zeros at its ends."""
    return scipy.signal.windows.hann(taps + 2)[1:-1]


Numbers = float | np.ndarray  # a number, or an array that broadcasts


def gabor(x: np.ndarray, *, mu: Numbers, sigma: Numbers, frequency: Numbers, phase: Numbers = 0.0) -> np.ndarray:
    """exp(-(x - mu)^2 / (2 sigma^2)) sin(2 pi (frequency x + phase)); phase in turns. Shape and unit of x are free."""
    return np.exp(-((x - mu) ** 2) / (2 * sigma**2)) * np.sin(2 * np.pi * (frequency * x + phase))


def gabor_2d(
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    mu: tuple[float, float] = (0.0, 0.0),
    sigma: float,
    frequency: tuple[float, float] = (0.7, 0.7),
    phase: float = 0.0,
) -> np.ndarray:
    """exp(-|p - mu|^2 / (2 sigma^2)) sin(2 pi (frequency . p + phase)) at points p = (rows, columns): their shape."""
    distance = (rows - mu[0]) ** 2 + (columns - mu[1]) ** 2
    wave = np.sin(2 * np.pi * (frequency[0] * rows + frequency[1] * columns + phase))
    return np.exp(-distance / (2 * sigma**2)) * wave
