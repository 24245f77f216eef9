"""Outlines of circles and rectangles: drawn, blurred, made equal in ink, and measured by projection.

A blurred outline is computed once for every size and pasted where it belongs, which equals drawing it with OpenCV
and filtering the whole image, as long as the blur stays inside; where it does not, the whole image is filtered.

Axes: B images, H W pixels. Centres and half-extents are (rows, columns) in pixels.
"""

from functools import lru_cache

import cv2
import numpy as np
import scipy.ndimage

TRUNCATE = 4.0  # scipy's Gaussian ends at 4 sigma


def draw_outline(image: np.ndarray, circle: bool, half: tuple[int, int], centre: tuple[int, int]) -> None:
    """Draw an outline of 1 pixel and value 255 into `image` [H, W]; a circle's radius is half[0]."""
    (row, column), (down, across) = centre, half
    if circle:
        cv2.circle(image, (column, row), down, 255, 1)
    else:
        cv2.rectangle(image, (column - across, row - down), (column + across, row + down), 255, 1)


@lru_cache(maxsize=1024)
def outline_stamp(circle: bool, half: tuple[int, int], sigma: float) -> np.ndarray:
    """A blurred outline of maximum 1 with all of its blur: float32, sides 2 (half + reach of the blur) + 1."""
    reach = int(TRUNCATE * sigma + 0.5)
    middle = (half[0] + reach, half[1] + reach)
    image = np.zeros((2 * middle[0] + 1, 2 * middle[1] + 1))
    draw_outline(image, circle, half, middle)
    blurred = scipy.ndimage.gaussian_filter(image, sigma, mode="constant")
    return (blurred / blurred.max()).astype(np.float32)


def add_outlines(
    images: np.ndarray, circle: np.ndarray, half: np.ndarray, centres: np.ndarray, *, sigma: float
) -> None:
    """Add to each of `images` [B, H, W] its blurred outline, divided by its maximum.

    circle: [B] bool. half: [B, 2] half-sides, or the radius twice. centres: [B, 2]. All whole numbers. The blur is
    that of `scipy.ndimage.gaussian_filter` over the whole image, whose border reflects.
    """
    height, width = images.shape[1:]
    rows = zip(images, circle.tolist(), map(tuple, half.tolist()), centres.tolist(), strict=True)
    for image, is_circle, extent, (row, column) in rows:
        stamp = outline_stamp(is_circle, extent, sigma)
        down, across = stamp.shape[0] // 2, stamp.shape[1] // 2
        if down <= row < height - down and across <= column < width - across:
            image[row - down : row + down + 1, column - across : column + across + 1] += stamp
        else:
            whole = np.zeros((height, width))
            draw_outline(whole, is_circle, extent, (row, column))
            blurred = scipy.ndimage.gaussian_filter(whole, sigma)
            image += (blurred / blurred.max()).astype(np.float32)


def projected_half_sides(images: np.ndarray, candidates: range) -> np.ndarray:
    """Half-sides [B, 2] of the one axis-parallel rectangle in each of `images` [B, H, W], noise or not.

    Summed along an axis, a rectangle's two parallel sides stand out as two peaks: the half-side is the candidate
    whose pair of samples, 2 h apart, has the largest sum anywhere.
    """
    if not candidates or candidates[0] < 1 or 2 * candidates[-1] >= min(images.shape[1:]):
        raise ValueError(f"half-sides {candidates}: expected at least 1 px and less than half of {images.shape[1:]}")

    def half(sums: np.ndarray) -> np.ndarray:
        pairs = [(sums[:, : -2 * h] + sums[:, 2 * h :]).max(1) for h in candidates]
        return np.array(candidates)[np.argmax(pairs, axis=0)]

    return np.stack([half(images.sum(2)), half(images.sum(1))], axis=1)


def equal_ink_patches(circle: np.ndarray, half: np.ndarray, offset: np.ndarray, *, sigma: float) -> np.ndarray:
    """Outlines of circles and rectangles that have the same pixel values: [B, S, S] float32 in 0..1, S odd.

    circle: [B] bool. half: [B, 2] half-sides of the rectangle, whose perimeter the circle of the same row shares.
    offset: [B, 2] of the centre from the middle pixel. Fractions of a pixel count. A rectangle's pixel at distance d
    from the outline is exp(-d^2 / (2 sigma^2)). A circle takes the pixel values of the rectangle that would have
    stood there, the largest where its own outline is nearest: both classes have one and the same histogram.
    """
    radius = 2 * half.sum(1) / np.pi
    reach = int(np.ceil(radius.max(initial=0) + TRUNCATE * sigma + np.abs(offset).max(initial=0)))
    at = np.arange(-reach, reach + 1, dtype=np.float32)
    down = at[None, :, None] - offset[:, 0, None, None].astype(np.float32)
    across = at[None, None, :] - offset[:, 1, None, None].astype(np.float32)
    below, beside = (np.abs(a) - half[:, i, None, None].astype(np.float32) for i, a in enumerate((down, across)))
    outside = np.hypot(np.maximum(below, 0), np.maximum(beside, 0))
    distance = np.abs(outside + np.minimum(np.maximum(below, beside), 0))
    patches = np.where(distance <= TRUNCATE * sigma, np.exp(-0.5 * (distance / sigma) ** 2), 0).astype(np.float32)
    if circle.any():
        from_circle = np.abs(np.hypot(down[circle], across[circle]) - radius[circle, None, None].astype(np.float32))
        nearest = from_circle.reshape(len(from_circle), -1).argsort(1)
        values = np.sort(patches[circle].reshape(len(nearest), -1), axis=1)[:, ::-1]
        ranked = np.empty_like(values)
        np.put_along_axis(ranked, nearest, values, axis=1)
        patches[circle] = ranked.reshape(-1, *patches.shape[1:])
    return patches
