"""Pictures over seeds: the learned kernel beside the true one, gains with their range."""

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
import yaml
from torch import nn

from sigexp import config, gallery, saved
from sigexp.datasets.gaussian import gaussian_impulses
from sigexp.datasets.sequences import iir, spikes
from sigexp.report import seeds, tiles
from sigexp.signal import response


def conv(kernel: np.ndarray) -> nn.Conv2d:
    """One channel to one, with a kernel [h, w]."""
    layer = nn.Conv2d(1, 1, kernel.shape, padding=(kernel.shape[0] // 2, kernel.shape[1] // 2), dtype=torch.float64)
    layer.weight.data = torch.from_numpy(kernel)[None, None]
    return layer.requires_grad_(False)


def looks(*kernels: np.ndarray) -> list[response.Response]:
    frames = torch.rand(2, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return [response.measure(conv(kernel), frames) for kernel in kernels]


def test_true_kernels_filter_as_the_datasets_do():
    images, filtered = gaussian_impulses(size=1, test_size=1, sigma=(2.0, 1.0)).examples("test")
    kernel = gaussian_impulses(sigma=(2.0, 1.0)).kernel
    by_kernel = scipy.ndimage.convolve(images[0, 0].double().numpy(), kernel, mode="reflect")
    assert by_kernel == pytest.approx(filtered[0, 0].numpy(), abs=1e-6)
    for problem, mode in ((spikes(size=1, test_size=1), "reflect"), (iir(size=1, test_size=1), "constant")):
        signal = problem.examples("test").inputs[0, 0].double().numpy()
        signal[0] = 0  # the recursive filter starts from it, which no kernel does
        given = problem.references["exact"].predict(torch.from_numpy(signal).float()[None, None])[0, 0].numpy()
        assert scipy.ndimage.convolve1d(signal, problem.kernel, mode=mode) == pytest.approx(given, abs=1e-5)
        assert len(problem.kernel) % 2 == 1


def test_a_kernel_is_cut_and_padded_about_its_middle():
    kernel = np.arange(15.0).reshape(5, 3)
    shown = tiles.fitted_to(kernel, 3)
    assert np.array_equal(shown, kernel[1:4])
    assert np.array_equal(tiles.fitted_to(kernel, 7)[1:6, 2:5], kernel)
    assert tiles.half_extent(np.array([0, 0, 1e-9, 1, 0, 0.5, 0])) == 2


def titled(monkeypatch: pytest.MonkeyPatch) -> list:
    figures: list = []
    monkeypatch.setattr(seeds, "png", lambda figure: figures.append(figure) or b"png")
    return figures


def test_the_distance_is_that_of_the_median_kernel(monkeypatch):
    figures = titled(monkeypatch)
    true = np.outer([1.0, 2, 1], [1.0, 3, 1])
    assert seeds.kernel(looks(true, true, 5 * true), true) == b"png"
    assert "distance" in figures[0].get_suptitle()
    assert float(figures[0].get_suptitle().split("distance ")[1].split(" %")[0]) < 1e-6
    seeds.kernel(looks(1.5 * true), true)
    assert "distance 50 %" in figures[1].get_suptitle()


def test_the_band_is_the_range_of_the_gains(monkeypatch):
    figures = titled(monkeypatch)
    low, high = np.full((3, 3), 0.05), np.full((3, 3), 0.2)
    assert seeds.band(looks(low, 2 * low, high), 2 * low) == b"png"
    panel = figures[0].axes[0]
    rates, level = panel.lines[0].get_data()
    expected = scipy.signal.freqz([0.3, 0.3, 0.3], worN=rates, fs=1)[1]  # columns add up to 3 x 0.1
    assert level == pytest.approx(np.maximum(20 * np.log10(np.abs(expected).clip(1e-12)), -60), abs=1e-4)
    heights = panel.collections[0].get_paths()[0].vertices
    at_zero = heights[heights[:, 0] == 0][:, 1]
    assert at_zero.max() - at_zero.min() == pytest.approx(20 * np.log10(4))
    dashed = panel.lines[1].get_data()[1]
    assert dashed[0] == pytest.approx(level[0])


def test_a_line_for_each_channel_and_none_for_other_shapes(monkeypatch):
    figures = titled(monkeypatch)
    frames = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    colours = response.measure(nn.Conv2d(3, 3, 5, padding=2, dtype=torch.float64).requires_grad_(False), frames)
    assert seeds.band([colours], None, ("R", "G", "B")) == b"png"
    assert [line.get_label() for line in figures[0].axes[0].lines] == ["R", "G", "B"]
    assert seeds.kernel([colours], np.ones((3, 3))) is None
    grey = response.measure(nn.Conv2d(3, 1, 5, padding=2, dtype=torch.float64).requires_grad_(False), frames)
    assert seeds.band([grey], None) is None


def test_what_answers_to_all_frequencies_alike_has_no_band():
    assert seeds.band(looks(np.array([[2.0]])), None) is None


DATASET = {"_target_": "sigexp.datasets.gaussian.gaussian_impulses", "size": 20, "test_size": 4, "image_size": 24}


def run_of(folder: Path, seed: int) -> Path:
    """What the gallery reads of a run: an untrained linear model and the dataset it is for."""
    folder.mkdir()
    node = {"_target_": "sigexp.models.filters.linear", "kernel_size": 5}
    torch.manual_seed(seed)
    shape = (1, 24, 24)
    model = config.build(node, shape, shape, what="model")
    said = {"experiment": "gaussian", "name": "linear", "kind": "image", "labels": [], "model": node}
    saved.save_model(folder, model, {**said, "input_shape": shape, "target_shape": shape})
    (folder / "config.yaml").write_text(yaml.safe_dump({"dataset": {**DATASET, "seed": seed}}))
    return folder


def test_the_gallery_draws_both_from_finished_runs(tmp_path):
    runs = [run_of(tmp_path / f"run{seed}", seed) for seed in (0, 1)]
    results = [{"response": {"superposition_error": 1e-16}} for _ in runs]
    shown = gallery.over_seeds(runs, results, tmp_path, "linear")
    assert [line.rpartition("(")[2] for line in shown] == ["linear-true-kernel.png)", "linear-gain.png)"]
    assert (tmp_path / "linear-gain.png").read_bytes().startswith(b"\x89PNG")
    for bent in ({"superposition_error": 0.5}, None):
        assert gallery.over_seeds(runs, [{"response": bent}] * 2, tmp_path, "linear") == []
    problem = saved.load_problem(runs[1])
    assert problem.shapes()[0] == (1, 24, 24)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dataset: {_target_: os.getcwd}", "neither sigexp's conf"),
        ("dataset: {_target_: sigexp.datasets.gaussian.gaussian_impulses, sigma: '${oc.env:HOME}'}", "holds"),
        ("dataset: {_target_: sigexp.datasets.gaussian.gaussian_impulses, _args_: [1]}", "names the key '_args_'"),
        ("dataset: {_target_: sigexp.datasets.gaussian.gaussian_impulses, a: {_target_: os.getcwd}}", "'os.getcwd'"),
        ("other: 1", "not a config"),
        ("dataset: [", "cannot be read"),
    ],
)
def test_a_folder_may_not_name_what_is_not_on_offer(text, part, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=part):
        saved.load_problem(tmp_path)
