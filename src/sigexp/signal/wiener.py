"""The Wiener filter: the linear filter of least mean squared error for a stationary signal, blurred and in noise.

Wiener 1949, 'Extrapolation, interpolation, and smoothing of stationary time series'. With H the spectrum of the blur,
S and N the power spectra of signal and noise, its spectrum is

    W = H* S / (|H|^2 S + N).

Axes: [..., H, W] pixels; frames are continued by zeros, so that no border sees the opposite one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def wiener_spectrum(blur: Tensor, signal_power: Tensor, noise_power: Tensor | float) -> Tensor:
    """W of broadcastable spectra; 0 where neither signal nor noise has power."""
    total = blur.abs().square() * signal_power + noise_power
    product = blur.conj() * signal_power
    return torch.where(total > 0, product / total.clamp_min(torch.finfo(total.dtype).tiny), torch.zeros_like(product))


def kernel_spectrum(kernel: Tensor, extent: Sequence[int]) -> Tensor:
    """Spectrum on a circle of `extent` pixels of a kernel [h, w] with its origin at (h // 2, w // 2)."""
    rows, columns = kernel.shape
    padded = kernel.new_zeros(*extent)
    padded[:rows, :columns] = kernel
    return torch.fft.rfft2(padded.roll((-(rows // 2), -(columns // 2)), (0, 1)))


def mean_power(frames: Tensor, extent: Sequence[int]) -> Tensor:
    """Mean over [N, H, W] of |DFT|^2 on a circle of `extent` pixels: [H', W' / 2 + 1]."""
    return torch.fft.rfft2(frames, s=list(extent)).abs().square().mean(0)


def filter_by(frames: Tensor, spectrum: Tensor, extent: Sequence[int]) -> Tensor:
    """Frames [..., H, W] filtered by a spectrum on a circle of `extent` pixels: same shape."""
    product = torch.fft.rfft2(frames, s=list(extent)) * spectrum.to(frames.device)
    return torch.fft.irfft2(product, s=list(extent))[..., : frames.shape[-2], : frames.shape[-1]].to(frames.dtype)
