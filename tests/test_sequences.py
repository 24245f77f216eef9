"""Recursive filter and spikes: blocks against a loop over samples and SciPy, and what the mathematics promises."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from sigexp.datasets.sequences import iir, spikes
from sigexp.signal.recursive import first_order


def recursion(x: np.ndarray, pole: float, gain: float) -> np.ndarray:
    y = np.zeros(len(x))
    y[0] = x[0]
    for t in range(1, len(x)):
        y[t] = pole * y[t - 1] + gain * x[t - 1]
    return y


def test_first_order_equals_the_loop() -> None:
    x = np.random.default_rng(0).random((3, 2, 100))
    y = first_order(x, pole=0.7, gain=0.3)
    for i in np.ndindex(3, 2):
        np.testing.assert_allclose(y[i], recursion(x[i], 0.7, 0.3), atol=1e-14)


def test_first_order_is_linear_but_not_invariant_to_shifts() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 50))
    both = first_order(2 * a - 3 * b, pole=-0.4, gain=1.5)
    parts = 2 * first_order(a, pole=-0.4, gain=1.5) - 3 * first_order(b, pole=-0.4, gain=1.5)
    np.testing.assert_allclose(both, parts, atol=1e-12)
    shifted = first_order(np.r_[0.0, a], pole=0.7, gain=0.3)
    assert abs(shifted[1:] - first_order(a, pole=0.7, gain=0.3))[0] == pytest.approx(a[0])


def test_iir_examples_follow_the_recursion() -> None:
    batch = iir().examples("train", 0, 300)
    x, y = batch.inputs[:, 0].double().numpy(), batch.targets[:, 0].numpy()
    np.testing.assert_allclose(y, np.stack([recursion(row, 0.7, 0.3) for row in x]), atol=1e-6)
    assert batch.inputs.shape == batch.targets.shape == (300, 1, 100)
    assert (x > 0).mean() == pytest.approx(0.1, abs=0.01)
    assert x[x > 0].mean() == pytest.approx(0.5, abs=0.02)
    assert x.max() < 1


def test_least_squares_finds_the_coefficients() -> None:
    batch = iir(pole=0.6, gain=-0.5).examples("train", 0, 50)
    x, y = batch.inputs[:, 0].double().numpy(), batch.targets[:, 0].double().numpy()
    known = np.stack([y[:, :-1].ravel(), x[:, :-1].ravel()], axis=1)
    found, *_ = np.linalg.lstsq(known, y[:, 1:].ravel(), rcond=None)
    np.testing.assert_allclose(found, [0.6, -0.5], atol=1e-6)


def test_spikes_equal_scipy_s_filter() -> None:
    batch = spikes().examples("train", 0, 300)
    x = batch.inputs[:, 0].double().numpy()
    expected = 4 * scipy.ndimage.gaussian_filter1d(x, 3.0, axis=1)
    np.testing.assert_allclose(batch.targets[:, 0].numpy(), expected, atol=1e-6)
    assert batch.inputs.shape == batch.targets.shape == (300, 1, 200)
    assert set(np.unique(x)) == {0.0, 1.0}
    assert x.mean() == pytest.approx(0.1, abs=0.01)


def test_interior_of_spikes_is_a_convolution_of_25_taps() -> None:
    problem = spikes()
    batch = problem.examples("test", 0, 200)
    impulse = np.zeros(25)
    impulse[12] = 4
    kernel = torch.tensor(scipy.ndimage.gaussian_filter1d(impulse, 3.0, mode="constant"), dtype=torch.float32)
    outputs = torch.nn.functional.conv1d(batch.inputs, kernel[None, None], padding=12)
    assert problem.metrics["mse_interior"](outputs, batch.targets).max() < 1e-12
    assert problem.metrics["mse"](outputs, batch.targets).mean() > 1e-3


@pytest.mark.parametrize("dataset", [iir, spikes])
def test_references_and_purity(dataset) -> None:
    problem = dataset()
    batch = problem.examples("test")
    error = {
        name: float(problem.metrics["mse"](reference.predict(batch.inputs), batch.targets).mean())
        for name, reference in problem.references.items()
    }
    assert error["exact"] < 1e-12
    assert error["constant"] < error["identity"]
    assert error["constant"] == pytest.approx(batch.targets.var().item(), rel=0.02)
    index = torch.tensor([1500, 7])
    one, other = problem.sample("train", index), dataset().examples("train", 0, 1501)
    assert torch.equal(one.inputs, other.inputs[index])
    assert torch.equal(one.targets, other.targets[index])
    assert dataset(size="stream").sizes["train"] is None


@pytest.mark.parametrize(
    ("dataset", "field", "value"),
    [(iir, "density", 3), (iir, "length", 1), (iir, "pole", 1.5), (spikes, "density", -1), (spikes, "sigma", -3)],
)
def test_errors_name_the_field(dataset, field: str, value) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.{field}="):
        dataset(**{field: value})


def test_synthesis_benchmark_prints_a_table(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.synthesis", "iir", "--quick", "--output", str(tmp_path / "table.md")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    line = done.stdout.splitlines()[-1]
    assert line.startswith("| iir |")
    assert float(line.split("|")[4]) > 0
    assert (tmp_path / "table.md").read_text() == done.stdout
