"""The matrix of a fully connected layer as a picture: a filter is a matrix with bands and tied weights.

For a separable filter of images, y = A x B' row by row, the matrix from pixels to pixels is the Kronecker product of A
and B, whose entries depend on the distance of two pixels alone but near the border. Fitted to fewer examples than
there are pixels, the matrix of least norm is the true one times the projection on the span of the examples.

Images are smaller than the experiment's 64 x 64, whose matrix of 4096 x 4096 takes minutes.
"""

import numpy as np

from sigexp.datasets.gaussian import gaussian_impulses
from sigexp.demonstrations.drawing import panels, png
from sigexp.demonstrations.page import Page, Picture, table
from sigexp.signal.gaussian import gaussian_matrix
from sigexp.signal.linear_map import fit_matrix
from sigexp.signal.quality import mse

SIDE, SIGMA, DENSITY = 32, (4.0, 1.0), 0.02
EXAMPLES = (256, 512, 1024, 2048, 4096)
SHOWN = (512, 4096)
TEST = 500
PART = slice(200, 400)  # rows and columns that the lecture enlarged
SMALL = 1e-3  # of the largest weight: what is less is no band


def true_matrix() -> np.ndarray:
    """Every output pixel by every input pixel, row by row: [SIDE^2, SIDE^2] float64."""
    down, across = (gaussian_matrix(SIDE, sigma).astype(np.float64) for sigma in SIGMA)
    return np.kron(down, across)


def band_share(matrix: np.ndarray) -> float:
    """Share of the weights that are at least SMALL of the largest."""
    return float((np.abs(matrix) >= SMALL * np.abs(matrix).max()).mean())


def tied(matrix: np.ndarray) -> float:
    """Share of the matrix's energy in the nearest matrix whose weights depend on the distance of two pixels alone."""
    four = matrix.reshape(SIDE, SIDE, SIDE, SIDE)
    at = np.arange(SIDE)
    rows, columns = at[:, None] - at + SIDE - 1, at[:, None] - at + SIDE - 1
    distance = (rows[:, None, :, None] * (2 * SIDE - 1) + columns[None, :, None, :]).ravel()
    count = np.bincount(distance, minlength=(2 * SIDE - 1) ** 2)
    total = np.bincount(distance, four.ravel(), minlength=(2 * SIDE - 1) ** 2)
    return float((total**2 / np.maximum(count, 1)).sum() / (matrix**2).sum())


def page() -> Page:
    problem = gaussian_impulses(size=max(EXAMPLES), test_size=TEST, image_size=SIDE, density=DENSITY, sigma=SIGMA)
    data, test = problem.examples("train"), problem.examples("test")
    true = true_matrix()
    fitted, rows = {}, []
    numbers = {"band": band_share(true), "tied": tied(true), "energy": float(test.targets.var())}
    for count in EXAMPLES:
        weight, bias = fit_matrix([(data.inputs[:count].flatten(1), data.targets[:count].flatten(1))])
        fitted[count] = weight.numpy()
        outputs = test.inputs.flatten(1).double() @ weight.T + bias
        error = float(mse(outputs, test.targets.flatten(1).double()).mean())
        off = float(np.linalg.norm(fitted[count] - true) / np.linalg.norm(true))
        numbers |= {f"mse_{count}": error, f"off_{count}": off, f"band_{count}": band_share(fitted[count])}
        numbers[f"tied_{count}"] = tied(fitted[count])
        rows.append([f"{count:,}", f"{error:.1e}", f"{100 * off:.2g} %", *described(fitted[count])])
    rows.append(["the true matrix", "", "", *described(true)])
    weights = SIDE**4
    shown = {"true": true, **{f"{count:,} examples": fitted[count] for count in SHOWN}}
    return Page(
        title="The matrix of a fully connected layer",
        parts=[
            f"Images of {SIDE} x {SIDE} pixels, so {weights:,} weights; the experiment `gaussian` has 64 x 64 and "
            "16,777,216.",
            Picture("matrix", matrix_picture(shown), "the whole matrix; rows and columns 200 to 399; one output pixel"),
            table(
                ["examples", "test mse", "distance to the true matrix", "weights in bands", "energy in tied weights"],
                rows,
            ),
            f"The variance of the targets is {numbers['energy']:.1e}. In bands: at least {SMALL:g} of the largest.",
        ],
        numbers=numbers,
    )


def described(matrix: np.ndarray) -> list[str]:
    return [f"{100 * band_share(matrix):.1f} %", f"{100 * tied(matrix):.1f} %"]


def matrix_picture(shown: dict[str, np.ndarray]) -> bytes:
    """A column for each matrix: all of it, the part that the lecture enlarged, and what one output pixel sees."""
    figure, axes = panels(3, len(shown), width=2.2, height=2.2)
    most = float(next(iter(shown.values())).max())
    pixel = (SIDE // 2) * SIDE + SIDE // 2
    for column, (name, matrix) in enumerate(shown.items()):
        views = (matrix, matrix[PART, PART], matrix[pixel].reshape(SIDE, SIDE))
        for row, view in enumerate(views):
            axis = axes[row * len(shown) + column]
            limit = most / 4 if row == 0 else most / 2  # small weights are many in the whole matrix
            smooth = "antialiased" if row == 0 else "nearest"
            axis.imshow(view, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation=smooth)
            axis.set_axis_off()
        axes[column].set_title(name)
    return png(figure)
