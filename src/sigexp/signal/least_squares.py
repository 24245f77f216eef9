"""Least squares in closed form: the best convolution or separable filter for given examples.

A zero-padded 'same' convolution is linear in its kernel and bias. With phi the window around a position, the kernel of
least squared error solves the normal equations R w = q, R = sum phi phi', q = sum phi y'. Their entries are sums over
positions and examples: those of frames of different size add up, and a separable filter of the same window needs no
others.

Axes: N examples, C input and D output channels, H W pixels, h w taps of the kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GRAM_VALUES = 4096  # largest frame, in values, whose pixel Gram matrix is formed (134 MB in float64 at most)
PRECISE_FLOPS = 4e10  # up to here products are float64, above it float32, summed in float64
MOST_FLOPS = 1e12  # ten seconds or so on two cores
CHUNK = 2**19  # numbers worked on at once
ITERATIONS = 500  # of alternating least squares at most


@dataclass(frozen=True)
class Sums:
    """Normal equations, float64. Features are the window [C, h, w], then, for each of w taps, whether the column
    under it lies inside the frame (what a bias in front of a horizontal filter is seen through), then a 1.

    matrix [K, K], right [K, D], energy [] (sum of squared targets); kernel (h, w).
    """

    matrix: np.ndarray
    right: np.ndarray
    energy: float
    kernel: tuple[int, int]

    def __add__(self, other: "Sums") -> "Sums":
        assert self.kernel == other.kernel
        matrix, right = self.matrix + other.matrix, self.right + other.right
        return replace(self, matrix=matrix, right=right, energy=self.energy + other.energy)

    def within(self, kernel: tuple[int, int]) -> "Sums":
        """Those of a smaller window around the same middle, which are among these."""
        (h, w), (height, width) = self.kernel, kernel
        if height > h or width > w or height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"kernel {kernel}: expected odd sides, at most {self.kernel}")
        taps = len(self.matrix) - w - 1
        rows, columns = (slice((n - m) // 2, (n + m) // 2) for n, m in ((h, height), (w, width)))
        window = np.arange(taps).reshape(-1, h, w)[:, rows, columns].ravel()
        kept = np.r_[window, taps + np.arange(w)[columns], taps + w]
        return Sums(self.matrix[np.ix_(kept, kept)], self.right[kept], self.energy, kernel)


def flops(inputs_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    """Arithmetic of `sums` on inputs [N, C, H, W]."""
    return min(_gram_flops(inputs_shape, kernel), _line_flops(inputs_shape, kernel))


def _gram_flops(shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    n, c, rows, columns = shape
    fits = c * rows * columns <= GRAM_VALUES
    return 2.0 * n * rows * min(kernel[0], rows) * (c * columns) ** 2 if fits else np.inf


def _line_flops(shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    (n, c, rows, columns), (h, w) = shape, kernel
    return 2.0 * n * columns * (c * w) ** 2 * (rows * h + 2 * (h - 1) ** 2)


def sums(inputs: Tensor, targets: Tensor, kernel: tuple[int, int]) -> Sums:
    """The normal equations of inputs [N, C, H, W] and targets [N, D, H, W] for a kernel with odd sides (h, w).

    The products of windows with each other come from the Gram matrix of the pixels where frames are small and kernels
    large, else from the products of the windows' rows.
    """
    h, w = kernel
    if h % 2 == 0 or w % 2 == 0:
        raise ValueError(f"kernel {kernel}: expected odd sides, which zero padding keeps centred")
    c, d, columns = inputs.shape[1], targets.shape[1], inputs.shape[3]
    dtype = torch.float64 if flops(inputs.shape, kernel) <= PRECISE_FLOPS else torch.float32
    by_gram = _gram_flops(inputs.shape, kernel) < _line_flops(inputs.shape, kernel)
    taps = c * h * w
    products = _products_by_gram(inputs.to(dtype), kernel) if by_gram else np.zeros((taps, taps))
    cross, energy = np.zeros((taps, d)), 0.0
    sum_y = np.zeros((d, columns))
    for x, y in _chunks(inputs, targets, kernel):
        x, y = x.to(dtype), y.to(dtype)
        lines, rows = _lines(x, w), y.permute(2, 1, 0, 3).flatten(2)
        left = rows if by_gram else torch.cat([rows, lines[: len(rows)]], 1)
        long = _long_products(left, lines, h)  # [D (+ C w), h, C w]
        cross += long[:d].view(d, h, c, w).permute(2, 1, 3, 0).reshape(taps, d).numpy()
        energy += float(rows.double().square().sum())
        sum_y += y.sum((0, 2)).double().numpy()
        if not by_gram:
            products += _products_by_lines(long[d:], lines, kernel, c)
    sum_x = torch.stack([part.to(dtype).sum(0).double() for part in inputs.split(250)]).sum(0).numpy()
    matrix, right = np.empty((taps + w + 1,) * 2), np.empty((taps + w + 1, d))
    matrix[:taps, :taps], right[:taps] = products, cross
    _add_frame(matrix, right, len(inputs), sum_x, sum_y, kernel)
    return Sums(matrix, right, energy, kernel)


def _chunks(inputs: Tensor, targets: Tensor, kernel: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Some examples, or of a large frame some rows, at a time: padded inputs [n, C, r + h - 1, W + w - 1] with their
    targets [n, D, r, W]."""
    (_, c, rows, columns), (h, w) = inputs.shape, kernel
    examples = max(1, CHUNK // (c * w * rows * columns))
    strip = max(4 * h, CHUNK // (c * w * columns))
    for x, y in zip(inputs.split(examples), targets.split(examples), strict=True):
        padded = F.pad(x, (w // 2, w // 2, h // 2, h // 2))
        for top in range(0, rows, strip):
            yield padded[:, :, top : top + strip + h - 1], y[:, :, top : top + strip]


def _lines(padded: Tensor, w: int) -> Tensor:
    """What a single row of the kernel sees along every row of padded inputs: [r + h - 1, C w, N W]."""
    windows = padded.unfold(3, w, 1)  # [N, C, r + h - 1, W, w]
    n, c, rows, columns, _ = windows.shape
    return windows.permute(2, 1, 4, 0, 3).reshape(rows, c * w, n * columns).contiguous()


def _long_products(left: Tensor, lines: Tensor, h: int) -> Tensor:
    """Sum over rows y of left[y] lines[y + j]' for every row j of the kernel: [M, h, C w] float64 of left [r, M, S]."""
    (rows, _, S), L = left.shape, lines.shape[1]
    blocks = lines.as_strided((rows, h * L, S), (L * S, S, 1))  # h rows from each row on, which overlap
    return torch.bmm(left, blocks.mT).double().sum(0).unflatten(1, (h, L))


def _products_by_lines(long: Tensor, lines: Tensor, kernel: tuple[int, int], channels: int) -> np.ndarray:
    """Products of windows with each other, [C h w, C h w], from the products of their rows.

    R[i, j], of the kernel's rows i and j, sums over the rows of the image, and R[i + 1, j + 1] sums the same products
    but for those at the two ends. So only R[0, j] are long products: h times less work than phi phi'.
    """
    (h, w), L, rows = kernel, lines.shape[1], len(lines) - kernel[0] + 1
    R = long.new_zeros(h, L, h, L)
    R[0] = long
    if h > 1:
        ends = (lines[at : at + h - 1].flatten(0, 1) for at in (0, rows))
        top, bottom = ((end @ end.T).double().view(h - 1, L, h - 1, L) for end in ends)
        for i in range(h - 1):
            R[i + 1, :, i + 1 :] = R[i, :, i:-1] - top[i, :, i:] + bottom[i, :, i:]
        for i in range(1, h):
            for j in range(i):
                R[i, :, j] = R[j, :, i].T
    taps = h * L
    return R.view(h, channels, w, h, channels, w).permute(1, 0, 2, 4, 3, 5).reshape(taps, taps).numpy()


def _products_by_gram(inputs: Tensor, kernel: tuple[int, int]) -> np.ndarray:
    """The same from the Gram matrix G of the pixels: R[a, b] = sum_p G[p + a, p + b] for kernel offsets a and b."""
    (_, c, rows, columns), (h, w) = inputs.shape, kernel
    gram = _band(inputs, min(h, rows))
    products = np.zeros((c, h, w, c, h, w))
    (top, bottom), (left, right) = _bounds(rows, h), _bounds(columns, w)
    for dy in range(gram.shape[3]):
        for dx in range(1 - w, w):
            # The sum of G[q, q + (dy, dx)] over the q = p + a whose p lies in the frame, for all a at once.
            prefix = np.zeros((c, c, rows + 1, columns + 1))
            prefix[..., 1:, 1:] = _diagonal(gram, dy, dx).cumsum(-2).cumsum(-1)
            i, j = np.arange(h - dy), np.arange(max(0, -dx), min(w, w - dx))
            lower, upper = prefix[:, :, top[i]], prefix[:, :, bottom[i]]
            box = (upper - lower)[..., right[j]] - (upper - lower)[..., left[j]]  # [C, C, i, j]
            y, x = np.meshgrid(i, j, indexing="ij")
            products[:, y, x, :, y + dy, x + dx] = np.moveaxis(box, (0, 1), (2, 3))
            products[:, y + dy, x + dx, :, y, x] = np.moveaxis(box, (1, 0), (2, 3))
    return products.reshape(c * h * w, c * h * w)


def _band(inputs: Tensor, h: int) -> np.ndarray:
    """Products of the pixels in every row with those in it and the h - 1 rows below: [H, C, W, h, C, W] float64."""
    c, rows, columns = inputs.shape[1:]
    L, band = c * columns, np.zeros((rows, c * columns, h * c * columns))
    for part in inputs.split(2500):
        lines = F.pad(part.permute(2, 1, 3, 0), (0, 0, 0, 0, 0, 0, 0, h - 1)).contiguous().view(rows + h - 1, L, -1)
        S = lines.shape[2]
        blocks = lines.as_strided((rows, h * L, S), (L * S, S, 1))  # h rows from each row on, which overlap
        band += torch.bmm(lines[:rows], blocks.mT).numpy()
    return band.reshape(rows, c, columns, h, c, columns)


def _diagonal(gram: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """The products of every pixel q with q + (dy, dx), dy >= 0, zero where that lies outside: [C, C, H, W]."""
    rows, c, columns = gram.shape[:3]
    out = np.zeros((c, c, rows, columns))
    x = np.arange(max(0, -dx), min(columns, columns - dx))
    if len(x):
        out[..., x] = gram[:, :, x, dy, :, x + dx].transpose(2, 3, 1, 0)  # numpy puts x in front: [x, H, C, C]
    return out


def _bounds(length: int, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 of the samples q = p + a inside the frame whose p is in it too, for every tap a: [taps]."""
    offset = np.arange(taps) - taps // 2
    return np.clip(offset, 0, length), np.clip(length + offset, 0, length)


def _add_frame(
    matrix: np.ndarray, right: np.ndarray, n: int, sum_x: np.ndarray, sum_y: np.ndarray, kernel: tuple[int, int]
) -> None:
    """Fill in the products of everything with the taps' insides and with the 1, from the sums of n inputs, [C, H, W],
    and of the targets and their rows, [D, W]."""
    (c, rows, columns), (h, w) = sum_x.shape, kernel
    taps = c * h * w
    prefix = np.concatenate([np.zeros((c, 1, columns)), sum_x.cumsum(1)], axis=1)
    first, last = _bounds(rows, h)
    seen = (prefix[:, last] - prefix[:, first]).reshape(c * h, columns)  # what each row of the kernel sees, [C h, W]
    inside = _windows(np.full((1, columns), 1.0), w)[0]  # [W, w]
    ones = np.concatenate([inside, np.ones((columns, 1))], axis=1)
    matrix[:taps, taps:] = np.einsum("sxj,xk->sjk", _windows(seen, w), ones).reshape(taps, w + 1)
    matrix[taps:, :taps] = matrix[:taps, taps:].T
    matrix[taps:, taps:] = n * rows * (ones.T @ ones)
    right[taps:] = ones.T @ sum_y.T


def _windows(rows: np.ndarray, w: int) -> np.ndarray:
    """Windows of `w` samples around each of [S, W], zeros outside: [S, W, w]."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(rows, ((0, 0), (w // 2, w // 2))), w, axis=1)


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of least norm of symmetric equations [K, K], [K, D]; unobserved features get 0."""
    return np.linalg.lstsq(matrix, right, rcond=1e-12)[0]


def convolution(equations: Sums) -> tuple[Tensor, Tensor]:
    """Kernel [D, C, h, w] and bias [D], float64, of least squared error."""
    (h, w), d = equations.kernel, equations.right.shape[1]
    kept = np.r_[0 : len(equations.matrix) - w - 1, len(equations.matrix) - 1]
    solution = solve(equations.matrix[np.ix_(kept, kept)], equations.right[kept])
    return torch.from_numpy(solution[:-1].T.copy()).view(d, -1, h, w), torch.from_numpy(solution[-1].copy())


def fit_convolution(inputs: Tensor, targets: Tensor, kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Kernel [D, C, h, w] and bias [D] (float64) with the least squared error of inputs [N, C, H, W] to targets.

    Targets are [N, D, H, W]; the kernel's sides are odd and its borders padded with zeros, as in
    `Conv2d(C, D, kernel, padding='same')`.
    """
    return convolution(sums(inputs, targets, kernel))


def separable(equations: Sums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best `Conv2d(C, D, (h, 1))` with the `Conv2d(D, D, (1, w))` behind it, both padded with zeros.

    Weight [D, C, h, 1], bias [D], weight [D, D, 1, w], bias [D], float64. With one factor fixed the other is linear,
    so they are fitted in turn, from the singular vectors of the best kernel without that constraint. The error falls
    at each turn; that it ends in the least of all minima is not proved.
    """
    (h, w), d = equations.kernel, equations.right.shape[1]
    S = (len(equations.matrix) - 1) // w  # C h, and the bias of the first layer
    best = solve(equations.matrix, equations.right)[:-1].reshape(S, w * d)
    U = np.linalg.svd(best)[0][:, :d].T
    U = np.concatenate([U, np.zeros((d - len(U), S))])  # where there are more outputs than rows
    least = np.inf
    for _ in range(ITERATIONS):
        V = _across(equations, U)
        U, bias, error = _down(equations, V)
        if error >= least * (1 - 1e-9):
            break
        least = error
    down, across = U[:, :-1].reshape(d, -1, h, 1), V.transpose(2, 0, 1)[:, :, None]
    return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in (down, U[:, -1], across, bias))  # type: ignore


def _unfolded(equations: Sums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products of all features but the 1, [S, w, S, w], with the 1, [S, w], and with the targets, [S, w, D]."""
    w = equations.kernel[1]
    matrix, right = equations.matrix, equations.right
    S = (len(matrix) - 1) // w
    return matrix[:-1, :-1].reshape(S, w, S, w), matrix[:-1, -1].reshape(S, w), right[:-1].reshape(S, w, -1)


def _across(equations: Sums, U: np.ndarray) -> np.ndarray:
    """The best filters along the rows, [E, w, D], behind the filters and biases U [E, S] down the columns."""
    (M, ones, q), total, count = _unfolded(equations), equations.right[-1], equations.matrix[-1, -1]
    E, w, D = len(U), M.shape[1], len(total)
    A = np.einsum("es,sjtk,ft->ejfk", U, M, U, optimize=True).reshape(E * w, E * w)
    edge = np.einsum("es,sj->ej", U, ones).reshape(-1, 1)
    matrix = np.block([[A, edge], [edge.T, np.full((1, 1), count)]])
    right = np.concatenate([np.einsum("es,sjd->ejd", U, q).reshape(-1, D), total[None]])
    return solve(matrix, right)[:-1].reshape(E, w, D)


def _down(equations: Sums, V: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The best filters and biases [E, S] in front of V [E, w, D], with the last biases [D] and the squared error."""
    (M, ones, q), total, count = _unfolded(equations), equations.right[-1], equations.matrix[-1, -1]
    (E, _, D), S = V.shape, len(M)
    A = np.einsum("ejd,sjtk,fkd->esft", V, M, V, optimize=True).reshape(E * S, E * S)
    edge = np.einsum("ejd,sj->esd", V, ones).reshape(-1, D)
    matrix = np.block([[A, edge], [edge.T, count * np.eye(D)]])
    right = np.concatenate([np.einsum("ejd,sjd->es", V, q, optimize=True).ravel(), total])
    solution = solve(matrix, right[:, None])[:, 0]
    error = max(equations.energy - float(right @ solution), 0.0)
    return solution[:-D].reshape(E, S), solution[-D:], error
