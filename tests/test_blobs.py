"""Blobs, boundaries and filling: fast code against SciPy image by image, and the rules on drawings made by hand."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from sigexp.datasets import blobs
from sigexp.signal import morphology
from sigexp.signal.gaussian import gaussian_filter

DATASETS = [blobs.boundary, blobs.fill, blobs.fill_holes]


def picture(text: str) -> np.ndarray:
    """A bool image [1, H, W] from lines of '#' and '.'."""
    return np.array([[letter == "#" for letter in line] for line in text.split()])[None]


@pytest.mark.parametrize("kind", [bool, np.float32])
def test_minimum_equals_scipy(kind: type) -> None:
    images = (np.random.default_rng(0).random((5, 20, 31)) * 2).astype(kind)
    expected = np.stack([scipy.ndimage.minimum_filter(image, 3) for image in images])
    np.testing.assert_array_equal(morphology.minimum_3x3(images), expected)


@pytest.mark.parametrize("percent", [0, 12.5, 50, 70, 99.99, 100])
def test_above_percentile_equals_numpy(percent: float) -> None:
    fields = np.random.default_rng(0).standard_normal((7, 16, 13)).astype(np.float32)
    expected = fields > np.percentile(fields, percent, axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(morphology.above_percentile(fields, percent), expected)


def test_above_percentile_with_ties() -> None:
    fields = np.random.default_rng(0).integers(0, 4, (5, 16, 16)).astype(np.float32)
    for percent in (10, 37, 70):
        expected = fields > np.percentile(fields, percent, axis=(1, 2), keepdims=True)
        np.testing.assert_array_equal(morphology.above_percentile(fields, percent), expected)


def test_blobs_and_boundary_equal_the_lecture_s_loop_up_to_ties() -> None:
    dots = np.random.default_rng(0).random((60, 128, 128)) < 0.1
    masks = morphology.above_percentile(gaussian_filter(dots, 15.0, border="constant"), 70)
    edges = morphology.boundary(masks)
    differ = np.zeros(2)
    for one, mask, edge in zip(dots, masks, edges, strict=True):
        field = scipy.ndimage.gaussian_filter(one.astype(float), 15.0, mode="constant")
        slow = (field > np.percentile(field, 70)).astype(float)
        slow_edge = slow - scipy.ndimage.minimum_filter(slow, 3) > 0.5
        differ += [(mask != slow).mean(), (edge != slow_edge).mean()]
    assert (differ / len(dots) < 1e-4).all()


def test_added_noise_stretches_every_image_to_0_1() -> None:
    masks = np.random.default_rng(0).random((4, 32, 32)) < 0.5
    noisy = blobs.add_noise(masks, np.random.default_rng(1), 0.01)
    assert noisy.dtype == np.float32
    assert (noisy.min((1, 2)) == 0).all()
    np.testing.assert_allclose(noisy.max((1, 2)), 1, rtol=1e-6)
    slow = masks[0] + np.float64(blobs.gaussian_noise(np.random.default_rng(1), masks.shape, 0.01)[0])
    slow -= slow.min()
    np.testing.assert_allclose(noisy[0], slow / slow.max(), atol=1e-6)
    assert (blobs.add_noise(np.zeros((1, 4, 4), bool), np.random.default_rng(1), 0.0) == 0).all()


@pytest.mark.parametrize("dataset", DATASETS)
def test_targets_are_clean_in_test_and_noisy_elsewhere(dataset) -> None:
    problem = dataset(test_size=30)
    test, noisy, train = (problem.examples(split, 0, 30) for split in ("test", "noisy", "train"))
    assert torch.equal(test.inputs, noisy.inputs)
    assert set(test.targets.unique().tolist()) == {0.0, 1.0}
    assert torch.equal((noisy.targets > 0.5).float(), test.targets)
    for targets in (noisy.targets, train.targets):
        assert len(targets.unique()) > 1000
        assert (targets.amin((1, 2, 3)) == 0).all()
    assert not torch.equal(train.inputs, test.inputs)
    clean = dataset(noisy_targets=False, test_size=30)
    assert set(clean.examples("train", 0, 30).targets.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(clean.examples("train", 0, 30).inputs, train.inputs)
    assert torch.equal(clean.examples("noisy", 0, 30).targets, noisy.targets)
    assert problem.test_splits == ["test", "noisy"]
    assert problem.headline == "pixel_error"


def test_boundary_and_fill_are_the_same_examples_turned_round() -> None:
    boundary, fill = (dataset().examples("test", 0, 50) for dataset in (blobs.boundary, blobs.fill))
    assert torch.equal((boundary.inputs > 0.5).float(), fill.targets)
    assert torch.equal((fill.inputs > 0.5).float(), boundary.targets)
    assert fill.targets.mean().item() == pytest.approx(0.3, abs=1e-3)


def errors(problem, batch) -> dict[str, float]:
    return {
        name: float(problem.metrics["pixel_error"](reference.predict(batch.inputs), batch.targets).mean())
        for name, reference in problem.references.items()
        if reference.predict
    }


def test_references_of_boundary_and_fill() -> None:
    boundary, fill = blobs.boundary(), blobs.fill()
    assert errors(boundary, boundary.examples("test", 0, 200))["exact"] == 0
    assert errors(boundary, boundary.examples("noisy", 0, 200))["exact"] == 0
    found = errors(fill, fill.examples("test", 0, 200))
    assert found["constant"] == pytest.approx(0.3, abs=1e-3)
    assert found["exact"] <= found["fill_holes"] < 0.01
    assert found["exact"] < 1e-3


def test_fill_holes_has_holes_a_margin_and_an_exact_rule() -> None:
    problem = blobs.fill_holes()
    batch = problem.examples("test", 0, 300)
    masks = batch.targets[:, 0].numpy() > 0.5
    assert 0.2 < morphology.has_holes(masks).mean() < 0.5
    count = np.mean([scipy.ndimage.label(mask, np.ones((3, 3)))[1] for mask in masks])
    assert 3.5 < count < 5.5
    assert not masks[:, :5].any()
    assert not masks[:, :, -5:].any()
    found = errors(problem, batch)
    assert found["exact"] == 0
    assert found["fill_holes"] > 1e-3


@pytest.mark.parametrize("dataset", [blobs.boundary, blobs.fill])
def test_no_affine_map_of_the_clean_targets_passes_the_noise_floor(dataset) -> None:
    problem = dataset()
    floor = problem.references["noise_floor"].values["noisy/mse"]
    clean, noisy = (problem.examples(split, 100, 200).targets.double() for split in ("test", "noisy"))
    slope, offset = np.polyfit(clean.flatten().numpy(), noisy.flatten().numpy(), 1)
    assert float((slope * clean + offset - noisy).square().mean()) == pytest.approx(floor, rel=0.05)
    assert float((clean - noisy).square().mean()) > 5 * floor
    assert dataset(noise=0.0).references["noise_floor"].values["noisy/mse"] < 1e-12


def test_smoothing_leaves_nothing_thinner_than_the_disc() -> None:
    masks = np.random.default_rng(0).random((5, 64, 64)) < 0.7
    masks = np.pad(masks[:, 8:-8, 8:-8], ((0, 0), (8, 8), (8, 8)))
    element = morphology.disc(3).astype(bool)
    closed = [scipy.ndimage.binary_closing(mask, element) for mask in masks]
    expected = np.stack([scipy.ndimage.binary_opening(mask, element) for mask in closed])
    np.testing.assert_array_equal(morphology.smooth_masks(masks, 3), expected)


RING_WITH_ISLAND = picture("""
    ...............
    .#############.
    .#...........#.
    .#.#########.#.
    .#.#.......#.#.
    .#.#.#####.#.#.
    .#.#.#...#.#.#.
    .#.#.#####.#.#.
    .#.#.......#.#.
    .#.#########.#.
    .#...........#.
    .#############.
    ...............
""")


def test_even_odd_keeps_holes_and_islands() -> None:
    filled = morphology.even_odd(RING_WITH_ISLAND)[0]
    assert filled[2, 2]  # between the two outer curves
    assert not filled[4, 4]  # in the hole
    assert filled[6, 6]  # in the island
    assert not filled[0, 0]
    assert morphology.fill_holes(RING_WITH_ISLAND)[0, 1:-1, 1:-1].all()
    np.testing.assert_array_equal(morphology.boundary(filled), RING_WITH_ISLAND[0])


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5])
def test_fill_holes_is_as_scipy_has_it(density: float) -> None:
    edges = np.random.default_rng(0).random((20, 30, 41)) < density
    expected = [scipy.ndimage.binary_fill_holes(edge) for edge in edges]
    np.testing.assert_array_equal(morphology.fill_holes(edges), expected)


def test_even_odd_of_curves_that_meet_the_frame_or_a_corner() -> None:
    edges = picture("""
        ###.....
        #.#.....
        ###.....
        ...####.
        ...#..#.
        ...####.
    """)
    filled = morphology.even_odd(edges)[0]
    assert filled[1, 1]
    assert filled[4, 4]
    assert filled.sum() == edges.sum() + 3
    assert not morphology.even_odd(np.zeros((1, 5, 5), bool)).any()
    assert morphology.even_odd(np.ones((1, 5, 5), bool)).all()


def test_even_odd_undoes_boundary_on_discs_with_holes() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    for _ in range(20):
        row, column = rng.uniform(40, 56, 2)
        distance = np.hypot(rows - row, columns - column)
        mask = (distance < 34) & ~(distance < rng.uniform(12, 28)) | (distance < rng.uniform(3, 8))
        np.testing.assert_array_equal(morphology.even_odd(morphology.boundary(mask[None]))[0], mask)


def test_has_holes() -> None:
    holes = morphology.has_holes(np.concatenate([RING_WITH_ISLAND, np.zeros_like(RING_WITH_ISLAND)]))
    assert holes.tolist() == [True, False]
    leaking = picture("""
        .....
        .##..
        .#.#.
        ..##.
        .....
    """)
    assert morphology.has_holes(leaking).tolist() == [False]  # background passes between two pixels at a corner


@pytest.mark.parametrize("dataset", DATASETS)
def test_examples_depend_on_seed_split_and_index_alone(dataset) -> None:
    index = torch.tensor([60, 2, 26])
    one, other = dataset().sample("noisy", index), dataset().examples("noisy", 0, 61)
    assert torch.equal(one.inputs, other.inputs[index])
    assert torch.equal(one.targets, other.targets[index])


@pytest.mark.parametrize(
    ("dataset", "field", "value"),
    [
        (blobs.boundary, "density", 3),
        (blobs.boundary, "sigma", 0),
        (blobs.fill, "percentile", 170),
        (blobs.fill, "noise", -1),
        (blobs.fill, "size", 0),
        (blobs.fill_holes, "disc", -1),
        (blobs.fill_holes, "noise", float("inf")),
    ],
)
def test_errors_name_the_field(dataset, field: str, value) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.{field}="):
        dataset(**{field: value})


def test_fill_holes_gives_up_where_the_rule_restores_nothing() -> None:
    with pytest.raises(ValueError, match="even-odd"):
        blobs.fill_holes(sigma=0.6, disc=0, margin=0).examples("train", 0, 1)
