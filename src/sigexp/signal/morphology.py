"""Binary images: random blobs, their boundary, and two ways to fill a boundary again.

Axes: B images, H W pixels.
"""

import cv2
import numpy as np


def minimum_3x3(images: np.ndarray) -> np.ndarray:
    """Minimum over 3x3 pixels of [..., H, W], as `scipy.ndimage.minimum_filter(image, 3)` with its reflecting border.

    A reflected border only repeats pixels of the window, so leaving it out gives the same minimum.
    """
    down = images.copy()
    np.minimum(down[..., 1:, :], images[..., :-1, :], out=down[..., 1:, :])
    np.minimum(down[..., :-1, :], images[..., 1:, :], out=down[..., :-1, :])
    across = down.copy()
    np.minimum(across[..., 1:], down[..., :-1], out=across[..., 1:])
    np.minimum(across[..., :-1], down[..., 1:], out=across[..., :-1])
    return across


def boundary(masks: np.ndarray) -> np.ndarray:
    """Pixels of bool masks [..., H, W] that have background among their 8 neighbours: bool, same shape."""
    return masks & ~minimum_3x3(masks)


def above_percentile(fields: np.ndarray, percent: float) -> np.ndarray:
    """Where [B, H, W] exceeds the percentile of its own image, interpolated as `numpy.percentile` does: bool."""
    flat = fields.reshape(len(fields), -1)
    position = (flat.shape[1] - 1) * percent / 100
    below = int(position)
    if below == flat.shape[1] - 1:
        return np.zeros_like(fields, dtype=bool)
    parts = np.partition(flat, below + 1, axis=1)  # one pivot and a maximum are quicker than two pivots
    lower, upper = parts[:, : below + 1].max(1), parts[:, below + 1]
    threshold = lower + np.float32(position - below) * (upper - lower)
    return fields > threshold[:, None, None]


def disc(radius: int) -> np.ndarray:
    """Pixels within `radius` of the middle: [2 radius + 1, 2 radius + 1] uint8."""
    at = np.arange(-radius, radius + 1)
    return (at[:, None] ** 2 + at**2 <= radius**2).astype(np.uint8)


def smooth_masks(masks: np.ndarray, radius: int) -> np.ndarray:
    """Closing and then opening of bool masks [B, H, W] with a disc: no detail thinner than it remains."""
    element = disc(radius)
    smooth = np.empty(masks.shape, np.uint8)
    for source, image in zip(masks.view(np.uint8), smooth, strict=True):
        closed = cv2.morphologyEx(source, cv2.MORPH_CLOSE, element)
        cv2.morphologyEx(closed, cv2.MORPH_OPEN, element, dst=image)
    return smooth.view(bool)


def fill_holes(edges: np.ndarray) -> np.ndarray:
    """Bool edges [B, H, W] and all that they enclose: holes are filled too.

    As `scipy.ndimage.binary_fill_holes`, but in one pass over an image instead of one for every pixel of its depth.
    """
    framed = np.pad(~edges, ((0, 0), (1, 1), (1, 1)), constant_values=True).view(np.uint8)
    regions = (cv2.connectedComponents(image, connectivity=4)[1] for image in framed)
    return np.stack([(region != region[0, 0])[1:-1, 1:-1] for region in regions])


def has_holes(masks: np.ndarray) -> np.ndarray:
    """Whether masks [B, H, W] have background (8-connected) that does not reach the frame: [B] bool."""
    framed = np.pad(~masks, ((0, 0), (1, 1), (1, 1)), constant_values=True).view(np.uint8)
    return np.array([cv2.connectedComponents(image, connectivity=8)[0] > 2 for image in framed])


def even_odd(edges: np.ndarray) -> np.ndarray:
    """Bool edges [B, H, W] and the regions that lie behind an odd number of them, seen from outside: bool.

    Regions are 8-connected and curves 4-connected, as `boundary` draws them, so that no region leaks through a
    curve. Unlike `fill_holes` the rule keeps holes. It fails where the boundary of a hole touches the outer one,
    and there no rule is right always: more than one mask has that boundary.
    """
    return np.stack([_even_odd(edge) for edge in edges])


def _even_odd(edge: np.ndarray) -> np.ndarray:
    """One image [H, W]: breadth-first from the frame over regions and curves, which alternate."""
    framed = np.pad(edge, 1).view(np.uint8)
    regions, region = cv2.connectedComponents(1 - framed, connectivity=8)
    curves, curve = cv2.connectedComponents(framed, connectivity=4)
    node = region + curve + (regions - 1) * framed.astype(region.dtype)  # 1, 2, ... the regions, then the curves
    nodes, at, pixels = node.ravel(), np.flatnonzero(framed), framed.shape[1]
    adjacent = np.zeros((regions + curves - 1,) * 2, bool)
    for neighbour in (at - pixels, at - 1, at + 1, at + pixels):
        adjacent[nodes[at], nodes[neighbour]] = True
    adjacent |= adjacent.T
    inside = np.arange(len(adjacent)) >= regions
    seen = np.zeros(len(adjacent), bool)
    front, crossed = np.arange(len(adjacent)) == node[0, 0], 0
    while front.any():
        inside |= front & (crossed % 4 == 2)  # two steps, on a curve and off it, for each crossing
        seen |= front
        front, crossed = adjacent[front].any(0) & ~seen, crossed + 1
    return inside[node[1:-1, 1:-1]]
