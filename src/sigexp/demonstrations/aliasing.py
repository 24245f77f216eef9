"""Aliasing: what lies above the Nyquist frequency of the samples that are kept folds down to a lower one.

Keeping every s-th of N samples adds up the spectrum: Y[k] = (1 / s) sum_j X[k + j N / s]. What a low-pass filter in
front lets through beyond N / (2 s) cannot be told from what belongs there (C. E. Shannon, 1949). A strided convolution
is the same: R. Zhang, 'Making convolutional networks shift-invariant again', 2019 (arXiv:1904.11486).

Frequencies are in cycles per sample, or per pixel. Pictures are continued periodically, so that spectra are exact.
"""

import numpy as np
import scipy.ndimage

from sigexp.demonstrations.drawing import grey_photograph, panels, pixel_grid, png
from sigexp.demonstrations.page import Page, Picture, table
from sigexp.signal.spectra import sliding_power

STEP = 4  # the lecture kept every fourth pixel
SINE = 0.3  # cycles per sample
SIDE = 512  # pixels of a side of the pictures
SHOWN = 192  # of those, in the middle
SIGMAS_PX = (1.0, 2.0)  # of Gaussian low-pass filters


def alias(frequency: float, step: int) -> float:
    """Where a sinusoid is found among every `step`-th sample: cycles per sample kept, 0..0.5."""
    seen = frequency * step
    return abs(seen - round(seen))


def chirp(length: int) -> np.ndarray:
    """A sine whose frequency rises from 0 to 0.5 cycles per sample: [T]."""
    t = np.arange(length)
    return np.sin(np.pi * t**2 / (2 * length))


def zone_plate(side: int) -> np.ndarray:
    """Rings whose frequency rises from 0 in the middle to 0.5 cycles per pixel at the edges: [side, side] in 0..1."""
    at = np.arange(side) - side / 2
    return 0.5 + 0.5 * np.cos(np.pi * (at[:, None] ** 2 + at**2) / side)


def decimate(picture: np.ndarray, step: int) -> np.ndarray:
    return picture[::step, ::step]


def within_nyquist(side: int, step: int) -> np.ndarray:
    """Which bins of the spectrum of [side, side] lie below the Nyquist frequency of every `step`-th pixel."""
    low = np.abs(np.fft.fftfreq(side)) < 0.5 / step - 1e-9
    return low[:, None] & low


def gaussian_response(side: int, sigma_px: float) -> np.ndarray:
    """Frequency response [side, side] of a periodic Gaussian filter."""
    impulse = np.zeros((side, side))
    impulse[0, 0] = 1
    return np.fft.fft2(scipy.ndimage.gaussian_filter(impulse, sigma_px, mode="wrap")).real


def filtered(picture: np.ndarray, response: np.ndarray) -> np.ndarray:
    return np.fft.ifft2(np.fft.fft2(picture) * response).real


def shifted(picture: np.ndarray, rows_px: float) -> np.ndarray:
    """A picture moved down by any part of a pixel, by its spectrum."""
    turn = np.exp(-2j * np.pi * rows_px * np.fft.fftfreq(len(picture)))
    return np.fft.ifft2(np.fft.fft2(picture) * turn[:, None]).real


def judge(picture: np.ndarray, response: np.ndarray, step: int) -> dict[str, float]:
    """What a low-pass filter before decimation lets fold, and what it costs.

    folded: energy in the kept pixels of what was above their Nyquist frequency, over that of what was below.
    lost: share of the energy below that the filter takes away. shift_error: rms change of the kept pixels when the
    picture moves by one pixel and they are moved back by 1 / step, over their deviation.
    """
    below = within_nyquist(len(picture), step)
    centred = picture - picture.mean()
    belongs, folds = (decimate(filtered(centred, response * part), step) for part in (below, ~below))
    whole = decimate(filtered(centred, below * 1.0), step)
    moved = decimate(filtered(shifted(centred, 1), response), step)
    kept = decimate(filtered(centred, response), step)
    change = shifted(moved, -1 / step) - kept
    return {
        "folded": float((folds**2).mean() / (belongs**2).mean()),
        "lost": float(1 - (belongs**2).mean() / (whole**2).mean()),
        "shift_error": float(change.std() / kept.std()),
    }


def page() -> Page:
    shown = {"rings": zone_plate(SIDE), "grass": grey_photograph("grass.png")}
    filters = {"none": np.ones((SIDE, SIDE))}
    filters |= {f"Gaussian, sigma {sigma:g} px": gaussian_response(SIDE, sigma) for sigma in SIGMAS_PX}
    filters |= {"ideal": within_nyquist(SIDE, STEP) * 1.0}
    rows, numbers = [], sine_numbers()
    for name, picture in shown.items():
        numbers[f"{name}_above"] = share_above(picture, STEP)
        for low_pass, response in filters.items():
            found = judge(picture, response, STEP)
            numbers |= {f"{name}, {low_pass}: {key}": value for key, value in found.items()}
            rows.append([name, low_pass, *(percent(value) for value in found.values())])
    header = ["picture", "low-pass filter", "energy folded, of what belongs", "energy lost", "shift error"]
    above = " and ".join(f"{percent(numbers[f'{name}_above'])} of the energy of the {name}" for name in shown)
    return Page(
        title="Aliasing: what a sample cannot tell",
        parts=[
            f"A sine of {SINE} cycles per sample and one of {alias(SINE, STEP):.1f} / {STEP} agree in every {STEP}th "
            f"sample to {numbers['sine_difference']:.0e}.",
            Picture("sine", sine_picture(), "a sine, every fourth sample of it, and the slower sine through these"),
            Picture("chirp", chirp_picture(), "power of a rising tone over time and frequency, before and after"),
            *(
                Picture(name, compared(picture, filters), f"{name}: all pixels, every fourth one, behind filters")
                for name, picture in shown.items()
            ),
            f"Above the Nyquist frequency of every {STEP}th pixel there is {above}.",
            table(header, rows),
        ],
        numbers=numbers,
    )


def percent(share: float) -> str:
    """Two digits; what is rounding error is 0."""
    if share < 1e-12:
        return "0 %"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:,.0f} %"


def share_above(picture: np.ndarray, step: int) -> float:
    """Share of a picture's energy, its mean aside, above the Nyquist frequency of every `step`-th pixel."""
    spectrum = np.abs(np.fft.fft2(picture - picture.mean())) ** 2
    return float(spectrum[~within_nyquist(len(picture), step)].sum() / spectrum.sum())


def sine_numbers() -> dict[str, float]:
    m = np.arange(64)
    difference = np.sin(2 * np.pi * SINE * STEP * m) - np.sin(2 * np.pi * alias(SINE, STEP) * m)
    return {"sine_alias": alias(SINE, STEP), "sine_difference": float(np.abs(difference).max())}


def sine_picture() -> bytes:
    figure, (axis,) = panels(1, 1, width=8)
    t, kept = np.linspace(0, 40, 1601), np.arange(0, 41, STEP)
    axis.plot(t, np.sin(2 * np.pi * SINE * t), color="0.7", linewidth=1, label=f"{SINE} cycles per sample")
    slow = alias(SINE, STEP) / STEP
    axis.plot(t, np.sin(2 * np.pi * slow * t), label=f"{slow:g} cycles per sample: the alias")
    axis.plot(kept, np.sin(2 * np.pi * SINE * kept), "o", color="black", label=f"every {STEP}th sample")
    axis.set_xlabel("sample")
    axis.set_ylim(-1.15, 1.6)
    axis.margins(x=0.01)
    axis.legend(loc="upper right", ncols=3, frameon=False)
    return png(figure)


def chirp_picture() -> bytes:
    """Power over time and frequency of a chirp, of every fourth sample, and of those after a low-pass filter."""
    whole = chirp(8192)
    spectrum = np.fft.rfft(whole)
    spectrum[np.fft.rfftfreq(len(whole)) >= 0.5 / STEP] = 0
    low = np.fft.irfft(spectrum, len(whole))
    shown = {"all samples": whole, f"every {STEP}th": whole[::STEP], f"low-passed, every {STEP}th": low[::STEP]}
    figure, axes = panels(1, 3)
    for axis, (name, signal) in zip(axes, shown.items(), strict=True):
        power = sliding_power(signal[None], bands=64, taps=127)[0]
        axis.imshow(power**0.5, aspect="auto", origin="lower", extent=(0, 1, 0, 0.5), vmin=0, vmax=1)
        axis.set_title(name)
        axis.set_xlabel("time, of the whole")
    axes[0].set_ylabel("cycles per sample kept")
    return png(figure)


def compared(picture: np.ndarray, filters: dict[str, np.ndarray]) -> bytes:
    """The middle of a picture: all pixels, every fourth one, every fourth one behind filters, at the same size."""
    part = slice((SIDE - SHOWN) // 2, (SIDE + SHOWN) // 2)
    widest = list(filters)[-2]
    chosen = {f"every {STEP}th": "none", f"{widest}": widest, "ideal low-pass": "ideal"}
    kept = [decimate(filtered(picture, filters[name])[part, part], STEP) for name in chosen.values()]
    return pixel_grid([[picture[part, part], *kept]], [["all pixels", *chosen]], SHOWN, vmin=0, vmax=1)
