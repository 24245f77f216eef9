"""The best convolution kernel in closed form: ordinary least squares with the footprint and borders of a layer.

A zero-padded 'same' convolution is linear in its kernel w and bias, so the kernel that minimises the squared error
over a set of examples solves the normal equations A^T A w = A^T y. For small frames their entries are read off the
Gram matrix of the pixels: (A^T A)[a, b] = sum_p G[p + a, p + b] for kernel offsets a and b, which costs far less
than forming A.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GRAM_VALUES = 4096  # largest frame, in values, whose pixel Gram matrix is formed (134 MB in float64)
MOST_FLOPS = 5e11  # some seconds on two cores


def flops(inputs_shape: tuple[int, ...], kernel: tuple[int, int]) -> float:
    """Arithmetic of `fit_convolution` on inputs [N, C, H, W]."""
    n, c, h, w = inputs_shape
    if c * h * w <= GRAM_VALUES:
        return 2.0 * n * (c * h * w) ** 2
    return 2.0 * n * h * w * (c * kernel[0] * kernel[1]) ** 2


def fit_convolution(inputs: Tensor, targets: Tensor, kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Kernel [D, C, kh, kw] and bias [D] (float64) with the least squared error of inputs [N, C, H, W] to targets.

    Targets are [N, D, H, W]; the kernel's sides are odd and its borders padded with zeros, as in
    `Conv2d(C, D, kernel, padding='same')`.
    """
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise ValueError(f"kernel {kernel}: expected odd sides, which zero padding keeps centred")
    values = inputs[0].numel()
    normal = _normal_by_gram if values <= GRAM_VALUES else _normal_directly
    matrix, right = normal(inputs, targets, kernel)
    solution = np.linalg.lstsq(matrix, right, rcond=1e-12)[0]  # unobserved taps (a constant border) get 0
    weight = torch.from_numpy(np.ascontiguousarray(solution[:-1].T)).reshape(targets.shape[1], inputs.shape[1], *kernel)
    return weight, torch.from_numpy(solution[-1].copy())


def _normal_directly(inputs: Tensor, targets: Tensor, kernel: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations from the windows themselves, in chunks: float32 products summed in float64."""
    features, outputs = inputs.shape[1] * kernel[0] * kernel[1] + 1, targets.shape[1]
    matrix, right = (
        torch.zeros(features, features, dtype=torch.float64),
        torch.zeros(features, outputs, dtype=torch.float64),
    )
    pixels = inputs.shape[2] * inputs.shape[3]
    step = max(1, 16_000_000 // (features * pixels))
    for i in range(0, len(inputs), step):
        windows = F.unfold(inputs[i : i + step], kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        windows = F.pad(windows, (0, 0, 0, 1), value=1.0).transpose(0, 1).flatten(1)
        matrix += (windows @ windows.T).double()
        right += (windows @ targets[i : i + step].transpose(0, 1).flatten(1).T).double()
    return matrix.numpy(), right.numpy()


def _normal_by_gram(inputs: Tensor, targets: Tensor, kernel: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations from the Gram matrices of pixels with pixels and of pixels with targets."""
    (n, c, h, w), d = inputs.shape, targets.shape[1]
    gram, cross = np.zeros((c * h * w,) * 2), np.zeros((c * h * w, d * h * w))
    for x, y in zip(inputs.flatten(1).split(500), targets.flatten(1).split(500), strict=True):
        gram += (x.T @ x).numpy()
        cross += (x.T @ y).numpy()
    gram, cross = gram.reshape(c, h, w, c, h, w), cross.reshape(c, h, w, d, h, w)
    total_x = inputs.double().sum(0).numpy()
    total_y = targets.double().sum(0).numpy()
    kh, kw = kernel
    size = c * kh * kw
    matrix, right = np.zeros((c, kh, kw, c, kh, kw)), np.zeros((c, kh, kw, d))
    ones = np.zeros((c, kh, kw))
    ay, ax = np.mgrid[-(kh // 2) : kh // 2 + 1, -(kw // 2) : kw // 2 + 1]
    for dy in range(-kh + 1, kh):
        for dx in range(-kw + 1, kw):
            q = _diagonal(gram, dy, dx)  # [c, c, h, w]: G[q, q + (dy, dx)], zero outside
            for i, j in np.ndindex(kh, kw):
                if 0 <= i + dy < kh and 0 <= j + dx < kw:
                    # p, p + a and p + b must lie in the frame; the last two are what q's zeros take care of
                    box = _box(ay[i, j], ax[i, j], h, w)
                    matrix[:, i, j, :, i + dy, j + dx] = _box_sum(q, box)
    for i, j in np.ndindex(kh, kw):
        y, x = int(ay[i, j]), int(ax[i, j])
        box = _box(y, x, h, w)
        right[:, i, j] = _diagonal(cross, -y, -x)[..., box[0] : box[1], box[2] : box[3]].sum((-2, -1))
        ones[:, i, j] = total_x[:, box[0] : box[1], box[2] : box[3]].sum((-2, -1))
    full = np.zeros((size + 1, size + 1))
    full[:-1, :-1] = matrix.reshape(size, size)
    full[-1, :-1] = full[:-1, -1] = ones.ravel()
    full[-1, -1] = n * h * w
    return full, np.vstack([right.reshape(size, d), total_y.sum((-2, -1))[None]])


def _diagonal(gram: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """gram[c, q, d, q + (dy, dx)] for every pixel q, zero where q + (dy, dx) lies outside: [c, d, h, w]."""
    c, h, w, d = gram.shape[:4]
    out = np.zeros((c, d, h, w))
    rows, columns = np.arange(max(0, -dy), min(h, h - dy)), np.arange(max(0, -dx), min(w, w - dx))
    if len(rows) and len(columns):
        y, x = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
        picked = gram.reshape(c, h * w, d, h * w)[:, y * w + x, :, (y + dy) * w + x + dx]  # [pixels, c, d]
        out[:, :, y, x] = np.moveaxis(picked, 0, -1)
    return out


def _box(y: int, x: int, h: int, w: int) -> tuple[int, int, int, int]:
    """Rows and columns of the pixels q = p + (y, x) inside the frame whose p is inside it too."""
    return max(0, y), min(h, h + y), max(0, x), min(w, w + x)


def _box_sum(images: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    return images[..., box[0] : box[1], box[2] : box[3]].sum((-2, -1))
