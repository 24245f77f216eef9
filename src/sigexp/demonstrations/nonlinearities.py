"""The nonlinearities of neural nets, and how well one of them stands for another over a range of inputs.

A unit is a f(b x + c) + d. Its best numbers are those of least squared error over a grid. Sums of several units, their
bends evenly spread, show how fast the error falls: for ReLUs it is about that of linear interpolation, f'' h^2 / 8, and
a softplus has f'' = 1 / 4 at most.
"""

from collections.abc import Callable

import numpy as np
import scipy.optimize
from scipy.special import expit, log_expit

from sigexp.demonstrations.drawing import panels, png
from sigexp.demonstrations.page import Page, Picture, table

Function = Callable[[np.ndarray], np.ndarray]
FUNCTIONS: dict[str, Function] = {
    "identity": lambda x: x,
    "sigmoid": expit,
    "ReLU": lambda x: np.maximum(x, 0),
    "softplus": lambda x: -log_expit(-x),
}
LECTURE = {  # target: the lecture's sigmoid for it and half of its range
    "identity": ((10.0, 0.4, 0.0, -5.0), 4.0),
    "softplus": ((10.0, 0.55, -2.6, 0.0), 5.0),
}
SLOPES = (0.4, 0.2, 0.1, 0.05)  # of the sigmoid's input; the height 4 / slope makes the slope at 0 one
STEEPEST = 10.0  # input slope of a fitted unit: without a limit a softplus becomes a ReLU, a sigmoid a line
PIECES = (2, 4, 8, 16, 32)
POINTS = 401


def unit(f: Function, parameters: tuple[float, float, float, float], x: np.ndarray) -> np.ndarray:
    a, b, c, d = parameters
    return a * f(b * x + c) + d


def best_unit(f: Function, target: Function, half: float) -> tuple[tuple[float, float, float, float], float, float]:
    """The unit a f(b x + c) + d nearest to a target on -half..half, |b| at most STEEPEST; rms and largest error.

    For given b and c, a and d are linear least squares, so that only those two are searched for.
    """
    x = np.linspace(-half, half, POINTS)
    wanted = target(x)

    def linear_part(at: np.ndarray) -> np.ndarray:
        basis = np.stack([f(at[0] * x + at[1]), np.ones_like(x)], axis=1)
        return np.linalg.lstsq(basis, wanted, rcond=None)[0]

    def error(at: np.ndarray) -> float:
        a, d = linear_part(at)
        return float(np.square(unit(f, (a, at[0], at[1], d), x) - wanted).mean())

    limits = [(0.02, STEEPEST), (-STEEPEST, STEEPEST)]
    starts = [(b, c) for b in (0.1, 0.5, 1.0, 4.0) for c in (-3.0, 0.0, 3.0)]
    found = [scipy.optimize.minimize(error, s, bounds=limits, method="Nelder-Mead").x for s in starts]
    b, c = min(found, key=error)
    a, d = linear_part(np.array([b, c]))
    parameters = (float(a), float(b), float(c), float(d))
    return parameters, *errors(unit(f, parameters, x), wanted)


def errors(given: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Rms and largest."""
    return float(np.sqrt(np.square(given - wanted).mean())), float(np.abs(given - wanted).max())


def sum_of_relus(target: Function, half: float, pieces: int) -> np.ndarray:
    """The nearest function of straight pieces of equal length, a line and a ReLU for every bend: [POINTS]."""
    x = np.linspace(-half, half, POINTS)
    bends = np.linspace(-half, half, pieces + 1)[1:-1]
    basis = np.stack([np.ones_like(x), x, *(FUNCTIONS["ReLU"](x - bend) for bend in bends)], axis=1)
    return basis @ np.linalg.lstsq(basis, target(x), rcond=None)[0]


def page() -> Page:
    numbers: dict[str, float] = {}
    claimed = []
    for target, (parameters, half) in LECTURE.items():
        x = np.linspace(-half, half, POINTS)
        rms, largest = errors(unit(expit, parameters, x), FUNCTIONS[target](x))
        best, best_rms, best_largest = best_unit(expit, FUNCTIONS[target], half)
        far = np.array([-2 * half, 2 * half])
        beyond = errors(unit(expit, parameters, far), FUNCTIONS[target](far))[1]
        numbers |= {f"{target}_largest": largest, f"{target}_rms": rms, f"{target}_best_rms": best_rms}
        numbers |= {f"{target}_best_largest": best_largest, f"{target}_beyond": beyond}
        claimed += [
            [target, f"-{half:g}..{half:g}", spelled(parameters), f"{rms:.4f}", f"{largest:.4f}", f"{beyond:.2f}"],
            ["", "", spelled(best), f"{best_rms:.4f}", f"{best_largest:.4f}", ""],
        ]
    slopes = []
    for slope in SLOPES:
        x = np.linspace(-4, 4, POINTS)
        largest = errors(4 / slope * (expit(slope * x) - 0.5), x)[1]
        numbers[f"slope_{slope:g}"] = largest
        slopes.append([f"{slope:g}", f"{4 / slope:g}", f"{largest:.4f}", f"{slope**2 * 4**3 / 12:.4f}"])
    pairs = [[target, *(pair(target, name, numbers) for name in FUNCTIONS)] for target in FUNCTIONS]
    return Page(
        title="Nonlinearities, and what approximates what",
        parts=[
            Picture("nonlinearities", functions_picture(), "four nonlinearities and their derivatives"),
            Picture("lecture", lecture_picture(), "the lecture's two approximations, within its range and beyond"),
            table(
                [
                    "target",
                    "range",
                    "sigmoid: the lecture's, then the best",
                    "rms error",
                    "largest",
                    "at twice the range",
                ],
                claimed,
            ),
            "A sigmoid as a straight line, on -4..4:",
            table(["input slope b", "height 4 / b", "largest error", "b^2 4^3 / 12"], slopes),
            f"Rms error on -2..2 of the best single unit a f(b x + c) + d, b at most {STEEPEST:g}: the target in the "
            "row, f in the column.",
            table(["target", *FUNCTIONS], pairs),
            "Softplus on -5..5 as a line and ReLUs, their bends evenly spread; h is the distance between bends:",
            table(["ReLUs", "largest error", "h^2 / 32"], sums(numbers)),
        ],
        numbers=numbers,
    )


def sums(numbers: dict[str, float]) -> list[list[str]]:
    rows = []
    for pieces in PIECES:
        softplus = FUNCTIONS["softplus"]
        largest = errors(sum_of_relus(softplus, 5.0, pieces), softplus(np.linspace(-5, 5, POINTS)))[1]
        numbers[f"relus_{pieces - 1}"] = largest
        rows.append([f"{pieces - 1}", f"{largest:.4f}", f"{(10 / pieces) ** 2 / 32:.4f}"])
    return rows


def pair(target: str, name: str, numbers: dict[str, float]) -> str:
    if target == name:
        return "0"
    numbers[f"{target}_by_{name}"] = best_unit(FUNCTIONS[name], FUNCTIONS[target], 2.0)[1]
    return f"{numbers[f'{target}_by_{name}']:.1e}"


def spelled(parameters: tuple[float, float, float, float]) -> str:
    a, b, c, d = parameters
    return f"{a:.3g} s({b:.3g} x {c:+.2f}) {d:+.2f}"


def functions_picture() -> bytes:
    x = np.linspace(-4, 4, 401)
    figure, axes = panels(1, 2, width=3.8, height=2.8)
    for name, f in FUNCTIONS.items():
        axes[0].plot(x, f(x), label=name)
        axes[1].plot(x, (f(x + 1e-4) - f(x - 1e-4)) / 2e-4, label=name)
    axes[0].set_title("values")
    axes[1].set_title("derivatives")
    axes[0].set_ylim(-2, 4)
    axes[0].legend(frameon=False)
    return png(figure)


def lecture_picture() -> bytes:
    figure, axes = panels(1, 2, width=3.8, height=2.8)
    for axis, (target, (parameters, half)) in zip(axes, LECTURE.items(), strict=True):
        x = np.linspace(-2 * half, 2 * half, 401)
        axis.axvspan(-half, half, color="0.92")
        axis.plot(x, FUNCTIONS[target](x), label=target)
        axis.plot(x, unit(expit, parameters, x), label=spelled(parameters))
        axis.legend(loc="upper left", frameon=False)
        axis.set_title(f"the lecture's range is grey: -{half:g}..{half:g}")
    return png(figure)
