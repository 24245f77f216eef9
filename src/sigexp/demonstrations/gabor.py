"""Gabor functions of one variable: a sinusoid under a Gaussian, local in time and in frequency.

D. Gabor, 'Theory of communication', 1946. With g(x) = exp(-(x - mu)^2 / 2 sigma^2) sin(2 pi (f x + phase)) the Fourier
transform consists of two Gaussians of deviation 1 / (2 pi sigma) around f and -f. The deviations of |g|^2 and |G|^2 of
a complex one have the least possible product, 1 / (4 pi).
"""

import numpy as np

from sigexp.demonstrations.drawing import panels, png
from sigexp.demonstrations.page import Page, Picture, table
from sigexp.signal.gabor_fit import nearest_gabor
from sigexp.signal.spectra import gabor

X = np.linspace(-10, 10, 1000, endpoint=False)  # the lecture's axis
LECTURE: tuple[dict[str, float], ...] = (
    {},
    {"mu": 1.0},
    {"mu": 2.0},
    {"frequency": 0.5},
    {"frequency": 1.0},
    {"frequency": 2.0},
)
DEFAULT = {"mu": 0.0, "sigma": 1.0, "frequency": 1.0}
TAPS = 31  # of the sampled filters, as many as in the experiment `spectrum`
NOISE = 0.05  # deviation, where the filters have a height of 1
BANK = 8  # filters


def spectrum(kernel: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [F] in cycles per unit and the magnitude [F] of a kernel's Fourier transform, `step` units apart."""
    length = 2**14  # zeros behind it make the frequencies dense
    return np.fft.rfftfreq(length, step), np.abs(np.fft.rfft(kernel, length)) * step


def peak_and_width(frequency: np.ndarray, magnitude: np.ndarray) -> tuple[float, float]:
    """Frequency of the largest magnitude, and the width of where it is at least half as large."""
    above = frequency[magnitude >= magnitude.max() / 2]
    return float(frequency[magnitude.argmax()]), float(above.max() - above.min())


def uncertainty(sigma: float, frequency: float) -> float:
    """Deviation in x times deviation in frequency of the energy of a complex Gabor function, measured on a grid."""
    x = np.arange(-4096, 4096) * sigma / 64
    values = np.exp(-(x**2) / (2 * sigma**2) + 2j * np.pi * frequency * x)
    power = np.abs(np.fft.fft(values)) ** 2
    return deviation(x, np.abs(values) ** 2) * deviation(np.fft.fftfreq(len(x), x[1] - x[0]), power)


def deviation(at: np.ndarray, weight: np.ndarray) -> float:
    mean = (at * weight).sum() / weight.sum()
    return float(np.sqrt(((at - mean) ** 2 * weight).sum() / weight.sum()))


def fixed_width() -> np.ndarray:
    """Filters as those of a windowed Fourier transform, all equally wide: [BANK, TAPS]."""
    rates = 0.5 * (np.arange(BANK) + 0.5) / BANK
    return np.stack([gabor(TIME, mu=TAPS // 2, sigma=4.0, frequency=f, phase=-f * (TAPS // 2)) for f in rates])


def octaves() -> np.ndarray:
    """Filters half an octave apart, their width a fixed number of periods: [BANK, 2 TAPS + 1]."""
    time, middle = np.arange(2 * TAPS + 1.0), TAPS
    rates = 0.4 * 2.0 ** (-0.5 * np.arange(BANK))
    return np.stack([gabor(time, mu=middle, sigma=0.5 / f, frequency=f, phase=-f * middle) for f in rates])


TIME = np.arange(float(TAPS))
KNOWN = {"mu": (15.0, 12.3, 17.6), "sigma": (4.0, 6.0, 2.5), "frequency": (0.1, 0.237, 0.41)}  # of filters to be found


def recovered() -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Known parameters [3, 3], those found in noise, the energy left over [3], and what white noise leaves."""
    rng = np.random.default_rng(0)
    known = np.stack([np.array(KNOWN[name]) for name in ("mu", "sigma", "frequency")], axis=1)
    clean = gabor(TIME, mu=known[:, :1], sigma=known[:, 1:2], frequency=known[:, 2:], phase=0.1)
    residual, found = nearest_gabor(clean + NOISE * rng.standard_normal(clean.shape))
    white, _ = nearest_gabor(rng.standard_normal((256, TAPS)))
    return known, found, residual, float(np.median(white))


def phase_ripple(frequency: float = 0.2, sigma: float = 4.0) -> tuple[float, float]:
    """How the response to a sinusoid depends on its phase: (largest - least) / largest.

    Of one filter's squared output, and of the sum of squares over a filter and its quarter-turn sister.
    """
    middle = TAPS // 2
    pair = np.stack(
        [
            gabor(TIME, mu=middle, sigma=sigma, frequency=frequency, phase=quarter - frequency * middle)
            for quarter in (0.0, 0.25)
        ]
    )
    phases = np.linspace(0, 1, 200)[:, None]
    squares = (np.sin(2 * np.pi * (frequency * TIME + phases)) @ pair.T) ** 2
    one, both = squares[:, 0], squares.sum(1)
    return float(np.ptp(one) / one.max()), float(np.ptp(both) / both.max())


def page() -> Page:
    rows: list[list[str]] = []
    numbers: dict[str, float] = {}
    for i, change in enumerate(LECTURE):
        setting = {**DEFAULT, **change}
        peak, width = peak_and_width(*spectrum(gabor(X, **setting), X[1] - X[0]))
        numbers |= {f"peak_{i}": peak, f"width_{i}": width}
        rows.append([f"{value:g}" for value in setting.values()] + [f"{peak:.3f}", f"{width:.3f}"])
    known, found, residual, white = recovered()
    ripple_one, ripple_pair = phase_ripple()
    product = uncertainty(1.0, 1.0)
    numbers |= {"uncertainty": product, "ripple_one": ripple_one, "ripple_pair": ripple_pair, "white_residual": white}
    fits = []
    for i, (true, fitted) in enumerate(zip(known, found, strict=True)):
        numbers |= {f"{name}_error_{i}": abs(fitted[j] - true[j]) for j, name in enumerate(KNOWN)}
        numbers[f"residual_{i}"] = float(residual[i])
        fits.append([*(f"{t:g} / {f:.3g}" for t, f in zip(true, fitted, strict=True)), f"{residual[i]:.3f}"])
    return Page(
        title="Gabor functions of one variable",
        parts=[
            Picture("lecture", lecture_picture(), "the lecture's six filters and their frequency responses"),
            table(["mu", "sigma", "f", "largest response at", "its width at half height"], rows),
            f"The product of both deviations is {product:.4f}; 1 / (4 pi) is {1 / (4 * np.pi):.4f}.",
            Picture("banks", banks_picture(), "frequency responses of a bank of equal widths and of one in octaves"),
            f"The squared output of one filter changes by {100 * ripple_one:.0f} % with the phase of a sinusoid; with "
            f"its sister a quarter turn later added, by {100 * ripple_pair:.1f} %.",
            table(["mu: true / found", "sigma", "f", "energy left"], fits),
            f"Fitted to filters of {TAPS} taps and height 1 in noise of deviation {NOISE}, which no fit can explain. "
            f"Of white noise alone the nearest Gabor function leaves {white:.2f} (median of 256).",
        ],
        numbers=numbers,
    )


def lecture_picture() -> bytes:
    figure, axes = panels(4, 3, height=1.3)
    for i, change in enumerate(LECTURE):
        setting = {**DEFAULT, **change}
        column, row = i % 3, i // 3
        above, below = axes[6 * row + column], axes[6 * row + column + 3]
        kernel = gabor(X, **setting)
        above.plot(X, kernel, linewidth=1)
        above.set_title(", ".join(f"{name} {value:g}" for name, value in setting.items()))
        above.set_xlim(-6, 6)
        frequency, magnitude = spectrum(kernel, X[1] - X[0])
        below.plot(frequency, magnitude, color="C1", linewidth=1)
        below.set_xlim(0, 3)
    axes[9].set_xlabel("cycles per unit of x")
    return png(figure)


def banks_picture() -> bytes:
    figure, axes = panels(2, 2, width=4.0, height=2.2)
    for row, (name, bank) in enumerate({"equal widths": fixed_width(), "half octaves": octaves()}.items()):
        taps, answers = axes[2 * row], axes[2 * row + 1]
        for i, kernel in enumerate(bank[1::2]):
            taps.plot(np.arange(len(kernel)) - len(kernel) // 2, kernel - 2.2 * i, ".-", linewidth=0.7, markersize=3)
        for kernel in bank:
            frequency, magnitude = spectrum(kernel, 1.0)
            answers.plot(frequency, magnitude / magnitude.max(), linewidth=1)
        taps.set_title(f"{name}: every second of {len(bank)} filters")
        taps.set_yticks([])
        answers.set_title("all responses, of their largest")
    axes[2].set_xlabel("sample")
    axes[1].set_xlabel("cycles per sample")
    axes[3].set_xscale("log", base=2)
    axes[3].set_xlim(0.02, 0.5)
    axes[3].set_xlabel("cycles per sample, logarithmic")
    return png(figure)
