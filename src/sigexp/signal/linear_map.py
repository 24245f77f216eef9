"""The best matrix for given examples, in closed form, and its learning curve.

With more examples than inputs by the normal equations, else by the Gram matrix of the examples.

Axes: N examples, K inputs, D outputs.
"""

from collections.abc import Iterable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from sigexp.signal.least_squares import PRECISE_FLOPS, solve

BY_CHOLESKY = 1000  # equations from which the factorisation that is much quicker, and less forgiving, is taken


def matrix_flops(n: int, features: int, outputs: int) -> float:
    """Arithmetic of `fit_matrix` on n examples."""
    small = min(n, features + 1)
    return float(n) * features * (small + 2.0 * outputs) + small**3 / 3 + 2.0 * small**2 * outputs


def fit_matrix(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Matrix [D, K] and bias [D], float64, with the least squared error of inputs [N, K] to targets [N, D].

    Batches are taken together. Of fewer examples than inputs many matrices make none; the one of least norm is
    returned, its bias counted in the norm.
    """
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    precise = matrix_flops(len(inputs), inputs.shape[1], targets.shape[1]) <= PRECISE_FLOPS
    x, y = (part.to(torch.float64 if precise else torch.float32).numpy() for part in (inputs, targets))
    x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
    if len(x) <= x.shape[1]:
        solution = x.T.astype(np.float64) @ positive_solve(_product(x.T), y.astype(np.float64))
    else:
        right = sum((a.T @ b).astype(np.float64) for a, b in zip(*(np.array_split(p, 10) for p in (x, y)), strict=True))
        solution = positive_solve(_product(x), right)
    return torch.from_numpy(np.ascontiguousarray(solution[:-1].T)), torch.from_numpy(solution[-1].copy())


def _product(x: np.ndarray) -> np.ndarray:
    """x' x in float64, the products in x's own type. NumPy computes half of it only, as it is symmetric."""
    return sum((part.T @ part).astype(np.float64) for part in np.array_split(x, 10))  # type: ignore[return-value]


def positive_solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`solve` by Cholesky where that is much quicker; a ridge is added where rounding leaves the matrix indefinite."""
    if len(matrix) < BY_CHOLESKY:
        return solve(matrix, right)
    factor = cholesky(matrix)
    return scipy.linalg.cho_solve((factor, True), right)


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """The lower factor of a semidefinite matrix plus the ridge it needs: 1e-12 of its mean diagonal, or more."""
    ridge = 1e-12 * float(np.trace(matrix)) / len(matrix)
    for _ in range(6):
        try:
            return np.linalg.cholesky(matrix + ridge * np.eye(len(matrix)))
        except np.linalg.LinAlgError:
            ridge *= 100
    raise ValueError("the matrix is not positive semidefinite")


def learning_curve(
    inputs: Tensor, targets: Tensor, test_inputs: Tensor, test_targets: Tensor, step: int = 32
) -> tuple[list[int], list[float]]:
    """How the mean squared error of `fit_matrix` on test data falls with the examples it is fitted to.

    Inputs [N, K], targets [N, D], test data likewise. Numbers of examples (every `step`) and errors.
    The Cholesky factor L of the examples' Gram matrix holds those of all its leading parts. With B = L^-1 X T' of the
    test inputs T and Z = L^-1 Y, the predictions of the first n examples are the sum of b_i z_i' over i < n.
    """
    x, y, t, expected = (part.double().numpy() for part in (inputs, targets, test_inputs, test_targets))
    x, t = (np.concatenate([part, np.ones_like(part[:, :1])], axis=1) for part in (x, t))
    factor = cholesky(x @ x.T)
    solved = scipy.linalg.solve_triangular(factor, np.concatenate([x @ t.T, y], axis=1), lower=True)
    b, z = solved[:, : len(t)], solved[:, len(t) :]
    rest, counts, errors = expected.copy(), [], []
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        rest -= b[part].T @ z[part]
        counts.append(min(start + step, len(x)))
        errors.append(float(np.square(rest).mean()))
    return counts, errors
