"""The matrix that the lecture's learned weights were held against, CIE RGB to XYZ, and the one behind its targets.

scikit-image's `rgb2xyz` undoes the sRGB curve and then applies the matrix of the sRGB primaries and their white D65
(IEC 61966-2-1); the other matrix belongs to the monochromatic primaries of 1931 and the white E of equal energy.
Colours are compared by CIEDE2000, where 1 is about what the eye tells apart.
"""

from collections.abc import Callable

import numpy as np
import skimage.color
import torch
from torch import Tensor

from sigexp.data.images import image_source
from sigexp.demonstrations.drawing import panels, pixel_grid, png
from sigexp.demonstrations.page import Page, Picture, table
from sigexp.signal.color import CIE_RGB_TO_XYZ, SRGB_TO_XYZ, rgb_to_xyz, srgb_to_linear

SRGB, CIE = np.array(SRGB_TO_XYZ), np.array(CIE_RGB_TO_XYZ)
# What the lecture printed after training, without the offset that went with it.
LEARNED = np.array([[0.4338, 0.2210, 0.2749], [0.2466, 0.5524, 0.1801], [-0.0104, 0.0857, 0.9661]])
SIDE = 200  # pixels of the photograph's part that is shown, in rows 60.. and columns 110..


def photographs(split: str, step: int = 1) -> list[np.ndarray]:
    """Every `step`-th pixel of the photographs of a split, sRGB [H, W, 3] in 0..1."""
    return [image[::step, ::step] / 255.0 for image in image_source("photographs").images(split)]


def pixels(images: list[np.ndarray]) -> np.ndarray:
    """[N, 3]."""
    return np.concatenate([image.reshape(-1, 3) for image in images])


def xyz(rgb: np.ndarray) -> np.ndarray:
    """The experiment's targets of sRGB pixels [N, 3]: [N, 3]."""
    return as_planes(rgb_to_xyz, rgb)


def linear(rgb: np.ndarray) -> np.ndarray:
    return as_planes(srgb_to_linear, rgb)


def as_planes(function: Callable[[Tensor], Tensor], rgb: np.ndarray) -> np.ndarray:
    """A function of planes [3, H, W] of pixels [N, 3]: [N, 3]."""
    planes = function(torch.from_numpy(rgb.T.copy())[:, :, None])
    return planes[:, :, 0].numpy().T


def fitted(rgb: np.ndarray, targets: np.ndarray, matrix: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Matrix [3, 3] and offset [3] of least squared error; of a given matrix the best offset."""
    if matrix is not None:
        return matrix, (targets - rgb @ matrix.T).mean(0)
    solution = np.linalg.lstsq(np.concatenate([rgb, np.ones((len(rgb), 1))], axis=1), targets, rcond=None)[0]
    return solution[:3].T, solution[3]


def difference(found: np.ndarray, targets: np.ndarray) -> float:
    """Mean CIEDE2000 between XYZ [N, 3]; negative values, which no light has, count as 0."""
    one, other = (skimage.color.xyz2lab(part.clip(0)) for part in (found, targets))
    return float(skimage.color.deltaE_ciede2000(one, other).mean())


def page() -> Page:
    images, trained = photographs("test"), pixels(photographs("train", step=8))
    rgb = pixels(images)
    targets, light = xyz(rgb), linear(rgb)
    best, best_offset = fitted(trained, xyz(trained))
    _, learned_offset = fitted(rgb, targets, LEARNED)
    predictions = {
        "the curve undone, sRGB matrix": light @ SRGB.T,
        "the curve undone, CIE RGB matrix": light @ CIE.T,
        "least squares of pixels as they are, fitted to the training photographs": rgb @ best.T + best_offset,
        "the lecture's weights, with the best offset": rgb @ LEARNED.T + learned_offset,
        "sRGB matrix of pixels as they are": rgb @ SRGB.T,
        "CIE RGB matrix of pixels as they are": rgb @ CIE.T,
    }
    some = np.random.default_rng(0).choice(len(rgb), 20_000, replace=False)
    rows: list[list[str]] = []
    numbers: dict[str, float] = {}
    for name, found in predictions.items():
        error, seen = float(np.square(found - targets).mean()), difference(found[some], targets[some])
        numbers |= {f"{name}: mse": error, f"{name}: CIEDE2000": seen}
        rows.append([name, "0 (rounding)" if error < 1e-12 else f"{error:.2e}", f"{seen:.2f}"])
    for name, matrix in (("CIE", CIE), ("sRGB", SRGB), ("best", best)):
        numbers[f"learned_to_{name}"] = float(np.linalg.norm(LEARNED - matrix))
    numbers["CIE_to_sRGB"] = float(np.linalg.norm(CIE - SRGB))
    whites = {"sRGB": SRGB.sum(1), "CIE RGB": CIE.sum(1), "the lecture's weights": LEARNED.sum(1)}
    return Page(
        title="The matrix it was compared with by mistake",
        parts=[
            Picture("matrices", matrices_picture(best), "four matrices from RGB to XYZ"),
            table(["of the test photographs", "mse in XYZ", "mean CIEDE2000"], rows),
            "Distance of the lecture's weights (Frobenius norm) to the CIE RGB matrix "
            f"{numbers['learned_to_CIE']:.2f}, to the sRGB matrix {numbers['learned_to_sRGB']:.2f}, to the least "
            f"squares of our training photographs {numbers['learned_to_best']:.2f}; the two textbook matrices are "
            f"{numbers['CIE_to_sRGB']:.2f} apart.",
            table(
                ["matrix", "XYZ of white, R = G = B = 1"],
                [[name, ", ".join(f"{value:.3f}" for value in white)] for name, white in whites.items()],
            ),
            Picture(
                "photograph", photograph_picture(images[0]), "a photograph, and its colours through wrong matrices"
            ),
        ],
        numbers=numbers,
    )


def matrices_picture(best: np.ndarray) -> bytes:
    shown = {"CIE RGB": CIE, "sRGB": SRGB, "the lecture's weights": LEARNED, "least squares, ours": best}
    figure, axes = panels(1, 4, width=2.1, height=2.4)
    for axis, (name, matrix) in zip(axes, shown.items(), strict=True):
        axis.imshow(matrix, cmap="RdBu_r", vmin=-1.2, vmax=1.2)
        for (i, j), value in np.ndenumerate(matrix):
            ink = "white" if abs(value) > 0.8 else "black"
            axis.text(j, i, f"{value:.3f}", ha="center", va="center", color=ink)
        axis.set_xticks(range(3), "RGB")
        axis.set_yticks(range(3), "XYZ")
        axis.set_title(name)
    return png(figure)


def photograph_picture(image: np.ndarray) -> bytes:
    """XYZ made by each matrix, shown on a screen that takes it for what it says."""
    part = image[60 : 60 + SIDE, 110 : 110 + SIDE]
    flat = pixels([part])
    shown = {
        "photograph": xyz(flat),
        "CIE RGB matrix, curve undone": linear(flat) @ CIE.T,
        "CIE RGB matrix, pixels as they are": flat @ CIE.T,
    }
    views = [skimage.color.xyz2rgb(found.reshape(part.shape)).clip(0, 1) for found in shown.values()]
    return pixel_grid([views], [list(shown)], SIDE)
