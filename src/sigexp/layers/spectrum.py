"""Fourier transforms with a learned window, as front ends of a net."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowedFFT(nn.Module):
    """Real and imaginary part of the windowed spectrum: [B, C, T] -> [B, 2 C, T // 2 + 1].

    X[k] = sum_t w[t] x[t] exp(-2 pi i k t / T) / sqrt(T). The window w is learned and starts at 1.
    """

    def __init__(self, length: int):
        super().__init__()
        self.window = nn.Parameter(torch.ones(length))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x * self.window, norm="ortho")
        return torch.cat([spectrum.real, spectrum.imag], 1)


class SlidingPower(nn.Module):
    """Power of the short-time spectrum around every sample, zeros beyond the ends: [B, C, T] -> [B, C N, T].

    The window has `taps` samples (odd), is learned and starts at 1; the spectrum is sampled at N = `bins` frequencies
    from 0 to the Nyquist frequency, divided by sqrt(taps).
    """

    def __init__(self, taps: int, bins: int):
        super().__init__()
        self.window = nn.Parameter(torch.ones(taps))
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        taps = self.window.shape[0]
        frames = F.pad(x, (taps // 2, taps // 2)).unfold(2, taps, 1)  # [B, C, T, taps]
        spectrum = torch.fft.rfft(frames * (self.window / taps**0.5), 2 * (self.bins - 1))
        power = spectrum.real.square() + spectrum.imag.square()
        return power.transpose(2, 3).flatten(1, 2)
