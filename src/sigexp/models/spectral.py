"""Nets that see frequencies: a learned filter bank, and a Fourier transform with a learned window.

Shapes: sequences (C, T) -> sequences (D, T), or anything else through a linear head.
"""

from math import prod

from torch import nn

from sigexp.layers.activations import pointwise
from sigexp.layers.spectrum import SlidingPower, WindowedFFT
from sigexp.models.fit import Shape, at_least, odd, sequences


def conv1d(
    input_shape: Shape,
    target_shape: Shape,
    *,
    filters: int = 32,
    kernel_size: int = 31,
    activation: str = "identity",
) -> nn.Module:
    """A bank of FIR filters, a nonlinearity, and a matrix on its channels; 'square' makes it a bank of band powers.

    A target of another extent than the input is made of all of the bank's outputs by a linear layer, which ties the
    model to one length of sequences.
    """
    sequences("conv1d", input_shape, target_shape)
    at_least("filters", 1, filters)
    channels, length = input_shape
    bank = nn.Conv1d(channels, filters, odd("kernel_size", kernel_size), padding=kernel_size // 2)
    if target_shape[1:] == (length,):
        return nn.Sequential(bank, pointwise(activation), nn.Conv1d(filters, target_shape[0], 1))
    flat = nn.Linear(filters * length, prod(target_shape))
    return nn.Sequential(bank, pointwise(activation), nn.Flatten(), flat, nn.Unflatten(1, tuple(target_shape)))


def fft(input_shape: Shape, target_shape: Shape, *, kernel_size: int = 31, bins: int = 65) -> nn.Module:
    """A Fourier transform with a learned window in front of the least that makes the target's shape of it.

    A target with T // 2 + 1 samples: the spectrum of the whole sequence and a matrix on its channels. One with T
    samples: the power of the short-time spectrum over `kernel_size` samples at `bins` frequencies, and a matrix on
    those. Any other: the spectrum of the whole sequence and a linear layer.
    """
    sequences("fft", input_shape, target_shape)
    channels, length = input_shape
    if target_shape[1:] == (length,):
        at_least("bins", 2, bins)
        if 2 * (bins - 1) < kernel_size:
            raise ValueError(f"model.bins={bins}: expected more than half of model.kernel_size={kernel_size}")
        power = SlidingPower(odd("kernel_size", kernel_size), bins)
        return nn.Sequential(power, nn.Conv1d(channels * bins, target_shape[0], 1))
    bands = length // 2 + 1
    if target_shape[1:] == (bands,):
        return nn.Sequential(WindowedFFT(length), nn.Conv1d(2 * channels, target_shape[0], 1))
    flat = nn.Linear(2 * channels * bands, prod(target_shape))
    return nn.Sequential(WindowedFFT(length), nn.Flatten(), flat, nn.Unflatten(1, tuple(target_shape)))
