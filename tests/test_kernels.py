"""How Gabor-like a bank of filters is: exact for Gabor functions, far off for noise."""

import numpy as np
import pytest
import torch
from torch import nn

from sigexp import kernels
from sigexp.signal.gabor_fit import fit_gabor
from sigexp.signal.spectra import gabor

T = np.arange(31.0)


@pytest.mark.parametrize(("mu", "sigma", "frequency"), [(15.0, 4.0, 0.1), (11.3, 6.2, 0.237), (18.7, 2.5, 0.43)])
def test_a_gabor_function_is_found_whatever_its_phase_and_height(mu, sigma, frequency):
    phases = np.array([0.0, 0.13, 0.25, 0.6])[:, None]
    signals = np.array([[1.0], [-3.0], [1e-3], [20.0]])
    bank = signals * gabor(T, mu=mu, sigma=sigma, frequency=frequency, phase=phases)
    residual, width = fit_gabor(bank)
    assert residual.max() < 1e-3
    assert width == pytest.approx(np.full(4, sigma), rel=0.05)


def test_the_residual_is_the_share_of_energy_that_least_squares_leaves():
    rng = np.random.default_rng(0)
    clean = gabor(T, mu=15, sigma=4, frequency=0.2)
    noise = rng.standard_normal(31)
    envelope = np.exp(-((T - 15) ** 2) / 32)
    basis = np.stack([envelope * np.sin(0.4 * np.pi * T), envelope * np.cos(0.4 * np.pi * T)])
    noise -= np.linalg.lstsq(basis.T, noise, rcond=None)[0] @ basis
    noise *= 0.05 / np.linalg.norm(noise)
    kernel = clean / np.linalg.norm(clean) + noise
    residual, _ = fit_gabor(kernel[None])
    assert 0 < residual[0] <= 0.05**2 / (1 + 0.05**2) + 1e-6


def test_white_kernels_are_not_gabor_functions():
    assert 0.5 < kernels.white_residual(31) < 0.8


def test_an_empty_kernel_is_unexplained():
    residual, _ = fit_gabor(np.zeros((1, 31)))
    assert residual[0] == 1


def bank(filters):
    layer = nn.Conv1d(1, len(filters), filters.shape[1])
    layer.weight.data = torch.from_numpy(filters).float()[:, None]
    return nn.Sequential(layer, nn.Conv1d(len(filters), 1, 1))


def test_a_bank_of_gabor_functions_is_told_from_noise_and_faint_filters_do_not_count():
    rng = np.random.default_rng(0)
    filters = gabor(T, mu=15, sigma=5, frequency=rng.uniform(0.05, 0.45, (16, 1)), phase=rng.random((16, 1)))
    found = kernels.measure(bank(filters))
    assert found["gabor_residual"] < 1e-3
    assert found["gabor_share"] == 1
    assert found["white_residual"] > 0.5
    noise = rng.standard_normal((16, 31))
    assert kernels.measure(bank(noise))["gabor_residual"] > 0.5
    faint = np.concatenate([filters, 1e-3 * noise])
    assert kernels.measure(bank(faint))["gabor_residual"] < 1e-3


def test_plain_sinusoids_are_not_counted():
    waves = np.sin(2 * np.pi * np.linspace(0.1, 0.4, 8)[:, None] * T)
    found = kernels.measure(bank(np.concatenate([waves, gabor(T, mu=15, sigma=3, frequency=0.2)[None]])))
    assert found["gabor_share"] == pytest.approx(1 / 9)
    assert found["gabor_residual"] < 1e-3


def test_other_models_say_nothing():
    assert kernels.measure(nn.Conv2d(1, 8, 9)) == {}
    assert kernels.measure(nn.Linear(4, 4)) == {}
    assert kernels.measure(nn.Conv1d(1, 1, 31)) == {}
