"""The Wiener filter: no linear filter has a smaller error on a stationary signal whose spectra are known."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigexp.datasets.deblur import blurred_digits
from sigexp.datasets.matched_filter import hidden_digit
from sigexp.signal.gaussian import gaussian_filter, gaussian_kernel
from sigexp.signal.wiener import filter_by, kernel_spectrum, mean_power, wiener_spectrum

EXTENT = (16, 18)
NOISE = 0.1


@pytest.fixture(scope="module")
def scene():
    """A blur, a power spectrum, and a periodic stationary signal with it, blurred and in white noise."""
    rng = torch.Generator().manual_seed(0)
    blur = kernel_spectrum(torch.from_numpy(gaussian_kernel((1.0, 0.7))), EXTENT)
    shape = kernel_spectrum(torch.from_numpy(gaussian_kernel((0.8, 1.5))), EXTENT)
    signal = filter_by(torch.randn(4000, *EXTENT, generator=rng, dtype=torch.float64), shape, EXTENT)
    power = shape.abs().square() * signal[0].numel()
    noisy = filter_by(signal, blur, EXTENT) + NOISE * torch.randn(signal.shape, generator=rng, dtype=torch.float64)
    return blur, power, signal, noisy


def error(filtered, signal) -> float:
    return float((filtered - signal).square().mean())


def expected_error(spectrum, blur, power) -> float:
    """Mean squared error in theory: |1 - G H|^2 S + |G|^2 N over all frequencies of the full plane."""
    values = EXTENT[0] * EXTENT[1]
    lost = (1 - spectrum * blur).abs().square() * power + spectrum.abs().square() * NOISE**2 * values
    weight = torch.full(lost.shape, 2.0, dtype=torch.float64)
    weight[:, 0] = weight[:, -1] = 1
    return float((weight * lost).sum()) / values**2


def test_its_error_is_what_theory_says(scene):
    blur, power, signal, noisy = scene
    wiener = wiener_spectrum(blur, power, NOISE**2 * signal[0].numel())
    assert error(filter_by(noisy, wiener, EXTENT), signal) == pytest.approx(
        expected_error(wiener, blur, power), rel=0.02
    )
    torch.testing.assert_close(mean_power(signal, EXTENT), power, rtol=0.15, atol=1e-3 * float(power.max()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-3, 1.0))
def test_any_other_filter_is_worse(scene, seed, size):
    blur, power, signal, _ = scene
    wiener = wiener_spectrum(blur, power, NOISE**2 * signal[0].numel())
    rng = torch.Generator().manual_seed(seed)
    other = wiener + size * torch.randn(wiener.shape, generator=rng, dtype=torch.complex128)
    assert expected_error(other, blur, power) > expected_error(wiener, blur, power)


def test_not_even_the_best_filter_of_these_very_examples_gains_much(scene):
    blur, power, signal, noisy = scene
    wiener = wiener_spectrum(blur, power, NOISE**2 * signal[0].numel())
    x, y = torch.fft.rfft2(noisy), torch.fft.rfft2(signal)
    fitted = (y * x.conj()).mean(0) / x.abs().square().mean(0)
    reached, least = (error(filter_by(noisy, g, EXTENT), signal) for g in (wiener, fitted))
    assert least <= reached <= 1.002 * least
    inverse = torch.where(blur.abs() > 1e-3, 1 / blur, torch.zeros_like(blur))
    assert reached < 0.5 * min(error(noisy, signal), error(filter_by(noisy, inverse, EXTENT), signal))


def test_without_noise_it_is_the_inverse_and_without_signal_nothing():
    blur = kernel_spectrum(torch.from_numpy(gaussian_kernel((0.5, 0.5))), EXTENT)
    torch.testing.assert_close(wiener_spectrum(blur, torch.ones(()), 0.0) * blur, torch.ones_like(blur))
    assert (wiener_spectrum(blur, torch.zeros(()), 1.0) == 0).all()
    assert (wiener_spectrum(blur, torch.zeros(()), 0.0) == 0).all()


def test_the_kernel_is_that_of_the_gaussian_filter():
    image = np.zeros((41, 31), np.float32)
    image[20, 15] = 1
    kernel = gaussian_kernel((2.0, 0.5))
    assert kernel.shape == (17, 5)
    expected = gaussian_filter(image, (2.0, 0.5))
    np.testing.assert_allclose(expected[12:29, 13:18], kernel, atol=1e-7)
    blurred = filter_by(torch.from_numpy(image), kernel_spectrum(torch.from_numpy(kernel), (64, 64)), (64, 64))
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-7)
    along_rows = scipy.ndimage.gaussian_filter1d(np.eye(9)[4:5], 1.0, mode="constant")
    np.testing.assert_allclose(gaussian_kernel((0.0, 1.0)), along_rows)


def test_it_restores_digits():
    problem = blurred_digits(size=1000, test_size=200)
    batch = problem.examples("test")
    psnr = problem.metrics["psnr"]
    reached, before = (
        float(psnr(problem.references[name].predict(batch.inputs), batch.targets).mean())
        for name in ("wiener", "identity")
    )
    assert reached > before + 3


def test_it_finds_hidden_digits_and_tends_to_the_correlation():
    problem = hidden_digit(image_size=64, test_size=50)
    batch = problem.examples("test")
    outputs = problem.references["wiener"].predict(batch.inputs)
    assert problem.metrics["hit_rate"](outputs, batch.targets).mean() > 0.9
    faint = hidden_digit(image_size=64, amplitude=1e-3).references
    found, limit = (faint[name].predict(batch.inputs) for name in ("wiener", "correlation"))
    torch.testing.assert_close(found, limit, rtol=0, atol=1e-3 * float(limit.abs().max()))
