"""How fast are examples made, against the obvious loop over images with SciPy, OpenCV and scikit-image?

    python -m benchmarks.synthesis [NAME ...] [--quick] [--output FILE]

For every dataset under conf/dataset: seconds of the loop and of `Problem.sample` for the same number of examples, one
core each, in turn and three times over; and seconds for 10,000 examples on all cores. The loop is written here, draws
float64 random numbers from NumPy's Generator and keeps float32. Its time is measured on fewer examples and scaled.
Matrix products have one thread on both sides; the allocator is set as the command line sets it.
Neither side is charged for reading photographs, or for rendering the digits it picks from.
"""

# ruff: noqa: E402 - the number of threads must be set before NumPy is loaded
import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # blocks are drawn in parallel: a matrix product inside one has one thread

import argparse
import pkgutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from unittest.mock import patch

import cv2
import numpy as np
import scipy.ndimage
import skimage.color
import torch
from omegaconf import OmegaConf

from sigexp.data.digits import digit_source
from sigexp.data.images import image_source
from sigexp.machine import tune_allocator
from sigexp.problem import Problem

CONF = Path(__file__).parent.parent / "conf" / "dataset"
CHUNK_BYTES = 2**28  # of examples held at once
Example = Callable[[np.random.Generator], tuple[np.ndarray | int, ...]]


def gaussian(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    image = (rng.random((64, 64)) < 0.02).astype(float)
    return image, scipy.ndimage.gaussian_filter(image, (4.0, 1.0))


@cache
def photographs() -> list[np.ndarray]:
    return list(image_source("photographs").images("train"))


@cache
def digits() -> np.ndarray:
    return digit_source("synthetic").images("train")


def photograph_patch(rng: np.random.Generator) -> np.ndarray:
    image = photographs()[rng.integers(len(photographs()))]
    row, column = rng.integers(image.shape[0] - 31), rng.integers(image.shape[1] - 31)
    return image[row : row + 32, column : column + 32] / 255


def color(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    rgb = photograph_patch(rng)
    return rgb, skimage.color.rgb2xyz(rgb)


def bayer(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    rgb = photograph_patch(rng)
    mosaic = np.zeros_like(rgb)
    mosaic[0::2, 0::2, 2] = rgb[0::2, 0::2, 2]
    mosaic[1::2, 1::2, 0] = rgb[1::2, 1::2, 0]
    mosaic[0::2, 1::2, 1] = rgb[0::2, 1::2, 1]
    mosaic[1::2, 0::2, 1] = rgb[1::2, 0::2, 1]
    return mosaic, rgb


def deblur(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    digit = digits()[rng.integers(len(digits()))] / 255
    return scipy.ndimage.gaussian_filter(digit, (2.0, 0.5)) + 0.02 * rng.standard_normal((28, 28)), digit


def matched_filter(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    image, place = rng.random((256, 256)), np.zeros((256, 256))
    row, column = rng.integers(229, size=2)
    image[row : row + 28, column : column + 28] += 0.5 * digits()[0] / 255
    place[row + 14, column + 14] = 1
    return image, place


def outline(rng: np.random.Generator, circle: bool, half: tuple[int, int]) -> np.ndarray:
    image = np.zeros((128, 128))
    row, column = (int(at) for at in rng.integers(20, 108, 2))
    if circle:
        cv2.circle(image, (column, row), half[0], 255, 1)
    else:
        cv2.rectangle(image, (column - half[1], row - half[0]), (column + half[1], row + half[0]), 255, 1)
    image = scipy.ndimage.gaussian_filter(image, 1.0)
    return image / image.max() + 0.05 * rng.standard_normal(image.shape)


def circle_square(rng: np.random.Generator) -> tuple[np.ndarray | int, ...]:
    circle = bool(rng.random() < 0.5)
    half = rng.integers(5, 15, 1).repeat(2) if circle else rng.integers(8, 12, 2)
    return outline(rng, circle, (int(half[0]), int(half[1]))), int(circle)


def square_rectangle(rng: np.random.Generator) -> tuple[np.ndarray | int, ...]:
    rectangle = bool(rng.random() < 0.5)
    half = rng.integers(8, 12, 2)
    while rectangle != (abs(half[0] - half[1]) >= 2) or (not rectangle and half[0] != half[1]):
        half = rng.integers(8, 12, 2)
    return outline(rng, False, (int(half[0]), int(half[1]))), int(rectangle)


def boundary(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    field = scipy.ndimage.gaussian_filter((rng.random((128, 128)) < 0.1).astype(float), 15.0, mode="constant")
    blobs = (field > np.percentile(field, 70)).astype(float)
    edges = (blobs - scipy.ndimage.minimum_filter(blobs, 3) > 0.5).astype(float)
    noisy = []
    for image in (blobs, edges):
        image = image + 0.01 * rng.standard_normal(image.shape)
        image -= image.min()
        noisy.append(image / image.max())
    return noisy[0], noisy[1]


def fill(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return boundary(rng)[::-1]


def median_4x4(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    grey = photograph_patch(rng).mean(2)
    return grey, scipy.ndimage.median_filter(grey, (4, 4))


def median_dots(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    dots = (rng.random((64, 64)) < 0.02).astype(float)
    return dots, scipy.ndimage.median_filter(dots, (4, 4))


def iir(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    x = rng.random(100) * (rng.random(100) < 0.1)
    y = np.zeros(100)
    y[0] = x[0]
    for t in range(1, 100):
        y[t] = 0.7 * y[t - 1] + 0.3 * x[t - 1]
    return x, y


def spikes(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    train = (rng.random(200) < 0.1).astype(float)
    return train, 4 * scipy.ndimage.gaussian_filter1d(train, 3.0)


def spectrum(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    time_, signal = np.arange(128), 0.1 * rng.standard_normal(128)
    for _ in range(rng.integers(1, 4)):
        phase = 2 * np.pi * (rng.uniform(0, 0.5) * time_ + rng.random())
        signal += rng.uniform(0.2, 1.0) * np.sin(phase)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * time_ / 128)
    bins = np.fft.rfft(window * signal) / np.sqrt((window**2).sum())
    return signal, np.stack([bins.real, bins.imag])


def spectrum_power(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    time_, signal = np.arange(128), 0.1 * rng.standard_normal(128)
    for _ in range(rng.integers(1, 4)):
        envelope = np.exp(-0.5 * ((time_ - rng.uniform(0, 127)) / rng.uniform(4, 16)) ** 2)
        phase = 2 * np.pi * (rng.uniform(0.03, 0.47) * time_ + rng.random())
        signal += rng.uniform(0.5, 1.0) * envelope * np.sin(phase)
    window, at = np.hanning(33)[1:-1], np.arange(31)
    kernels = [window * np.exp(2j * np.pi * (k + 0.5) / 32 * at) / (window.sum() / 2) for k in range(16)]
    return signal, np.stack([np.abs(np.convolve(signal, kernel, "same")) ** 2 for kernel in kernels])


LOOPS: dict[str, Example] = {
    "gaussian": gaussian,
    "color": color,
    "bayer": bayer,
    "deblur": deblur,
    "matched_filter": matched_filter,
    "circle_square": circle_square,
    "square_rectangle": square_rectangle,
    "boundary": boundary,
    "fill": fill,
    "median": median_4x4,
    "median_dots": median_dots,
    "iir": iir,
    "spikes": spikes,
    "spectrum": spectrum,
    "spectrum_power": spectrum_power,
}


def build(name: str) -> Problem:
    fields = {str(key): value for key, value in OmegaConf.load(CONF / f"{name}.yaml").items()}
    return pkgutil.resolve_name(fields.pop("_target_"))(**fields)


def loop_seconds(example: Example, n: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    for column in zip(*(example(rng) for _ in range(n)), strict=True):
        np.array(column, dtype=np.float32)
    return time.perf_counter() - start


def our_seconds(problem: Problem, first: int, n: int) -> float:
    """Seconds for n consecutive training examples, in chunks that bound the memory."""
    one = problem.sample("valid", torch.tensor([0]))
    each = sum(tensor.numel() * tensor.element_size() for tensor in one)
    chunk = max(1, min(n, CHUNK_BYTES // each // 1000 * 1000 or 500))
    start = time.perf_counter()
    for begin in range(first, first + n, chunk):
        problem.sample("train", torch.arange(begin, min(begin + chunk, first + n)))
    return time.perf_counter() - start


def row(name: str, *, loop_examples: int, examples: int, many: int) -> str:
    """A line of the table: both sides in turn on one core, three times, then ours on all cores."""
    with patch("os.cpu_count", return_value=1):
        single = build(name)
    our_seconds(single, 10**7, 1)  # reads photographs, fills caches
    loop: list[float] = []
    ours: list[float] = []
    for repetition in range(3):
        if name in LOOPS:
            loop.append(loop_seconds(LOOPS[name], loop_examples, repetition) * examples / loop_examples)
        ours.append(our_seconds(single, repetition * examples, examples))
    all_cores = build(name)
    our_seconds(all_cores, 10**7, 1)
    total = our_seconds(all_cores, 0, many) * 10_000 / many
    compared = (
        f"{median(loop):.3g} | {median(ours):.3g} | {median(loop) / median(ours):.1f}"
        if loop
        else (f"- | {median(ours):.3g} | -")
    )
    return f"| {name} | {compared} | {total:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.stem for path in CONF.glob("*.yaml"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"datasets, by default all: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="fewer examples, scaled: a rough look")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table to a file too")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(names))
    if unknown:
        parser.error(f"no dataset {', '.join(unknown)}; there are {', '.join(names)}")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    tune_allocator()  # as the command line does
    loop_examples, examples, many = (20, 200, 1000) if chosen.quick else (100, 1000, 10_000)
    scaled = f", scaled from {many:,}" if many < 10_000 else ""
    lines = [
        f"Seconds, median of 3; the loop measured on {loop_examples} examples and scaled; "
        f"{os.cpu_count()} cores; NumPy {np.__version__}.",
        "",
        f"| dataset | loop, {examples:,}, one core | ours, {examples:,}, one core | ratio | "
        f"ours, 10,000, all cores{scaled} |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in chosen.names or names:
        lines.append(row(name, loop_examples=loop_examples, examples=examples, many=many))
        print(lines[-1], flush=True)
    if chosen.output:
        chosen.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
