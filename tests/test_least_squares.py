"""The closed-form filters and matrices against plain regressions on explicit windows, and against training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigexp.signal import least_squares
from sigexp.signal.least_squares import convolution, fit_convolution, separable, sums
from sigexp.signal.linear_map import BY_CHOLESKY, fit_matrix, learning_curve


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def explicit_features(x: torch.Tensor, kernel: tuple[int, int]) -> np.ndarray:
    """Windows, whether the columns under the taps lie inside, and a 1, a row for every position."""
    windows = F.unfold(x.double(), kernel, padding=(kernel[0] // 2, kernel[1] // 2)).transpose(1, 2).flatten(0, 1)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.float64)
    inside = F.unfold(ones, (1, kernel[1]), padding=(0, kernel[1] // 2))[0].T.repeat(len(x), 1)
    return torch.cat([windows, inside, torch.ones_like(inside[:, :1])], 1).numpy()


def rows(y: torch.Tensor) -> np.ndarray:
    return y.double().flatten(2).transpose(1, 2).flatten(0, 1).numpy()


def by_explicit_windows(x, y, kernel):
    phi = explicit_features(x, kernel)
    taps = x.shape[1] * kernel[0] * kernel[1]
    solution = np.linalg.lstsq(phi[:, [*range(taps), -1]], rows(y), rcond=None)[0]
    return solution[:-1].T.reshape(y.shape[1], x.shape[1], *kernel), solution[-1]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 5), (5, 3), (1, 7), (7, 1), (11, 11)])
@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("chunk", [10, 1000])
@pytest.mark.parametrize("frame", [(2, 26, 7), (1, 1, 40), (1, 9, 9)])
def test_normal_equations_are_the_products_of_explicit_features(kernel, gram, chunk, frame, monkeypatch):
    monkeypatch.setattr(least_squares, "_gram_flops", lambda *_: 0.0 if gram else np.inf)
    monkeypatch.setattr(least_squares, "CHUNK", chunk)
    x, y = random(10, *frame), random(10, 3, *frame[1:], seed=1)
    found, phi = sums(x, y, kernel), explicit_features(x, kernel)
    np.testing.assert_allclose(found.matrix, phi.T @ phi, atol=1e-10)
    np.testing.assert_allclose(found.right, phi.T @ rows(y), atol=1e-10)
    assert found.energy == pytest.approx(float(y.double().square().sum()))


@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize("gram", [True, False])
def test_equals_regression_on_windows(gram, precise, monkeypatch):
    monkeypatch.setattr(least_squares, "_gram_flops", lambda *_: 0.0 if gram else np.inf)
    monkeypatch.setattr(least_squares, "PRECISE_FLOPS", 1e12 if precise else 0)
    x, y = random(40, 2, 8, 9), random(40, 3, 8, 9, seed=1)
    weight, bias = fit_convolution(x, y, (3, 5))
    expected_weight, expected_bias = by_explicit_windows(x, y, (3, 5))
    tolerance = 1e-12 if precise else 1e-5
    np.testing.assert_allclose(weight.numpy(), expected_weight, atol=tolerance)
    np.testing.assert_allclose(bias.numpy(), expected_bias, atol=tolerance)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 5), (7, 1), (7, 5)])
def test_a_larger_window_holds_the_equations_of_a_smaller_one(kernel):
    x, y = random(10, 2, 26, 7), random(10, 3, 26, 7, seed=1)
    found, expected = sums(x, y, (7, 5)).within(kernel), sums(x, y, kernel)
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-10)
    np.testing.assert_allclose(found.right, expected.right, atol=1e-10)
    assert (found.energy, found.kernel) == (expected.energy, kernel)


def test_a_smaller_window_holds_no_larger_one():
    with pytest.raises(ValueError, match="at most"):
        sums(random(2, 1, 9, 9), random(2, 1, 9, 9), (3, 3)).within((5, 3))


def test_frames_of_different_size_add_up():
    small, large = (random(2, 1, *size, seed=i) for i, size in enumerate(((5, 6), (9, 12))))
    total = sums(small, small.square(), (3, 3)) + sums(large, large.square(), (3, 3))
    weight, bias = convolution(total)
    phi = np.concatenate([explicit_features(x, (3, 3))[:, [*range(9), -1]] for x in (small, large)])
    right = np.concatenate([rows(x.square()) for x in (small, large)])
    expected = np.linalg.lstsq(phi, right, rcond=None)[0]
    np.testing.assert_allclose(weight.flatten().numpy(), expected[:-1, 0], atol=1e-12)
    np.testing.assert_allclose(bias.numpy(), expected[-1], atol=1e-12)


def test_finds_the_convolution_that_made_the_targets():
    x = random(200, 1, 12, 12)
    weight, bias = random(2, 1, 3, 3, seed=1), random(2, seed=2)
    found, offset = fit_convolution(x, F.conv2d(x, weight, bias, padding=1), (3, 3))
    torch.testing.assert_close(found.float(), weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(offset.float(), bias, atol=1e-5, rtol=0)


def test_a_trained_convolution_ends_in_it():
    x, y = random(20, 2, 6, 6).double(), random(20, 1, 6, 6, seed=1).double()
    layer = nn.Conv2d(2, 1, 3, padding=1).double()
    train(layer, x, y)
    weight, bias = fit_convolution(x, y, (3, 3))
    torch.testing.assert_close(layer.weight.detach(), weight, atol=1e-7, rtol=0)
    torch.testing.assert_close(layer.bias.detach(), bias, atol=1e-7, rtol=0)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = F.mse_loss(model(x), y)
        value.backward()
        return value

    optimizer.step(loss)
    return loss().item()


def filtered(x, layers):
    down, first, across, second = layers
    y = F.conv2d(x, down, first, padding=(down.shape[2] // 2, 0))
    return F.conv2d(y, across, second, padding=(0, across.shape[3] // 2))


def test_separable_finds_the_filters_that_made_the_targets():
    x = random(100, 3, 9, 8).double()
    shapes = ((2, 3, 5, 1), (2,), (2, 2, 1, 3), (2,))
    y = filtered(x, [random(*shape, seed=i).double() for i, shape in enumerate(shapes)])
    found = separable(sums(x, y, (5, 3)))
    assert [tuple(part.shape) for part in found] == list(shapes)
    assert F.mse_loss(filtered(x, found), y) < 1e-12 * y.var()


def test_no_training_passes_the_separable_filter():
    x = random(30, 1, 7, 8).double() + 1
    y = F.conv2d(x, random(1, 1, 5, 5, seed=1).double(), padding=2) + random(30, 1, 7, 8, seed=2)
    equations = sums(x, y, (5, 5))
    least = float(F.mse_loss(filtered(x, separable(equations)), y))
    weight, bias = convolution(equations)
    assert least > F.mse_loss(F.conv2d(x, weight, bias, padding=2), y)
    torch.manual_seed(0)
    reached = []
    for _ in range(4):
        column, row = nn.Conv2d(1, 1, (5, 1), padding=(2, 0)), nn.Conv2d(1, 1, (1, 5), padding=(0, 2))
        reached.append(train(nn.Sequential(column, row).double(), x, y))
    assert min(reached) == pytest.approx(least, rel=1e-5)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="odd"):
        fit_convolution(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), (4, 4))


@pytest.mark.parametrize("examples", [10, 60])
@pytest.mark.parametrize("cholesky", [0, BY_CHOLESKY])
def test_the_matrix_is_that_of_a_regression_of_least_norm(examples, cholesky, monkeypatch):
    monkeypatch.setattr("sigexp.signal.linear_map.BY_CHOLESKY", cholesky)
    x, y = random(examples, 20), random(examples, 3, seed=1)
    weight, bias = fit_matrix([(x[:4], y[:4]), (x[4:], y[4:])])
    phi = np.concatenate([x.double().numpy(), np.ones((examples, 1))], axis=1)
    expected = np.linalg.lstsq(phi, y.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(torch.cat([weight.T, bias[None]]).numpy(), expected, atol=1e-8)


def test_the_learning_curve_is_that_of_fits_to_the_first_examples():
    x, y, t, expected = random(30, 20), random(30, 3, seed=1), random(9, 20, seed=2), random(9, 3, seed=3)
    counts, errors = learning_curve(x[:18], y[:18], t, expected, step=5)
    assert counts == [5, 10, 15, 18]
    for count, error in zip(counts, errors, strict=True):
        weight, bias = fit_matrix([(x[:count], y[:count])])
        assert error == pytest.approx(float(F.mse_loss(t.double() @ weight.T + bias, expected.double())), rel=1e-6)


def test_a_linear_map_is_known_once_there_are_as_many_examples_as_inputs():
    x, t, matrix = random(60, 20), random(9, 20, seed=1), random(3, 20, seed=2)
    _, errors = learning_curve(x, x @ matrix.T, t, t @ matrix.T, step=20)
    assert errors[0] > 1e-4
    assert max(errors[1:]) < 1e-10
