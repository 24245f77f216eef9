"""Rank filters by sorting networks, and the dataset of median-filtered photographs and dots."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch

from sigexp.data.images import image_source
from sigexp.datasets.median import median_photographs, shifted_gaussian
from sigexp.signal import rank
from sigexp.signal.rank import median_filter, merge_network, prune, sort_network


def slow(images: np.ndarray, size: int) -> np.ndarray:
    stack = images.reshape(-1, *images.shape[-2:])
    return np.stack([scipy.ndimage.median_filter(image, (size, size)) for image in stack]).reshape(images.shape)


def run(network, values):
    values = list(values)
    for a, b in network:
        values[a], values[b] = min(values[a], values[b]), max(values[a], values[b])
    return values


# Networks: by the zero-one principle one that orders all zeros and ones orders everything.


@pytest.mark.parametrize("n", range(1, 10))
@pytest.mark.parametrize("m", range(1, 10))
def test_merge_network_merges(n, m):
    network, order = merge_network(range(n), range(n, n + m))
    for i, j in itertools.product(range(n + 1), range(m + 1)):
        merged = run(network, [0] * (n - i) + [1] * i + [0] * (m - j) + [1] * j)
        assert [merged[wire] for wire in order] == [0] * (n + m - i - j) + [1] * (i + j)


@pytest.mark.parametrize("n", range(1, 9))
def test_sort_network_sorts(n):
    network, order = sort_network(range(n))
    for values in itertools.product((0, 1), repeat=n):
        assert [run(network, values)[wire] for wire in order] == sorted(values)


def test_pruned_network_gives_the_same_median_with_less_work():
    network, order = sort_network(range(9))
    middle = order[4]
    pruned = prune(network, [middle])
    kept = [(a, b) for a, b, _, _ in pruned]
    for values in itertools.product((0, 1), repeat=9):
        assert run(kept, values)[middle] == sorted(values)[4]
    assert sum(low + high for *_, low, high in pruned) < 2 * len(network)


def test_a_pixel_of_the_4x4_median_takes_43_operations():
    class Counting(np.ndarray):
        count = 0

        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            assert ufunc in (np.minimum, np.maximum)
            Counting.count += 1
            plain = [x.view(np.ndarray) for x in inputs]
            return getattr(ufunc, method)(*plain, **kwargs).view(Counting)

    rows = np.random.default_rng(0).random((4, 20), np.float32)
    medians = rank._medians([row.view(Counting) for row in rows])
    expected = [np.sort(rows[:, x : x + 4].ravel())[8] for x in range(17)]
    np.testing.assert_array_equal(medians.view(np.ndarray), expected)
    assert Counting.count == 43


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (32, 32), (40, 17), (3, 32, 32), (2, 2, 9, 31)])
def test_median_equals_scipy(size, shape):
    images = np.random.default_rng(size).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(median_filter(images, size), slow(images, size))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_median_of_other_types_and_with_ties(size, dtype):
    images = np.random.default_rng(size).integers(0, 4, (5, 20, 22)).astype(dtype)
    filtered = median_filter(images, size)
    assert filtered.dtype == dtype
    np.testing.assert_array_equal(filtered, slow(images, size))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_median_does_not_depend_on_the_chunk(monkeypatch, size, chunk):
    images = np.random.default_rng(0).random((2, 12, 15), np.float32)
    expected = slow(images, size)
    monkeypatch.setattr(rank, "CHUNK", chunk)
    np.testing.assert_array_equal(median_filter(images, size), expected)


def test_median_of_a_picture_larger_than_a_chunk():
    image = np.random.default_rng(0).random((150, 231), np.float32)
    assert image.size > 2 * rank.CHUNK
    np.testing.assert_array_equal(median_filter(image, 4), slow(image, 4))


@pytest.mark.parametrize("size", [3, 4])
def test_median_commutes_with_monotone_maps(size):
    images = np.random.default_rng(0).random((4, 16, 16), np.float32)
    np.testing.assert_array_equal(median_filter(np.sqrt(images), size), np.sqrt(median_filter(images, size)))


def test_median_leaves_its_argument_alone_and_takes_any_strides():
    images = np.random.default_rng(0).random((16, 20, 3), np.float32)
    before = images.copy()
    np.testing.assert_array_equal(median_filter(images.transpose(2, 0, 1), 4), slow(before.transpose(2, 0, 1), 4))
    median_filter(images, 1)[:] = 0
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_median_size_is_checked(size):
    with pytest.raises(ValueError, match="expected a whole number of pixels"):
        median_filter(np.zeros((4, 4), np.float32), size)


@pytest.mark.parametrize("shape", [(4,), (0, 4, 4), (4, 0)])
def test_median_shape_is_checked(shape):
    with pytest.raises(ValueError, match=r"expected \[..., H, W\]"):
        median_filter(np.zeros(shape, np.float32), 3)


@pytest.mark.parametrize("signals", ["photographs", "dots", "mixture"])
def test_targets_are_the_median_of_the_inputs(signals):
    problem = median_photographs(signals=signals)
    assert problem.headline == "mse"
    for split in problem.sizes:
        batch = problem.examples(split, 0, 1 if split in problem.ragged else 6)
        np.testing.assert_array_equal(batch.targets.numpy(), slow(batch.inputs.numpy(), 4))
        assert batch.inputs.dtype == torch.float32


def test_both_kinds_are_tested_whichever_is_trained_on():
    assert median_photographs().sizes == {"train": 10_000, "valid": 256, "test": 2, "dots": 200}
    assert median_photographs(signals="mixture").test_splits == ["test", "dots"]
    dots = median_photographs(signals="dots", test_size=50)
    assert dots.sizes == {"train": 10_000, "valid": 256, "test": 50, "photographs": 2}
    assert (median_photographs().ragged, dots.ragged) == (("test",), ("photographs",))
    assert dots.sample("photographs", torch.tensor([0])).inputs.shape == (1, 1, 300, 451)
    assert median_photographs().sample("test", torch.tensor([1])).inputs.shape == (1, 1, 400, 600)
    assert median_photographs().examples("dots", 0, 3).inputs.shape == (3, 1, 64, 64)


def test_grey_is_the_mean_of_the_channels():
    grey = median_photographs().sample("test", torch.tensor([0])).inputs[0, 0].numpy()
    np.testing.assert_allclose(grey, image_source("photographs").images("test")[0].mean(-1) / 255, atol=1e-6)


def test_dots_have_their_density_and_an_empty_median():
    batch = median_photographs(signals="dots").examples("train", 0, 250)
    assert set(batch.inputs.unique().tolist()) == {0.0, 1.0}
    assert batch.inputs.mean().item() == pytest.approx(0.02, abs=0.001)
    assert batch.targets.mean().item() < 1e-5


def test_a_mixture_is_half_dots():
    inputs = median_photographs(signals="mixture").examples("train", 0, 250).inputs
    is_dots = torch.tensor([set(image.unique().tolist()) <= {0.0, 1.0} for image in inputs])
    assert is_dots[1::2].all()
    assert not is_dots[0::2].any()


def test_references_are_ordered_as_they_should_be():
    problem = median_photographs()
    for split, n in (("test", 1), ("dots", 50)):
        batch = problem.examples(split, 0, n)
        scores = {
            name: problem.metrics["mse"](reference.predict(batch.inputs), batch.targets).mean().item()
            for name, reference in problem.references.items()
        }
        assert scores["exact"] == 0 < scores["gaussian"] < scores["identity"]


@pytest.mark.parametrize(("window", "shift"), [(4, 0.5), (3, 0.0), (5, 0.0), (2, 0.5)])
def test_gaussian_reference_sits_where_the_window_does(window, shift):
    ramp = torch.arange(40.0).expand(1, 1, 40, 40)
    inner = (..., slice(10, -10), slice(10, -10))
    for turned in (ramp, ramp.transpose(-1, -2)):
        torch.testing.assert_close(shifted_gaussian(turned, window=window)[inner], turned[inner] - shift)
    impulse = torch.zeros(1, 1, 40, 40)
    impulse[..., 20, 20] = 1
    assert shifted_gaussian(impulse, window=window).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"signals": "noise"}, r"dataset\.signals=noise: expected 'photographs', 'dots' or 'mixture'"),
        ({"density": 1.5}, r"dataset\.density=1.5: expected a probability in 0..1"),
        ({"window": 1}, r"dataset\.window=1: expected 2\.\.15 pixels"),
        ({"window": 16}, r"dataset\.window=16: expected 2\.\.15 pixels"),
        ({"signals": "dots", "test_size": 0}, r"dataset\.test_size=0: expected at least 1"),
        ({"size": "all"}, r"dataset\.size=all"),
    ],
)
def test_median_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        median_photographs(**fields)
