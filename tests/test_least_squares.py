"""The closed-form kernel against a plain regression on explicit windows, by both routes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sigexp.signal import least_squares
from sigexp.signal.least_squares import fit_convolution


def by_explicit_windows(x, y, kernel):
    windows = F.unfold(x.double(), kernel, padding=(kernel[0] // 2, kernel[1] // 2)).transpose(1, 2).flatten(0, 1)
    rows = np.hstack([windows.numpy(), np.ones((len(windows), 1))])
    solution = np.linalg.lstsq(rows, y.double().flatten(2).transpose(1, 2).flatten(0, 1).numpy(), rcond=None)[0]
    return solution[:-1].T.reshape(y.shape[1], x.shape[1], *kernel), solution[-1]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 5), (5, 3), (1, 7)])
@pytest.mark.parametrize("gram", [True, False])
def test_equals_regression_on_windows(kernel, gram, monkeypatch):
    monkeypatch.setattr(least_squares, "GRAM_VALUES", 4096 if gram else 0)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 2, 8, 9, generator=rng), torch.randn(40, 3, 8, 9, generator=rng)
    weight, bias = fit_convolution(x, y, kernel)
    expected_weight, expected_bias = by_explicit_windows(x, y, kernel)
    np.testing.assert_allclose(weight.numpy(), expected_weight, atol=1e-5)
    np.testing.assert_allclose(bias.numpy(), expected_bias, atol=1e-5)


def test_finds_the_convolution_that_made_the_targets():
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(200, 1, 12, 12, generator=rng)
    weight, bias = torch.randn(2, 1, 3, 3, generator=rng), torch.randn(2, generator=rng)
    found, offset = fit_convolution(x, F.conv2d(x, weight, bias, padding=1), (3, 3))
    torch.testing.assert_close(found.float(), weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(offset.float(), bias, atol=1e-5, rtol=0)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="odd"):
        fit_convolution(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), (4, 4))
