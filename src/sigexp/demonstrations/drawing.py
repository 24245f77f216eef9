"""Pictures in which every pixel of an array is a whole number of pixels of the PNG, and the photographs in them.

A picture that is scaled by any other factor has aliases of its own.
"""

import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sigexp.report import figures
from sigexp.report.figures import DPI, PIXELS

TITLE, GAP = 18, 8  # pixels


def grey_photograph(name: str) -> np.ndarray:
    """A grey photograph that ships inside scikit-image: [H, W] float64 in 0..1."""
    with PIL.Image.open(Path(str(files("skimage") / "data" / name))) as image:
        return np.asarray(image.convert("L"), dtype=np.float64) / 255


def pixel_grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]], side: int, **style: Any) -> bytes:
    """Square images, [N, N] or [N, N, 3], each `side` pixels wide under its title, as PNG; N divides `side`.

    style: for `imshow`, beside no interpolation.
    """
    assert all(side % len(image) == 0 for row in rows for image in row)
    width = max(map(len, rows)) * (side + GAP) + GAP
    height = len(rows) * (side + TITLE + GAP)
    figure = Figure(figsize=(width / DPI, height / DPI))
    for i, (row, names) in enumerate(zip(rows, titles, strict=True)):
        for j, (image, name) in enumerate(zip(row, names, strict=True)):
            left, bottom = GAP + j * (side + GAP), height - (i + 1) * (side + TITLE + GAP) + GAP
            axis = figure.add_axes((left / width, bottom / height, side / width, side / height))
            axis.imshow(image, **{"cmap": "gray", **PIXELS, **style})
            axis.set_axis_off()
            axis.set_title(name, pad=4)
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as a small file: without transparency, grey or in 256 colours."""
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(figures.png(figure))) as image:
        flat = image.convert("RGB")
        pixels = np.asarray(flat)
        grey = bool((pixels == pixels[:, :, :1]).all())
        few = flat.convert("L") if grey else flat.quantize(256, dither=PIL.Image.Dither.NONE)
        few.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def panels(rows: int, columns: int, *, width: float = 3.2, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure of axes, row by row; width and height of one in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
