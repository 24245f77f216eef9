"""A digit hidden in noise -> its position map: the matched filter, learned."""

import math
from collections.abc import Callable

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from sigexp.data.digits import digit_source
from sigexp.problem import Problem, Reference, Split, blockwise, identity, train_size
from sigexp.ranges import within
from sigexp.signal.matched import correlate_centred
from sigexp.signal.quality import hit_rate, position_cross_entropy
from sigexp.signal.wiener import filter_by, kernel_spectrum, wiener_spectrum

NOISE_VARIANCE = 1 / 12  # of uniform noise in 0..1


def hidden_digit(
    *,
    seed: int = 0,
    size: int | str = "stream",
    test_size: int = 1000,
    digits: str = "synthetic",
    template: int = 0,
    image_size: int = 256,
    amplitude: float = 0.5,
) -> Problem:
    """Uniform noise in 0..1 plus `amplitude` times one fixed digit, wholly inside, at a place drawn anew each time.

    The digit is number `template` of the training digits, in 0..1. The target [1, H, W] is 1 at its centre pixel, 14
    rows and columns from its corner, and 0 elsewhere, so that it sums to 1. The lecture's own map of places is
    sigmoid(10 (c - 0.7 max c)) of the full correlation c: `sigexp.signal.matched.lecture_map`.

    `correlation` is the classical matched filter, scaled to the log-likelihood it would be in Gaussian noise of the
    same variance; `wiener` the linear filter whose output is nearest to the map, scaled so that it tends to
    `correlation` as the digit fades. `chance` names one possible place: 9 places count as a hit. Raises ValueError
    where a field is out of range.
    """
    if not 28 <= image_size <= 4096:
        raise ValueError(f"dataset.image_size={image_size}: expected pixels, 28 (the digit) .. 4096")
    within("dataset.amplitude", amplitude, 0, 1000, "a factor, where the noise spans 0..1")
    source = digit_source(digits)
    if not 0 <= template < source.sizes["train"]:
        raise ValueError(f"dataset.template={template}: expected a training digit, 0..{source.sizes['train'] - 1}")
    digit = source.images("train")[template].astype(np.float32) / 255
    places = image_size - 28 + 1

    def draw(rng: np.random.Generator, split: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.random((n, 1, image_size, image_size), dtype=np.float32)
        maps = np.zeros_like(images)
        for i, (row, column) in enumerate(rng.integers(places, size=(n, 2))):
            images[i, 0, row : row + 28, column : column + 28] += np.float32(amplitude) * digit
            maps[i, 0, row + 14, column + 14] = 1
        return images, maps

    pattern = torch.from_numpy(digit * (amplitude / NOISE_VARIANCE))
    wiener = _wiener(torch.from_numpy(digit * np.float32(amplitude)), image_size)
    return Problem(
        kind="image",
        sample=blockwise(draw, seed=seed, block=25),
        sizes={"train": train_size(size), "valid": 100, "test": test_size},
        loss=position_cross_entropy,
        metrics={"hit_rate": hit_rate, "cross_entropy": position_cross_entropy},
        references={
            "identity": identity(),
            "correlation": Reference(predict=lambda x: correlate_centred(x - 0.5, pattern)),
            "wiener": Reference(predict=wiener),
            "chance": Reference(values={"hit_rate": min(9 / places**2, 1.0), "cross_entropy": 2 * math.log(places)}),
        },
        source={**source.source, "template": str(template)},
    )


def _wiener(template: Tensor, image_size: int) -> Callable[[Tensor], Tensor]:
    """The Wiener filter of a map with a single 1, whose spectrum is 1, seen through the template in white noise.

    Times the noise's power in an image over its variance, as logits of the place.
    """
    circle = (scipy.fft.next_fast_len(image_size + 28, real=True),) * 2
    pixels = image_size**2
    spectrum = wiener_spectrum(kernel_spectrum(template, circle), torch.ones(()), NOISE_VARIANCE * pixels) * pixels
    return lambda images: filter_by(images - 0.5, spectrum, circle)
