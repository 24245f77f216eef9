"""Outlines -> class: circle or square, square or rectangle, and a variant that gives nothing away but the shape."""

from collections.abc import Callable

import numpy as np
import torch

from sigexp.problem import Draw, Problem, Reference, Sample, Split, blockwise, chance, train_size
from sigexp.ranges import within
from sigexp.signal.noise import gaussian_noise
from sigexp.signal.outlines import TRUNCATE, add_outlines, equal_ink_patches, projected_half_sides
from sigexp.signal.quality import cross_entropy, error

Shapes = tuple[np.ndarray, np.ndarray, np.ndarray]  # classes [B], circle or not [B], half-extents [B, 2]


def circle_square(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    image_size: int = 128,
    margin: int = 20,
    radius: tuple[int, int] = (5, 14),
    half_side: tuple[int, int] = (8, 11),
    sigma: float = 1.0,
    noise: float = 0.05,
) -> Problem:
    """The lecture's circles (class 1) and near-squares (class 0), whose two half-sides are drawn independently.

    Outlines of 1 pixel, blurred by a Gaussian of `sigma` pixels, divided by their maximum, plus `noise` N(0, 1).
    Ranges are in pixels and hold both ends; centres stay `margin` pixels away from the border. No shape is needed
    here: the pixel values alone give the class away.
    """
    _check_range("radius", radius, whole=True)
    _check_range("half_side", half_side, whole=True)

    def shapes(rng: np.random.Generator, n: int) -> Shapes:
        circle = rng.random(n) < 0.5
        radii = rng.integers(radius[0], radius[1] + 1, (n, 1)).repeat(2, axis=1)
        sides = rng.integers(half_side[0], half_side[1] + 1, (n, 2))
        return circle.astype(np.int64), circle, np.where(circle[:, None], radii, sides)

    largest = max(radius[1], half_side[1])
    draw = _outline_images(shapes, image_size, margin, largest, sigma, noise)
    return _problem(draw, seed, size, test_size, ("square", "circle"))


def square_rectangle(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    image_size: int = 128,
    margin: int = 20,
    half_side: tuple[int, int] = (8, 11),
    difference: int = 2,
    sigma: float = 1.0,
    noise: float = 0.05,
) -> Problem:
    """The lecture's squares (class 0) and rectangles (class 1), whose half-sides differ by `difference` or more.

    Drawn as in `circle_square`. `exact` reads both sides off the projections of the image on its axes.
    """
    _check_range("half_side", half_side, whole=True)
    low, high = half_side
    if not 1 <= difference <= high - low:
        raise ValueError(f"dataset.difference={difference}: expected 1 to {high - low} px, the width of half_side")
    sides = range(low, high + 1)
    unequal = np.array([(a, b) for a in sides for b in sides if abs(a - b) >= difference])

    def shapes(rng: np.random.Generator, n: int) -> Shapes:
        rectangle = rng.random(n) < 0.5
        equal = rng.integers(low, high + 1, (n, 1)).repeat(2, axis=1)
        half = np.where(rectangle[:, None], unequal[rng.integers(len(unequal), size=n)], equal)
        return rectangle.astype(np.int64), np.zeros(n, dtype=bool), half

    def by_projection(images: torch.Tensor) -> torch.Tensor:
        half = projected_half_sides(images[:, 0].numpy(), sides)
        margin = torch.from_numpy(np.abs(half[:, 0] - half[:, 1]) - difference / 2).to(images)
        return torch.stack([-margin, margin], dim=1)

    draw = _outline_images(shapes, image_size, margin, high, sigma, noise)
    exact = {"exact": Reference(predict=by_projection)}
    return _problem(draw, seed, size, test_size, ("square", "rectangle"), exact)


def circle_square_equal_ink(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    image_size: int = 128,
    margin: int = 20,
    half_side: tuple[float, float] = (8.0, 11.0),
    sigma: float = 1.0,
    noise: float = 0.05,
) -> Problem:
    """Circles (class 1) and near-squares (class 0) of equal perimeter and with the very same pixel values.

    Both have the same distribution of perimeters and of pixel histograms, so that only the shape tells them apart.
    Centres and half-sides are real numbers of pixels; see `sigexp.signal.outlines.equal_ink_patches`.
    """
    _check_range("half_side", half_side)
    low, high = half_side
    reach = int(np.ceil(4 * high / np.pi + TRUNCATE * sigma + 0.5))
    _check(image_size, margin, reach, sigma, noise)

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        circle = rng.random(n) < 0.5
        half = rng.uniform(low, high, (n, 2))
        centres = rng.uniform(margin, image_size - 1 - margin, (n, 2))
        nearest = np.rint(centres).astype(int)
        patches = equal_ink_patches(circle, half, centres - nearest, sigma=sigma)
        images = gaussian_noise(rng, (n, image_size, image_size), noise)
        side = patches.shape[1]
        for image, patch, (row, column) in zip(images, patches, (nearest - side // 2).tolist(), strict=True):
            image[row : row + side, column : column + side] += patch
        return images[:, None], circle.astype(np.int64)

    return _problem(draw, seed, size, test_size, ("square", "circle"))


def _outline_images(
    shapes: Callable[[np.random.Generator, int], Shapes],
    image_size: int,
    margin: int,
    largest: int,
    sigma: float,
    noise: float,
) -> Draw:
    _check(image_size, margin, largest, sigma, noise)

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        classes, circle, half = shapes(rng, n)
        centres = rng.integers(margin, image_size - margin, (n, 2))
        images = gaussian_noise(rng, (n, image_size, image_size), noise)
        add_outlines(images, circle, half, centres, sigma=sigma)
        return images[:, None], classes

    return draw


def _problem(
    draw: Draw,
    seed: int,
    size: int | str,
    test_size: int,
    labels: tuple[str, str],
    references: dict[str, Reference] | None = None,
) -> Problem:
    sample = blockwise(draw, seed=seed, block=25)  # more of them spill out of the caches
    return Problem(
        kind="class",
        sample=sample,
        sizes={"train": train_size(size), "valid": 1000, "test": test_size},
        loss=cross_entropy,
        metrics={"error": error, "cross_entropy": cross_entropy},
        references={
            "chance": chance(2),
            "ink": _by_values(sample, _ink),
            "histogram": _by_values(sample, _brightest),
            **(references or {}),
        },
        source={"signals": "synthetic outlines"},
        classes=2,
        labels=labels,
    )


def _ink(images: torch.Tensor) -> torch.Tensor:
    """The sum of the pixels: [B, 1]."""
    return images.flatten(1).double().sum(1, keepdim=True)


def _brightest(images: torch.Tensor) -> torch.Tensor:
    """Every fourth of the 200 brightest pixel values: [B, 50]."""
    return images.flatten(1).topk(min(200, images[0].numel())).values[:, ::4].double()


def _by_values(sample: Sample, values: Callable[[torch.Tensor], torch.Tensor], examples: int = 2000) -> Reference:
    """Least squares on values of an image that know nothing of shape, and on their squares."""
    fitted: list[torch.Tensor] = []

    def features(found: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        scaled = (found - mean) / deviation
        return torch.cat([scaled, scaled**2, torch.ones_like(scaled[:, :1])], dim=1)

    def fit() -> None:
        batches = [sample("train", part) for part in torch.arange(examples).split(500)]
        found = torch.cat([values(batch.inputs) for batch in batches])
        signs = torch.cat([batch.targets for batch in batches]).double() * 2 - 1
        mean, deviation = found.mean(0), found.std(0) + 1e-6
        known = features(found, mean, deviation)
        ridge = 0.1 * torch.eye(known.shape[1], dtype=known.dtype)
        weights = torch.linalg.solve(known.T @ known + ridge, known.T @ signs)
        fitted.extend([mean, deviation, weights])

    def predict(images: torch.Tensor) -> torch.Tensor:
        if not fitted:
            fit()
        mean, deviation, weights = fitted
        score = features(values(images), mean, deviation) @ weights
        return torch.stack([-score, score], dim=1).to(images)

    return Reference(predict=predict)


def _check_range(name: str, ends: tuple[float, float], *, whole: bool = False) -> None:
    if len(ends) != 2 or not 1 <= ends[0] <= ends[1] or (whole and any(end != int(end) for end in ends)):
        kind = "whole pixels" if whole else "pixels"
        raise ValueError(f"dataset.{name}={list(ends)}: expected [least, largest] in {kind}, at least 1")


def _check(image_size: int, margin: int, largest: int, sigma: float, noise: float) -> None:
    within("dataset.image_size", image_size, 4, 1024, "pixels")
    if not largest <= margin < image_size / 2:
        raise ValueError(
            f"dataset.margin={margin}: expected at least {largest} px, so that every outline lies inside, "
            f"and less than half of image_size={image_size}"
        )
    within("dataset.sigma", sigma, 0, 20, "pixels", above=True)
    within("dataset.noise", noise, 0, 1000, "a standard deviation")
