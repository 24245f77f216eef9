"""How much of a filter kernel a Gabor function leaves unexplained.

A kernel k [T] is compared with exp(-(t - mu)^2 / (2 sigma^2)) (a cos(2 pi f t) + b sin(2 pi f t)): a and b by least
squares, mu, sigma and f by a grid that is refined around its best point. Kernels of white noise are the yardstick for
what five free numbers explain of anything.

Axes: N kernels, T taps, G points of the grid.
"""

from itertools import product

import numpy as np

NARROWEST, WIDEST = 1.0, 20.0  # sigma in samples: an impulse and a plain sinusoid are Gabor functions only in name
REFINEMENTS = 6
SHRINK = 0.5


def fit_gabor(kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best Gabor functions of kernels [N, T]: share of each kernel's energy left over [N], and their sigma [N]."""
    residual, parameters = nearest_gabor(kernels)
    return residual, parameters[:, 1]


def nearest_gabor(kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best Gabor functions of kernels [N, T]: share of each kernel's energy left over [N], and mu, sigma, f [N, 3].

    An all-zero kernel has a residual of 1. mu and sigma are in samples, the latter within NARROWEST .. WIDEST, f in
    cycles per sample.
    """
    n, taps = kernels.shape
    energy = (kernels.astype(np.float64) ** 2).sum(1)
    unit = kernels / np.sqrt(np.where(energy > 0, energy, 1))[:, None]
    grid, step = _grid(taps)
    explained = (np.einsum("gct,nt->ngc", _basis(grid, taps), unit) ** 2).sum(2)
    best = grid[explained.argmax(1)]
    share = explained.max(1)
    around = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.float64)
    for _ in range(REFINEMENTS):
        step = step * SHRINK
        tried = _inside(best[:, None] + around * step, taps)
        basis = _basis(tried.reshape(-1, 3), taps).reshape(n, len(around), 2, taps)
        explained = (np.einsum("ngct,nt->ngc", basis, unit) ** 2).sum(2)
        best, share = tried[np.arange(n), explained.argmax(1)], explained.max(1)
    parameters = np.stack([best[:, 0], np.exp(best[:, 1]), best[:, 2]], axis=1)
    return 1 - np.where(energy > 0, share, 0), parameters


def _grid(taps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (mu, log sigma, f) [G, 3], and their spacing [3]; mu and f in samples and cycles per sample."""
    mu = np.linspace(0, taps - 1, taps)
    width = np.linspace(np.log(NARROWEST), np.log(WIDEST), 12)
    rate = np.linspace(0, 0.5, 2 * taps + 1)
    points = np.stack(np.meshgrid(mu, width, rate, indexing="ij"), axis=-1).reshape(-1, 3)
    return points, np.array([mu[1] - mu[0], width[1] - width[0], rate[1] - rate[0]])


def _inside(points: np.ndarray, taps: int) -> np.ndarray:
    low, high = (0, np.log(NARROWEST), 0), (taps - 1, np.log(WIDEST), 0.5)
    return points.clip(low, high)


def _basis(points: np.ndarray, taps: int) -> np.ndarray:
    """Two orthonormal vectors that span the Gabor functions at each point [G, 3]: [G, 2, T], zero where one is left."""
    mu, width, rate = (points[:, i, None] for i in range(3))
    t = np.arange(taps)
    envelope = np.exp(-((t - mu) ** 2) / (2 * np.exp(2 * width)))
    turn = 2 * np.pi * rate * (t - mu)
    even, odd = envelope * np.cos(turn), envelope * np.sin(turn)
    even /= np.linalg.norm(even, axis=1, keepdims=True)
    odd = odd - (odd * even).sum(1, keepdims=True) * even
    norm = np.linalg.norm(odd, axis=1, keepdims=True)
    return np.stack([even, np.where(norm > 1e-6, odd / np.maximum(norm, 1e-6), 0)], axis=1)
