"""Blobs -> their boundary, and a boundary -> its blobs, which needs the whole image."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sigexp.problem import Batch, Problem, Reference, Sample, Split, blockwise, constant, identity, train_size
from sigexp.ranges import within
from sigexp.signal import morphology
from sigexp.signal.gaussian import gaussian_filter
from sigexp.signal.noise import gaussian_noise
from sigexp.signal.quality import iou, mse, pixel_error

MOST_NOISY = 1000  # examples of the set 'noisy', on which nothing is so rare that more of them would tell
Masks = Callable[[np.random.Generator, int], np.ndarray]  # n bool masks [n, H, W]


def boundary(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    image_size: int = 128,
    density: float = 0.1,
    sigma: float = 15.0,
    percentile: float = 70.0,
    noise: float = 0.01,
    noisy_targets: bool = True,
) -> Problem:
    """The lecture's blobs -> the blobs minus their 3x3 minimum.

    Blobs are where random dots (probability `density`), filtered by a Gaussian of `sigma` pixels with zeros beyond
    the border, exceed the percentile. Images get `noise` N(0, 1) and are stretched to 0..1, training targets too
    where `noisy_targets` says so. Targets of 'test' are clean; 'noisy' is the same images, a thousand
    at most, with the lecture's targets.
    """
    masks = _blobs(image_size, density, sigma, percentile)
    references = {"exact": Reference(predict=_on_masks(morphology.boundary))}
    return _problem(masks, True, seed, size, test_size, noise, noisy_targets, references)


def fill(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    image_size: int = 128,
    density: float = 0.1,
    sigma: float = 15.0,
    percentile: float = 70.0,
    noise: float = 0.01,
    noisy_targets: bool = True,
) -> Problem:
    """The lecture's boundaries -> the blobs inside them: `boundary` the other way round.

    `exact` is the even-odd rule, which fails only where boundaries touch.
    """
    masks = _blobs(image_size, density, sigma, percentile)
    return _problem(masks, False, seed, size, test_size, noise, noisy_targets, _filling())


def fill_holes(
    *,
    seed: int = 0,
    size: int | str = 10_000,
    test_size: int = 1000,
    image_size: int = 128,
    sigma: float = 7.0,
    percentile: float = 50.0,
    disc: int = 3,
    margin: int = 5,
    noise: float = 0.01,
    noisy_targets: bool = True,
) -> Problem:
    """Boundaries of several blobs, many with holes -> the blobs without their holes.

    Blobs are where white noise of mean 0, filtered as in `boundary`, exceeds the percentile; dots, whose mean is
    not 0, would gather in the middle. They are kept `margin` pixels away from the border, closed and opened with a
    disc of radius `disc` pixels, and drawn again where the even-odd rule does not restore them from their boundary.
    """
    within("dataset.disc", disc, 0, 32, "pixels")
    if not 0 <= margin < image_size / 2:
        raise ValueError(
            f"dataset.margin={margin}: expected pixels, 0 or more and less than half of image_size={image_size}"
        )
    blobs = _blobs(image_size, None, sigma, percentile)
    inner = slice(margin, image_size - margin)

    def masks(rng: np.random.Generator, n: int) -> np.ndarray:
        kept = np.empty((0, image_size, image_size), bool)
        for _ in range(20):
            tried = np.zeros((n - len(kept) + n // 16 + 1, image_size, image_size), bool)
            tried[:, inner, inner] = blobs(rng, len(tried))[:, inner, inner]
            tried = morphology.smooth_masks(tried, disc)
            kept = np.concatenate([kept, tried[_restored(tried)]])
            if len(kept) >= n:
                return kept[:n]
        raise ValueError(
            f"dataset.sigma={sigma}, disc={disc}: expected blobs that the even-odd rule restores; take larger values"
        )

    return _problem(masks, False, seed, size, test_size, noise, noisy_targets, _filling())


def _blobs(image_size: int, density: float | None, sigma: float, percentile: float) -> Masks:
    """Masks of filtered dots, or of filtered noise of mean 0 where `density` is None, above a percentile."""
    if density is not None and not 0 <= density <= 1:
        raise ValueError(f"dataset.density={density}: expected a probability in 0..1")
    if not 0 <= percentile <= 100:
        raise ValueError(f"dataset.percentile={percentile}: expected per cent in 0..100")
    within("dataset.image_size", image_size, 4, 4096, "pixels")
    within("dataset.sigma", sigma, 0, 1000, "pixels", above=True)

    def masks(rng: np.random.Generator, n: int) -> np.ndarray:
        shape = (n, image_size, image_size)
        if density is None:
            field = rng.random(shape, dtype=np.float32) - np.float32(0.5)
        else:
            field = (rng.random(shape, dtype=np.float32) < density).astype(np.float32)
        return morphology.above_percentile(gaussian_filter(field, sigma, border="constant"), percentile)

    return masks


def _restored(masks: np.ndarray) -> np.ndarray:
    """Whether the even-odd rule makes masks [B, H, W] of their boundaries, as it does of all without holes: [B]."""
    restored = np.ones(len(masks), bool)
    holed = np.flatnonzero(morphology.has_holes(masks))
    if len(holed):
        filled = morphology.even_odd(morphology.boundary(masks[holed]))
        restored[holed] = (filled == masks[holed]).all(axis=(1, 2))
    return restored


def add_noise(masks: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """The lecture's addnoise of [B, H, W]: plus `noise` N(0, 1), minus its minimum, divided by its maximum: float32."""
    noisy = gaussian_noise(rng, masks.shape, noise)
    noisy += masks
    noisy -= noisy.min(axis=(1, 2), keepdims=True)
    largest = noisy.max(axis=(1, 2), keepdims=True)
    noisy /= np.where(largest > 0, largest, 1)  # an empty image without noise stays empty
    return noisy


def _on_masks(method: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
    """`method` of bool masks [B, H, W] as a predictor of images [B, 1, H, W], cut at 1/2."""
    return lambda inputs: torch.from_numpy(method(inputs[:, 0].numpy() > 0.5))[:, None].to(inputs)


def _filling() -> dict[str, Reference]:
    return {
        "fill_holes": Reference(predict=_on_masks(morphology.fill_holes)),
        "exact": Reference(predict=_on_masks(morphology.even_odd)),
    }


class NoiseFloor(Mapping[str, float]):
    """What no predictor passes on the set 'noisy': the MSE left of its targets when the best multiple of the clean
    ones, plus a constant, is taken off. Noise and stretching do not depend on the clean image in any other way.

    Measured on 50 examples when it is first asked for.
    """

    def __init__(self, clean: Sample, noisy: Sample) -> None:
        self.samples = clean, noisy
        self.floor: float | None = None

    def __getitem__(self, metric: str) -> float:
        if metric != "noisy/mse":
            raise KeyError(metric)
        if self.floor is None:
            targets = [sample("test", torch.arange(50)).targets.flatten() for sample in self.samples]
            (known, cross), (_, left) = torch.cov(torch.stack(targets).double(), correction=0).tolist()
            self.floor = left - cross**2 / known if known else left
        return self.floor

    def __iter__(self) -> Iterator[str]:
        return iter(["noisy/mse"])

    def __len__(self) -> int:
        return 1


def _problem(
    masks: Masks,
    from_blobs: bool,
    seed: int,
    size: int | str,
    test_size: int,
    noise: float,
    noisy_targets: bool,
    references: dict[str, Reference],
) -> Problem:
    within("dataset.noise", noise, 0, 1000, "a standard deviation")

    def draw(rng: np.random.Generator, split: Split, n: int, *, noisy: bool) -> tuple[np.ndarray, np.ndarray]:
        blobs = masks(rng, n)
        edges = morphology.boundary(blobs)
        source, target = (blobs, edges) if from_blobs else (edges, blobs)
        inputs = add_noise(source, rng, noise)
        targets = add_noise(target, rng, noise) if noisy else target.astype(np.float32)
        return inputs[:, None], targets[:, None]

    clean = blockwise(partial(draw, noisy=False), seed=seed, block=25)  # more of them spill out of the caches
    noisy = blockwise(partial(draw, noisy=True), seed=seed, block=25)

    def sample(split: Split, index: Tensor) -> Batch:
        if split == "noisy":
            return noisy("test", index)
        return (noisy if noisy_targets and split != "test" else clean)(split, index)

    return Problem(
        kind="image",
        sample=sample,
        sizes={"train": train_size(size), "valid": 500, "test": test_size, "noisy": min(test_size, MOST_NOISY)},
        loss=mse,
        metrics={"pixel_error": pixel_error, "iou": iou, "mse": mse},
        references={
            "identity": identity(),
            "constant": constant(sample, size),
            **references,
            "noise_floor": Reference(values=NoiseFloor(clean, noisy)),
        },
        source={"signals": "synthetic blobs"},
    )
