"""Synthetic digits: pen strokes, randomly deformed, that stand in for MNIST where there is no network.

Every glyph is a handful of strokes, an interpolating spline through the points below. A digit is a glyph turned,
slanted, stretched and scaled to a box of about 20x20 pixels in the middle of 28x28, bent by a smooth random
displacement (Simard, Steinkraus and Platt 2003), and drawn with a pen of random width and softness: grey value =
how far the pixel lies inside the stroke. Distances to the strokes are tabulated once for every glyph, so drawing is
one bilinear look-up a pixel, anti-aliased by construction.

The strokes stand here because OpenCV's digits depend on its version: from 5.0 on putText draws another typeface.
"""

import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from sigexp.data.cache import load_arrays, save_arrays
from sigexp.signal.gaussian import gaussian_filter

VERSION = 1  # names the cache file: raise it whenever a digit changes
SEED = 0
BLOCK = 500
SIZE = 28
MARGIN, STEP, CELLS = 7.0, 0.4, 86  # the distance table covers -7..27 in both axes, in glyph units

# Strokes of every glyph, separated by ';', as points 'x,y' in a box 20 high, y downwards. Corners are where one
# stroke ends and the next begins; a stroke that ends where it began is closed.
GLYPHS: dict[int, tuple[str, ...]] = {
    0: (
        "7,0 3,2.5 1,10 3,17.5 7,20 11,17.5 13,10 11,2.5 7,0",
        "10,1 5,1.5 1.5,8 1.5,14 4,19 8,19.5 12,14 12.5,7 9.5,1.5 6,2.5",
        "8,0 2.5,3 0,10 2.5,17 8,20 13.5,17 16,10 13.5,3 8,0",
    ),
    1: ("7,0 7,20", "3,5 7,0; 7,0 7,20", "3,4 7,0; 7,0 7,20; 3,20 11,20"),
    2: (
        "1,5 2,2 6,0 10,1 12,4.5 11,8 7,13 0,20; 0,20 13,20",
        "1,4 4,1 8,0.5 11,3.5 10,8.5 6,14 2.5,18.5 0.5,18 2,16 5.5,17 9.5,19.5 14,18",
        "2,3 6,0 11,1.5 11.5,6 8,12 1,19; 1,19 7,18 14,19.5",
    ),
    3: (
        "1,3 4,0.5 8,0 11,2.5 11,6 8,9 5,9.5; 5,9.5 9,10 12,13 11.5,17 8,20 3,19.5 0,17",
        "1,0 12,0; 12,0 6,8; 6,8 10.5,9 13,12.5 12.5,16.5 8.5,20 4,20 0,17.5",
        "1,2 6,0 10.5,2.5 9.5,6.5 5,9; 5,9 11,10.5 12.5,15 8.5,19.5 1,19.5",
    ),
    4: (
        "10,0 0,14; 0,14 15,14; 10,0 10,20",
        "2,1 1,6 2,10 6,11 12,9.5; 12.5,1 11.5,10 10.5,20",
        "3,0 1,11; 1,11 13,11; 10,3 8,20",
    ),
    5: (
        "12,0 2,0; 2,0 1,9; 1,9 5,7 9,7.5 12.5,11 12,16 8.5,19.5 4,20 0,17.5",
        "2.5,1 1.5,9; 1.5,9 6,8 11,10.5 12,14.5 9,19 4,20 0.5,18; 2.5,1 12,0.5",
        "13,0 5,1; 5,1 3,8; 3,8 8,8.5 10.5,12.5 9,17 4,20 -1,19",
    ),
    6: (
        "11,1 6,3 2,9 1,14 3,19 7,20 11,18 12,14.5 10,11 6,10.5 2,13",
        "8,0 3.5,6 1,13 2,18 6,20 10,18 11,14.5 8,12 4,13 2,17",
        "10,0 4,6 1.5,14 5,20 11,17.5 10.5,12.5 6,11.5 2,16",
    ),
    7: (
        "0,0 13,0; 13,0 5,20",
        "0,1 6,1.5 13,0; 13,0 8.5,9 6,20",
        "0,0 13,0; 13,0 5,20; 4,10 13,9.5",
        "1,4 1,0; 1,0 13,0; 13,0 8,8.5 7,20",
    ),
    8: (
        "11,2 7,0 3,2 3,6 7,9.5 12,14 11,18.5 7,20 2.5,18.5 1.5,14 7,9.5 11.5,6 11,2",
        "7,0 3,2 2.5,5.5 4,8.5 7,9.5 10,8.5 11.5,5.5 11,2 7,0; 7,9.5 3,11 1,15 3,19 7,20 11,19 13,15 11,11 7,9.5",
        "12,2 8,0 4,2.5 5,7 9,11 10,16 6,20 2,17.5 4,12.5 9,7.5 12.5,3",
    ),
    9: (
        "11,6 8,10 4,10 1,7 2,2.5 6,0 10,1.5 11.5,6 11,13 8,18.5 3,20",
        "11,3.5 7,0 2,2 1,6.5 4,10 8,9 11,3.5; 11.5,1 10.5,10 9.5,20",
        "11,3 7,0.5 2.5,3 2,8 6,9.5 10,7 11.5,2; 11.5,2 10,12 6,20",
    ),
}


class Glyphs(NamedTuple):
    """G glyphs of at most K points: digit [G]; points [G, K, 2] (x, y), the last repeated; distance [G, y, x]."""

    digit: np.ndarray
    points: np.ndarray
    distance: np.ndarray


class Pose(NamedTuple):
    """How n digits are drawn. Lengths in pixels but for the matrix; vectors are (x, y)."""

    glyph: np.ndarray  # [n]
    matrix: np.ndarray  # [n, 2, 2] glyph units -> pixels
    offset: np.ndarray  # [n, 2] pixel of glyph point 0
    bend: np.ndarray  # [n, 2, 28, 28] displacement
    width: np.ndarray  # [n] of the pen
    softness: np.ndarray  # [n] of its edge


def stroke(text: str) -> np.ndarray:
    """Points [K, 2] along one stroke: a cubic spline over the chord length, or the two ends of a line."""
    knots = np.array([[float(v) for v in point.split(",")] for point in text.split()])
    if len(knots) == 2:
        return knots
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(knots, axis=0).T))])
    closed = "periodic" if (knots[0] == knots[-1]).all() else "natural"
    return CubicSpline(along, knots, bc_type=closed)(np.linspace(0, along[-1], 6 * (len(knots) - 1) + 1))


def distances(places: np.ndarray, lines: list[np.ndarray]) -> np.ndarray:
    """Distance of every place [N, 2] to the nearest of the polylines [K, 2]: [N]."""
    nearest = np.full(len(places), np.inf)
    for line in lines:
        for start, step in zip(line, np.diff(line, axis=0), strict=False):
            away = places - start
            away -= np.clip(away @ step / (step @ step), 0, 1)[:, None] * step
            nearest = np.minimum(nearest, (away * away).sum(1))
    return np.sqrt(nearest)


@lru_cache(maxsize=1)
def glyphs() -> Glyphs:
    """All glyphs with their tables of distances."""
    axis = STEP * np.arange(CELLS) - MARGIN
    places = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    shapes = [(digit, [stroke(s) for s in text.split(";")]) for digit, texts in GLYPHS.items() for text in texts]
    points = [np.concatenate(lines) for _, lines in shapes]
    longest = max(map(len, points))
    return Glyphs(
        digit=np.array([digit for digit, _ in shapes], np.uint8),
        points=np.stack([np.pad(p, ((0, longest - len(p)), (0, 0)), mode="edge") for p in points]).astype(np.float32),
        distance=np.stack([distances(places, lines).reshape(CELLS, CELLS) for _, lines in shapes]).astype(np.float32),
    )


def random_pose(rng: np.random.Generator, n: int) -> Pose:
    """Digits equally likely, forms of a digit equally likely, everything else drawn anew for each."""
    table = glyphs()
    digit = rng.integers(10, size=n)
    forms = np.bincount(table.digit)
    glyph = np.searchsorted(table.digit, digit) + rng.integers(forms[digit])
    angle, slant = rng.normal(0, 0.08, n), rng.normal(0.12, 0.18, n).clip(-0.3, 0.55)
    aspect, box = rng.uniform(0.75, 1.25, n), rng.uniform(18, 20, n)
    width, softness = rng.uniform(1.7, 3.5, n), rng.uniform(1.0, 1.9, n)
    shift = rng.uniform(-0.75, 0.75, (n, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    # turned x slanted x stretched; y points down, so a slant to the right is a negative shear
    matrix = np.stack([cos * aspect, -cos * slant - sin, sin * aspect, -sin * slant + cos], -1).reshape(n, 2, 2)
    points = table.points[glyph] @ matrix.transpose(0, 2, 1)
    low, high = points.min(1), points.max(1)
    matrix *= ((box - width) / (high - low).max(1))[:, None, None]
    points = table.points[glyph] @ matrix.transpose(0, 2, 1)
    offset = (SIZE - 1) / 2 + shift - (points.min(1) + points.max(1)) / 2
    noise = rng.standard_normal((n, 2, SIZE, SIZE), dtype=np.float32)
    # white noise filtered by a Gaussian has the deviation 1 / (2 sqrt(pi) sigma)
    strength = rng.uniform(0.3, 0.9, n).astype(np.float32)[:, None, None, None] * np.float32(2 * np.pi**0.5 * 4)
    bend = gaussian_filter(noise, 4.0) * strength
    bend -= bend.mean((2, 3), keepdims=True)  # moving as a whole is `shift`'s part
    return Pose(glyph, matrix, offset, bend, width, softness)


def render(pose: Pose) -> np.ndarray:
    """Digits [n, 28, 28] uint8: every pixel is traced back to its glyph, and the distance there looked up."""
    axis = np.arange(SIZE, dtype=np.float32)
    pixels = np.stack(np.meshgrid(axis, axis))  # [2, 28, 28], x before y
    back = np.linalg.inv(pose.matrix).astype(np.float32)
    seen = (pixels + pose.bend - pose.offset.astype(np.float32)[:, :, None, None]).reshape(-1, 2, SIZE * SIZE)
    cell = ((back @ seen + MARGIN) / STEP).clip(0, CELLS - 1.001)
    corner = cell.astype(np.int32)
    share = cell - corner
    first = (pose.glyph[:, None] * CELLS + corner[:, 1]) * CELLS + corner[:, 0]
    table = glyphs().distance.ravel()
    top = table[first] * (1 - share[:, 0]) + table[first + 1] * share[:, 0]
    bottom = table[first + CELLS] * (1 - share[:, 0]) + table[first + CELLS + 1] * share[:, 0]
    distance = top * (1 - share[:, 1]) + bottom * share[:, 1]
    scale = np.sqrt(np.linalg.det(pose.matrix))  # pixels a glyph unit, the mean over directions
    inside = (pose.width / 2)[:, None] - distance * scale[:, None]
    ink = np.clip(inside / pose.softness[:, None] + 0.5, 0, 1)
    return np.rint(255 * ink).astype(np.uint8).reshape(-1, SIZE, SIZE)


def draw_digits(seed: int, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `size` digits [size, 28, 28] uint8 of a split, and their labels [size] uint8.

    A digit is a pure function of (seed, split, index): more digits never change the earlier ones.
    """
    images, labels = np.empty((size, SIZE, SIZE), np.uint8), np.empty(size, np.uint8)
    for start in range(0, size, BLOCK):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), start // BLOCK])
        pose = random_pose(rng, BLOCK)
        rows = slice(start, min(start + BLOCK, size))
        images[rows] = render(pose)[: rows.stop - start]
        labels[rows] = glyphs().digit[pose.glyph][: rows.stop - start]
    return images, labels


def synthetic_digits(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`draw_digits` with this module's own seed, kept in the cache folder."""
    name = f"synthetic-digits-v{VERSION}-{split}-{size}-seed{SEED}"
    kept = load_arrays(name)
    if kept is not None and {key: (a.shape, a.dtype) for key, a in kept.items()} == {
        "images": ((size, SIZE, SIZE), np.uint8),
        "labels": ((size,), np.uint8),
    }:
        return kept["images"], kept["labels"]
    images, labels = draw_digits(SEED, split, size)
    save_arrays(name, {"images": images, "labels": labels})
    return images, labels
