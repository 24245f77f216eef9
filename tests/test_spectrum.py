"""Spectra against the sums that define them, and Gabor functions against their formula."""

import numpy as np
import pytest
import scipy.signal
import torch

from sigexp.datasets.spectrum import spectrum, spectrum_energy, spectrum_power
from sigexp.signal.spectra import (
    band_frequencies,
    gabor,
    gabor_2d,
    hann,
    sliding_energy,
    sliding_power,
    windowed_dft,
)


@pytest.mark.parametrize("length", [16, 31, 128])
def test_windowed_dft_equals_its_sum(length: int) -> None:
    x = np.random.default_rng(0).standard_normal((4, length))
    t, k = np.arange(length), np.arange(length // 2 + 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * t / length)
    matrix = window * np.exp(-2j * np.pi * k[:, None] * t / length) / np.sqrt((window**2).sum())
    expected = x @ matrix.T
    found = windowed_dft(x)
    np.testing.assert_allclose(found[:, 0] + 1j * found[:, 1], expected, atol=1e-12)


def test_noise_has_mean_power_1_in_every_bin() -> None:
    power = (windowed_dft(np.random.default_rng(0).standard_normal((20_000, 64))) ** 2).sum(1).mean(0)
    np.testing.assert_allclose(power, 1, atol=0.05)


def test_hann_windows() -> None:
    np.testing.assert_allclose(hann(8, periodic=True), scipy.signal.get_window("hann", 8))
    np.testing.assert_allclose(hann(9), np.hanning(9), atol=1e-15)


def test_sliding_power_equals_convolution_band_by_band() -> None:
    x = np.random.default_rng(0).standard_normal((3, 50))
    found = sliding_power(x, bands=4, taps=11)
    window = np.hanning(13)[1:-1]
    for b in range(3):
        for f, frequency in enumerate([0.0625, 0.1875, 0.3125, 0.4375]):
            kernel = window * np.exp(2j * np.pi * frequency * np.arange(11)) / (window.sum() / 2)
            np.testing.assert_allclose(found[b, f], np.abs(np.convolve(x[b], kernel, "same")) ** 2, atol=1e-5)
    assert found.dtype == np.float32


def test_sliding_power_of_a_steady_sinusoid_is_its_amplitude_squared_in_its_band() -> None:
    bands = band_frequencies(16)
    t = np.arange(200)
    power = sliding_power(1.5 * np.sin(2 * np.pi * bands[5] * t + 0.3)[None], bands=16, taps=31)[0, :, 50:150]
    np.testing.assert_allclose(power[5], 2.25, rtol=0.02)
    assert power.argmax(0).tolist() == [5] * 100
    assert power[[0, 1, 9, 15]].max() < 0.01


def test_gabor_functions_are_the_lecture_s() -> None:
    x = np.linspace(-10, 10, 41)
    expected = np.exp(-((x - 1) ** 2) / (2 * 2.5**2)) * np.sin(2 * np.pi * (0.3 * x + 0.25))
    np.testing.assert_allclose(gabor(x, mu=1, sigma=2.5, frequency=0.3, phase=0.25), expected)
    rows, columns = x[:, None], x
    found = gabor_2d(rows, columns, mu=(1, -2), sigma=2.5, phase=0.1)
    assert found.shape == (41, 41)
    wave = np.sin(2 * np.pi * (0.7 * rows + 0.7 * columns + 0.1))
    np.testing.assert_allclose(found, np.exp(-((rows - 1) ** 2 + (columns + 2) ** 2) / 12.5) * wave)


def test_gabor_2d_of_one_axis_is_separable() -> None:
    x = np.linspace(-5, 5, 21)
    found = gabor_2d(x[:, None], x, mu=(0.5, 1.0), sigma=2.0, frequency=(0.2, 0.0), phase=0.1)
    envelope = np.exp(-((x - 1.0) ** 2) / 8)
    np.testing.assert_allclose(found, gabor(x, mu=0.5, sigma=2.0, frequency=0.2, phase=0.1)[:, None] * envelope)


def test_spectrum_is_a_linear_map_that_least_squares_finds() -> None:
    problem = spectrum()
    train, test = problem.examples("train", 0, 400), problem.examples("test", 0, 100)
    matrix, *_ = np.linalg.lstsq(train.inputs[:, 0].double().numpy(), train.targets.flatten(1).double().numpy())
    outputs = test.inputs[:, 0].double().numpy() @ matrix
    assert np.square(outputs - test.targets.flatten(1).numpy()).mean() < 1e-10


def test_spectrum_has_a_peak_for_every_tone() -> None:
    quiet = spectrum(noise=0.0, tones=(1, 1), amplitude=(1.0, 1.0), frequency=(0.25, 0.25)).examples("train", 0, 20)
    power = quiet.targets.square().sum(1)
    assert power.argmax(1).tolist() == [32] * 20
    assert power[:, :30].max() < 1e-6
    counts = spectrum(noise=0.0, tones=(0, 3)).examples("train", 0, 400).inputs.abs().amax((1, 2)) == 0
    assert 0.15 < counts.float().mean() < 0.35


@pytest.mark.parametrize(("dataset", "shape"), [(spectrum, (2, 65)), (spectrum_power, (16, 128))])
def test_shapes_references_and_purity(dataset, shape: tuple[int, int]) -> None:
    problem = dataset()
    assert problem.shapes() == ((1, 128), shape)
    batch = problem.examples("test", 0, 300)
    error = {
        name: float(problem.metrics["mse"](reference.predict(batch.inputs), batch.targets).mean())
        for name, reference in problem.references.items()
    }
    assert error["exact"] < 1e-12 < error["constant"]
    assert torch.isfinite(batch.targets).all()
    index = torch.tensor([700, 7])
    one, other = problem.sample("train", index), dataset().examples("train", 0, 701)
    assert torch.equal(one.inputs, other.inputs[index])
    assert torch.equal(one.targets, other.targets[index])


def test_bursts_are_local_in_time_and_frequency() -> None:
    batch = spectrum_power(noise=0.0, tones=(1, 1), sigma=(6.0, 6.0), frequency=(0.1, 0.4)).examples("train", 0, 100)
    total = batch.targets.sum((1, 2))
    by_band, by_time = batch.targets.sum(2), batch.targets.sum(1)
    assert (by_band.topk(3).values.sum(1) / total).min() > 0.7
    assert (by_time.topk(48).values.sum(1) / total).min() > 0.9


@pytest.mark.parametrize(
    ("dataset", "field", "value"),
    [
        (spectrum, "length", 3),
        (spectrum, "noise", -0.1),
        (spectrum, "tones", (3, 1)),
        (spectrum, "frequency", (0.0, 0.7)),
        (spectrum, "amplitude", (1.0,)),
        (spectrum_power, "bands", 0),
        (spectrum_power, "sigma", (0.0, 4.0)),
    ],
)
def test_errors_name_the_field(dataset, field: str, value) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.{field}="):
        dataset(**{field: value})


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ValueError, match="taps=30"):
        spectrum_power(taps=30)
    with pytest.raises(ValueError, match="taps=30"):
        sliding_power(np.zeros((1, 64)), bands=4, taps=30)


def test_energy_is_a_weighted_sum_of_squares_and_the_sum_of_all_powers():
    x = np.random.default_rng(0).standard_normal((2, 60))
    taps = 9
    window = np.hanning(taps + 2)[1:-1]
    padded = np.pad(x, ((0, 0), (taps // 2, taps // 2)))
    slow = np.zeros_like(x)
    for t in range(60):
        slow[:, t] = ((window * padded[:, t : t + taps]) ** 2).sum(1) * 2 / (window**2).sum()
    found = sliding_energy(x, taps=taps)
    np.testing.assert_allclose(found, slow, rtol=1e-5)
    bands = 64  # more than taps, so that the powers sample the spectrum without a gap
    power = sliding_power(x, bands=bands, taps=taps).sum(1)
    scale = (window.sum() / 2) ** 2 / (bands * (window**2).sum() / 2)
    np.testing.assert_allclose(power * scale, found, rtol=1e-4)


def test_spectrum_energy_is_the_energy_of_the_same_bursts():
    energy, power = spectrum_energy(seed=3), spectrum_power(seed=3)
    one, other = (problem.examples("test", 0, 5) for problem in (energy, power))
    assert torch.equal(one.inputs, other.inputs)
    assert one.targets.shape == (5, 1, 128)
    np.testing.assert_array_equal(one.targets[:, 0], sliding_energy(one.inputs[:, 0].numpy(), taps=31))
    with pytest.raises(ValueError, match="taps=4"):
        spectrum_energy(taps=4)
    with pytest.raises(ValueError, match="taps=4"):
        sliding_energy(np.zeros((1, 64)), taps=4)
