"""Outlines: fast drawing equals OpenCV and SciPy image by image; the shortcuts are where they are said to be."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from sigexp.datasets.shapes import circle_square, circle_square_equal_ink, square_rectangle
from sigexp.signal.noise import gaussian_noise
from sigexp.signal.outlines import add_outlines, equal_ink_patches, projected_half_sides

DATASETS = [circle_square, square_rectangle, circle_square_equal_ink]


def drawn_one_by_one(circle, half, centres, sigma, size):
    images = []
    for round_, (h, w), (row, column) in zip(circle, half.tolist(), centres.tolist(), strict=True):
        image = np.zeros((size, size))
        if round_:
            cv2.circle(image, (column, row), h, 255, 1)
        else:
            cv2.rectangle(image, (column - w, row - h), (column + w, row + h), 255, 1)
        image = scipy.ndimage.gaussian_filter(image, sigma)
        images.append(image / image.max())
    return np.stack(images)


@pytest.mark.parametrize(("sigma", "margin"), [(1.0, 20), (1.0, 14), (2.5, 14)])
def test_pasted_outlines_equal_drawing_and_filtering_each_image(sigma: float, margin: int) -> None:
    rng, n = np.random.default_rng(0), 60
    circle = rng.random(n) < 0.5
    half = np.where(circle[:, None], rng.integers(5, 15, (n, 1)), rng.integers(8, 12, (n, 2)))
    centres = rng.integers(margin, 128 - margin, (n, 2))
    centres[:2] = [[margin, 127 - margin], [127 - margin, margin]]
    images = np.zeros((n, 128, 128), np.float32)
    add_outlines(images, circle, half, centres, sigma=sigma)
    np.testing.assert_allclose(images, drawn_one_by_one(circle, half, centres, sigma, 128), atol=1e-6)


def bounding_boxes(images: torch.Tensor) -> np.ndarray:
    """First and last row and column of the outline, whose blur of sigma 1 reaches 4 pixels further: [B, 4]."""
    inside = scipy.ndimage.binary_erosion(images[:, 0].numpy() > 0, np.ones((1, 9, 9)))
    edges = [(line.argmax(1), line.shape[1] - 1 - line[:, ::-1].argmax(1)) for line in (inside.any(2), inside.any(1))]
    return np.stack([edges[0][0], edges[0][1], edges[1][0], edges[1][1]], axis=1)


def test_circle_square_has_the_lecture_s_sizes_and_places() -> None:
    batch = circle_square(noise=0.0).examples("train", 0, 2000)
    boxes, circle = bounding_boxes(batch.inputs), batch.targets.numpy() == 1
    sides = np.stack([boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]], axis=1)
    centres = np.stack([boxes[:, 0] + boxes[:, 1], boxes[:, 2] + boxes[:, 3]], axis=1) / 2
    assert 0.45 < circle.mean() < 0.55
    assert (sides[circle, 0] == sides[circle, 1]).all()
    assert set(sides[~circle].ravel() // 2) >= {8, 9, 10, 11}
    assert (sides[circle].min() // 2, sides[circle].max() // 2) == (5, 14)
    assert (centres.min(), centres.max()) == (20, 107)
    assert batch.inputs.amax((1, 2, 3)).sub(1).abs().max() < 1e-6


def test_square_rectangle_classes_follow_from_the_half_sides() -> None:
    batch = square_rectangle(noise=0.0).examples("train", 0, 1000)
    half = projected_half_sides(batch.inputs[:, 0].numpy(), range(5, 15))
    difference = np.abs(half[:, 0] - half[:, 1])
    assert set(half.ravel()) == {8, 9, 10, 11}
    assert (difference[batch.targets == 0] == 0).all()
    assert (difference[batch.targets == 1] >= 2).all()


def test_projection_makes_no_error_in_noise() -> None:
    problem = square_rectangle()
    batch = problem.examples("test")
    logits = problem.references["exact"].predict(batch.inputs)
    assert logits.shape == (1000, 2)
    assert problem.metrics["error"](logits, batch.targets).sum() == 0


def test_equal_ink_shapes_have_the_same_pixel_values() -> None:
    rng, n = np.random.default_rng(1), 20
    half, offset = rng.uniform(8, 11, (n, 2)), rng.uniform(-0.5, 0.5, (n, 2))
    squares = equal_ink_patches(np.zeros(n, bool), half, offset, sigma=1.0)
    circles = equal_ink_patches(np.ones(n, bool), half, offset, sigma=1.0)
    np.testing.assert_array_equal(np.sort(squares.reshape(n, -1)), np.sort(circles.reshape(n, -1)))
    assert all(
        (patches[:, [0, -1]] == 0).all() and (patches[:, :, [0, -1]] == 0).all() for patches in (squares, circles)
    )


def test_equal_ink_circles_are_round_and_as_long_as_the_rectangle() -> None:
    half, offset = np.array([[8.3, 10.6]]), np.array([[0.2137, -0.4071]])
    patch = equal_ink_patches(np.array([True]), half, offset, sigma=1.0)[0]
    at = np.arange(len(patch)) - len(patch) // 2
    distance = np.hypot(at[:, None] - 0.2137, at + 0.4071)
    assert (patch * distance).sum() / patch.sum() == pytest.approx(2 * half.sum() / np.pi, abs=0.1)
    from_ring = np.abs(distance - 2 * half.sum() / np.pi).ravel()
    by_distance = patch.ravel()[from_ring.argsort(kind="stable")]
    assert (np.diff(by_distance) > 0).mean() < 0.01  # rounding may swap nearly equal distances


def test_pixel_values_alone_tell_circles_from_squares_but_not_with_equal_ink() -> None:
    errors: dict[str, dict] = {"histogram": {}, "ink": {}}
    for dataset in DATASETS:
        problem = dataset()
        batch = problem.examples("test", 0, 500)
        for name, found in errors.items():
            logits = problem.references[name].predict(batch.inputs)
            found[dataset] = float(problem.metrics["error"](logits, batch.targets).mean())
    assert errors["histogram"][circle_square] < 0.01
    assert 0.15 < errors["histogram"][square_rectangle] < 0.35
    for found in errors.values():
        assert 0.42 < found[circle_square_equal_ink] < 0.58
        assert found[circle_square] < 0.4


@pytest.mark.parametrize("dataset", DATASETS)
def test_examples_depend_on_seed_split_and_index_alone(dataset) -> None:
    problem, again = dataset(), dataset()
    one = problem.sample("train", torch.tensor([40, 3, 200]))
    other = again.examples("train", 0, 201)
    assert torch.equal(one.inputs, other.inputs[[40, 3, 200]])
    assert torch.equal(one.targets, other.targets[[40, 3, 200]])
    assert not torch.equal(one.inputs, problem.sample("test", torch.tensor([40, 3, 200])).inputs)
    assert not torch.equal(one.inputs, dataset(seed=1).sample("train", torch.tensor([40, 3, 200])).inputs)
    assert problem.shapes() == ((1, 128, 128), (2,))
    assert problem.references["chance"].values == {"error": 0.5}


def test_noise_has_the_deviation_asked_for() -> None:
    clean, noisy = (circle_square(noise=noise).examples("train", 0, 25).inputs for noise in (0.0, 0.05))
    assert (noisy - clean).std().item() == pytest.approx(0.05, rel=0.01)


def test_gaussian_noise_is_normal_and_white() -> None:
    noise = gaussian_noise(np.random.default_rng(0), (501, 401), 2.0)
    assert noise.dtype == np.float32
    assert scipy.stats.kstest(noise.ravel() / 2, "norm").pvalue > 0.01
    pairs = noise.ravel()[:-1].reshape(2, -1).astype(float)
    assert abs(np.corrcoef(pairs)[0, 1]) < 0.01
    assert abs(np.corrcoef(pairs**2)[0, 1]) < 0.01
    assert (gaussian_noise(np.random.default_rng(0), (3, 3), 0.0) == 0).all()


@pytest.mark.parametrize(
    ("dataset", "field", "value"),
    [
        (circle_square, "margin", 13),
        (circle_square, "margin", 64),
        (circle_square, "radius", (0, 14)),
        (circle_square, "radius", (9, 8)),
        (circle_square, "half_side", (8.5, 11)),
        (circle_square, "sigma", 0),
        (circle_square, "noise", -0.1),
        (circle_square, "size", "streams"),
        (square_rectangle, "difference", 4),
        (square_rectangle, "half_side", (8,)),
        (circle_square_equal_ink, "margin", 18),
        (circle_square_equal_ink, "noise", float("nan")),
    ],
)
def test_errors_name_the_field(dataset, field: str, value) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.{field}="):
        dataset(**{field: value})


def test_projection_refuses_half_sides_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="half-sides"):
        projected_half_sides(np.zeros((1, 16, 16)), range(8, 12))
