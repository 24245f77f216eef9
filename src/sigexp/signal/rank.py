"""Median filters by sorting networks, equal to `scipy.ndimage.median_filter` bit for bit.

A sorting network is a fixed list of comparators (minimum to one wire, maximum to the other), so each comparator
runs on a whole stack of pixels at once. Three things keep it short: columns of a window are sorted once and shared by
all windows that hold them, and so are pairs of columns, pairs of pairs, and so on; merges are Batcher's (K. E.
Batcher, 'Sorting networks and their applications', 1968); of the last merge only the median is computed.

As in scipy, an even window takes the upper of the two middle values and reaches one pixel further up and left than
down and right, so its centre lies half a pixel up and left of the pixel that gets the median.

Axes: [..., H, W].
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Comparator = tuple[int, int, bool, bool]  # wires a and b, whether the minimum (to a) and the maximum (to b) are wanted
Network = tuple[list[Comparator], list[int]]  # and its wires in sorted order

CHUNK = 16_384  # pixels at once: the planes in work stay in the cache, and a call's overhead is small beside its work


def merge_network(a: Sequence[int], b: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Batcher's odd-even merge of two sorted lists of wires: comparators, and the wires in sorted order."""
    if not a or not b:
        return [], [*a, *b]
    if len(a) == len(b) == 1:
        return [(a[0], b[0])], [a[0], b[0]]
    even, evens = merge_network(a[::2], b[::2])
    odd, odds = merge_network(a[1::2], b[1::2])
    # With v = evens and w = odds the order is v0, then w(i) against v(i+1) (Knuth, TAOCP 3, 5.3.4).
    last = list(zip(odds, evens[1:], strict=False))
    order = [evens[0], *[wire for pair in last for wire in pair]]
    rest = odds[len(last) :] + evens[len(last) + 1 :]
    return even + odd + last, order + rest


def sort_network(wires: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Batcher's odd-even merge sort: comparators, and the wires in sorted order."""
    if len(wires) <= 1:
        return [], list(wires)
    first, a = sort_network(wires[: len(wires) // 2])
    second, b = sort_network(wires[len(wires) // 2 :])
    merge, order = merge_network(a, b)
    return first + second + merge, order


def prune(network: Sequence[tuple[int, int]], outputs: Sequence[int]) -> list[Comparator]:
    """Only what the wires `outputs` depend on."""
    wanted = set(outputs)
    kept: list[Comparator] = []
    for a, b in reversed(network):
        if a in wanted or b in wanted:
            kept.append((a, b, a in wanted, b in wanted))
            wanted |= {a, b}
    return kept[::-1]


@lru_cache(maxsize=256)
def _sorting(n: int) -> Network:
    network, order = sort_network(range(n))
    return prune(network, order), order


@lru_cache(maxsize=256)
def _merging(n: int, m: int, first: int, last: int) -> Network:
    """The merge of sorted wires 0..n-1 and n..n+m-1, of which only the ranks first..last are computed."""
    network, order = merge_network(range(n), range(n, n + m))
    return prune(network, order[first : last + 1]), order


def _run(network: Network, planes: Sequence[np.ndarray]) -> list[np.ndarray]:
    comparators, order = network
    wires = list(planes)
    for a, b, low, high in comparators:
        x, y = wires[a], wires[b]
        if low:
            wires[a] = np.minimum(x, y)
        if high:
            wires[b] = np.maximum(x, y)
    return [wires[wire] for wire in order]


def _shifted(planes: Sequence[np.ndarray], shift: int, length: int) -> list[np.ndarray]:
    return [plane[shift : shift + length] for plane in planes]


def _merge(a: list[np.ndarray], b: list[np.ndarray], shift: int, first: int = 0, last: int = -1) -> list[np.ndarray]:
    """Sorted planes a at x merged with sorted planes b at x + shift; by default all ranks, else only first..last."""
    length = len(b[0]) - shift
    network = _merging(len(a), len(b), first, last % (len(a) + len(b)))
    return _run(network, _shifted(a, 0, length) + _shifted(b, shift, length))


def _select(a: list[np.ndarray], b: list[np.ndarray], shift: int, rank: int) -> np.ndarray:
    """The value of 0-based `rank` among sorted planes a at x and sorted planes b at x + shift.

    It is the least, over all ways to take rank + 1 values from the heads of both, of the larger of the last two.
    """
    length = len(b[0]) - shift
    a, b = _shifted(a, 0, length), _shifted(b, shift, length)
    best = a[rank].copy() if rank < len(a) else None
    for j in range(max(1, rank + 1 - len(a)), len(b) + 1):
        larger = np.maximum(a[rank - j], b[j - 1]) if j <= rank else b[j - 1]
        best = larger if best is None else np.minimum(best, larger)
    assert best is not None
    return best


def _half(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << (width - 1).bit_length() - 1


def _columns(width: int, done: dict[int, list[np.ndarray]]) -> list[np.ndarray]:
    """The pixels of `width` neighbouring columns, sorted; `done` holds at least width 1 and keeps the others."""
    if width not in done:
        left = _half(width)
        done[width] = _merge(_columns(left, done), _columns(width - left, done), left)
    return done[width]


def _medians(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Medians of k x k windows; rows[r][x] is the pixel in row r and column 0 of window x.

    The k rows are equally long, and k - 1 longer than what is returned.
    """
    size, rank = len(rows), len(rows) ** 2 // 2
    done = {1: _run(_sorting(size), rows)}
    left = _half(size)
    b = _columns(size - left, done)
    if left in done or left == size - left:
        a = _columns(left, done)
    else:
        quarter = _columns(left // 2, done)
        a = _merge(quarter, quarter, left // 2, rank - len(b), rank)
    return _select(a, b, left, rank)


def median_filter(images: np.ndarray, size: int) -> np.ndarray:
    """Median of every `size` x `size` window of images [..., H, W], of any type that can be ordered, without NaN.

    Equal to `scipy.ndimage.median_filter(image, (size, size))` for each image, its reflecting border included (the
    edge pixel is repeated). Sizes of 2 to 5 are quick: at 4 a pixel takes 43 minima and maxima. Same shape and type.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"median window size={size}: expected a whole number of pixels, 1 or more")
    if images.ndim < 2 or images.size == 0:
        raise ValueError(f"median of an array of shape {images.shape}: expected [..., H, W] with at least one pixel")
    if size == 1:
        return images.copy()
    rows, columns = images.shape[-2:]
    before, after = size // 2, size - 1 - size // 2
    stack = images.reshape(-1, rows, columns)
    padded = np.pad(stack, ((0, 0), (before, after), (before, after)), mode="symmetric")
    # Flat, a window's rows are `stride` apart, and no operation cares where a row ends: what is computed there from
    # the pixels of two rows falls into the margin and is cut off.
    stride = padded.shape[-1]
    flat, medians = padded.ravel(), np.empty(padded.shape, padded.dtype)
    out = medians.ravel()
    total = flat.size - (size - 1) * (stride + 1)
    for start in range(0, total, CHUNK):
        length = min(CHUNK, total - start)
        first = range(start, start + size * stride, stride)
        out[start : start + length] = _medians([flat[i : i + length + size - 1] for i in first])
    return np.ascontiguousarray(medians[:, :rows, :columns]).reshape(images.shape)
