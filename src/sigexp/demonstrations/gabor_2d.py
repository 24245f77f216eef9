"""Gabor functions of two variables: a grating under a Gaussian, which answers to one frequency and one direction.

J. G. Daugman, 'Uncertainty relation for resolution in space, spatial frequency, and orientation', 1985. The axis x runs
to the right and y down, as in the pictures; a frequency is a vector, in cycles per unit or per pixel.
"""

from typing import Any

import numpy as np
import scipy.signal

from sigexp.demonstrations.drawing import grey_photograph, panels, pixel_grid, png
from sigexp.demonstrations.page import Page, Picture, table
from sigexp.signal.spectra import gabor_2d

EXTENT, SIDE = 10.0, 200  # the lecture's axes: -10..10 in 200 steps
LECTURE: tuple[dict[str, Any], ...] = (
    {}, {"mu": (3.0, 5.0)}, {"mu": (5.0, -2.0)},
    {"frequency": (0.2, 0.2)}, {"frequency": (0.7, 0.7)}, {"frequency": (1.0, 1.0)},
    {}, {"phase": 0.25}, {"phase": 0.5},
)  # fmt: skip
HALF = 0.5  # the lecture's sine has this factor in front of frequency and phase
# Of stripes, and the vector (rows, columns) across them.
DIRECTIONS = {"upright": (0.0, 1.0), "rising": (1.0, 1.0), "level": (1.0, 0.0), "falling": (1.0, -1.0)}
RATES = (0.0625, 0.125, 0.25)  # cycles per pixel, an octave apart
TAPS = 33


def lecture_filter(change: dict[str, Any], factor: float = HALF) -> np.ndarray:
    """One of the lecture's filters: [SIDE, SIDE]; with a factor of 1 what its labels say."""
    at = np.arange(SIDE) * 2 * EXTENT / SIDE - EXTENT
    setting = {"mu": (0.0, 0.0), "frequency": (0.7, 0.7), "phase": 0.0, **change}
    rate = (factor * setting["frequency"][0], factor * setting["frequency"][1])
    return gabor_2d(at[:, None], at, mu=setting["mu"], sigma=1.0, frequency=rate, phase=factor * setting["phase"])


def peak(kernel: np.ndarray, step: float) -> float:
    """Length of the frequency vector at which a kernel's response is largest, in cycles per unit."""
    length = 2048
    gain = np.abs(np.fft.fft2(kernel, (length, length)))
    row, column = np.unravel_index(gain.argmax(), gain.shape)
    rates = np.fft.fftfreq(length, step)
    return float(np.hypot(rates[row], rates[column]))


def singular_values(kernel: np.ndarray) -> np.ndarray:
    """Of the largest: [N]."""
    values = np.linalg.svd(kernel, compute_uv=False)
    return values / values[0]


def pair(direction: tuple[float, float], rate: float) -> np.ndarray:
    """Two filters a quarter turn apart, [2, TAPS, TAPS], an octave or so wide, without response to a constant."""
    at = np.arange(TAPS) - TAPS // 2
    across = np.array(direction) / np.hypot(*direction) * rate
    frequency = (float(across[0]), float(across[1]))
    both = [gabor_2d(at[:, None], at, sigma=0.5 / rate, frequency=frequency, phase=quarter) for quarter in (0.0, 0.25)]
    envelope = np.exp(-(at[:, None] ** 2 + at**2) * (rate / 0.5) ** 2 / 2)
    balanced = [kernel - envelope * kernel.sum() / envelope.sum() for kernel in both]
    return np.stack([kernel / np.linalg.norm(kernel) for kernel in balanced])


def energy(picture: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Sum of squared outputs of a pair of filters, where the whole filter lies inside: [H', W']."""
    return sum(scipy.signal.fftconvolve(picture, kernel, mode="valid") ** 2 for kernel in filters)


def stripes(direction: tuple[float, float], rate: float, side: int = 96) -> np.ndarray:
    """A grating across a direction: [side, side]."""
    at = np.arange(side)
    row, column = np.array(direction) / np.hypot(*direction) * rate
    return np.sin(2 * np.pi * (row * at[:, None] + column * at) + 0.7)


def page() -> Page:
    step = 2 * EXTENT / SIDE
    rows: list[list[str]] = []
    numbers: dict[str, float] = {}
    for rate in (0.2, 0.7, 1.0):
        found = {factor: peak(lecture_filter({"frequency": (rate, rate)}, factor), step) for factor in (1.0, HALF)}
        label = np.hypot(rate, rate)
        numbers |= {f"peak_{rate:g}": found[HALF], f"peak_{rate:g}_without_half": found[1.0]}
        rows.append([f"({rate:g}, {rate:g})", f"{label:.3f}", f"{found[1.0]:.3f}", f"{found[HALF]:.3f}"])
    values = singular_values(lecture_filter({}))
    numbers |= {"singular_2": float(values[1]), "singular_3": float(values[2])}
    told, bricks = confusion(), grey_photograph("brick.png")
    numbers |= {"least_own": min(told[i][i] for i in range(4))}
    numbers |= {"most_other": max(told[i][j] for i in range(4) for j in range(4) if i != j)}
    shares = brick_shares(bricks)
    numbers |= {f"bricks_{name}": share for name, share in shares.items()}
    header = ["lecture's frequency", "its length", "largest response at, by the formula", "by the lecture's code"]
    names, rates = list(DIRECTIONS), ", ".join(map(str, RATES))
    return Page(
        title="Gabor functions of two variables",
        parts=[
            Picture(
                "lecture",
                lecture_picture(),
                "the lecture's nine filters as its code draws them; vectors are (down, right)",
            ),
            table(header, rows),
            f"Singular values of such a filter, of the largest: 1, {values[1]:.3f}, then {values[2]:.0e}.",
            Picture("bank", bank_picture(), f"filters of {rates} cycles per pixel, and the responses of the bank"),
            table(
                [f"stripes, {RATES[1]:g} cycles per pixel", *(f"energy of {name}" for name in names)],
                [[names[i], *(f"{100 * share:.1f} %" for share in told[i])] for i in range(4)],
            ),
            Picture("bricks", bricks_picture(bricks), "bricks, and the energy of four directions in them"),
            f"Mean energy in the bricks, of all four directions: {spelled(shares)}.",
        ],
        numbers=numbers,
    )


def spelled(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def confusion() -> list[list[float]]:
    """Mean energy of every direction (inner) on stripes of every direction, over the sum of all four."""
    found = []
    for seen in DIRECTIONS.values():
        grating = stripes(seen, RATES[1])
        means = [float(energy(grating, pair(own, RATES[1])).mean()) for own in DIRECTIONS.values()]
        found.append([mean / sum(means) for mean in means])
    return found


def brick_shares(bricks: np.ndarray) -> dict[str, float]:
    means = {name: float(energy(bricks, pair(own, RATES[1])).mean()) for name, own in DIRECTIONS.items()}
    return {name: mean / sum(means.values()) for name, mean in means.items()}


def lecture_picture() -> bytes:
    kernels = [lecture_filter(change) for change in LECTURE]
    titles = [
        ", ".join(f"{name} {value}" for name, value in change.items()) or "frequency (0.7, 0.7)" for change in LECTURE
    ]
    part = slice(SIDE // 10, 9 * SIDE // 10)
    rows = [[kernel[part, part] for kernel in kernels[i : i + 3]] for i in (0, 3, 6)]
    return pixel_grid(rows, [titles[i : i + 3] for i in (0, 3, 6)], 4 * SIDE // 5, cmap="RdBu_r", vmin=-1, vmax=1)


def bank_picture() -> bytes:
    """The filters by direction and rate, and the half-height contours of the responses in the frequency plane."""
    figure, axes = panels(1, 2, width=3.6, height=3.3)
    bank = [[pair(own, rate) for own in DIRECTIONS.values()] for rate in RATES]
    gap = 3
    whole = np.full((len(RATES) * (TAPS + gap) - gap, len(DIRECTIONS) * (TAPS + gap) - gap), np.nan)
    for i, row in enumerate(bank):
        for j, filters in enumerate(row):
            top, left = i * (TAPS + gap), j * (TAPS + gap)
            whole[top : top + TAPS, left : left + TAPS] = filters[1] / np.abs(filters[1]).max()
    axes[0].imshow(whole, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes[0].set_axis_off()
    axes[0].set_title(", ".join(DIRECTIONS))
    rates = np.fft.fftshift(np.fft.fftfreq(256))
    for i, row in enumerate(bank):
        for filters in row:
            gain = np.fft.fftshift(np.sqrt((np.abs(np.fft.fft2(filters, (256, 256))) ** 2).sum(0)))
            axes[1].contour(rates, rates, gain, levels=[gain.max() / 2], colors=[f"C{i}"], linewidths=1)
    axes[1].set_aspect("equal")
    axes[1].invert_yaxis()
    axes[1].set_xlabel("cycles per pixel along a row")
    axes[1].set_ylabel("down a column")
    axes[1].set_title("where the responses are half as large as at most")
    return png(figure)


def bricks_picture(bricks: np.ndarray) -> bytes:
    side, margin = 160, TAPS // 2
    part = slice(160, 160 + side)
    maps = [energy(bricks, pair(own, RATES[1])) for own in DIRECTIONS.values()]
    most = max(float(found.max()) for found in maps)
    inside = slice(part.start - margin, part.stop - margin)  # of what has lost a margin
    shown = [np.sqrt(found[inside, inside] / most) for found in maps]
    return pixel_grid([[bricks[part, part], *shown]], [["bricks", *DIRECTIONS]], side, vmin=0, vmax=1)
