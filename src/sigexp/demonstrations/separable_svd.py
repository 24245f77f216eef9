"""A kernel as a sum of separable ones: K = sum_k s_k u_k v_k', its singular value decomposition.

The first r terms are the nearest kernel of r column filters with r row filters behind them (C. Eckart, G. Young, 1936),
at r (h + w) multiplications a pixel instead of h w: S. Treitel, J. L. Shanks, 'The design of multistage separable
planar filters', 1971.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from sigexp.datasets.gaussian import gaussian_impulses
from sigexp.demonstrations.drawing import panels, png
from sigexp.demonstrations.page import Page, Picture, table
from sigexp.signal import least_squares
from sigexp.signal.gaussian import gaussian_kernel
from sigexp.signal.quality import mse
from sigexp.signal.spectra import gabor_2d

SIGMA, TAPS = (4.0, 1.0), 15
EXAMPLES, TEST = 2000, 500
BORDER = 16  # pixels, as far as the true kernel reaches
TERMS = (1, 2, 3, 4, 5)


def centred(kernel: np.ndarray, taps: int) -> np.ndarray:
    """The middle [taps, taps] of a kernel with odd sides, zeros where it is smaller."""
    whole = np.pad(kernel, [(max(0, (taps - n) // 2),) * 2 for n in kernel.shape])
    top, left = ((n - taps) // 2 for n in whole.shape)
    return whole[top : top + taps, left : left + taps]


def of_rank(kernel: np.ndarray, terms: int) -> np.ndarray:
    """The nearest kernel of so many separable terms."""
    u, s, v = np.linalg.svd(kernel)
    return (u[:, :terms] * s[:terms]) @ v[:terms]


def energy_left(kernel: np.ndarray, terms: int) -> float:
    """Share of a kernel's energy that the first separable terms leave."""
    values = np.linalg.svd(kernel, compute_uv=False) ** 2
    return float(values[terms:].sum() / values.sum())


def others() -> dict[str, np.ndarray]:
    """Kernels of TAPS x TAPS that are not separable, or not seen to be."""
    at = np.arange(TAPS) - TAPS // 2
    y, x = at[:, None], at[None, :]
    along, across = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    square = (x**2 + y**2) / 2.0**2
    return {
        "the true Gaussian, sigma 4 and 1": centred(gaussian_kernel(SIGMA), TAPS),
        "the same, turned by 45 degrees": np.exp(-((along / 4) ** 2) / 2 - across**2 / 2),
        "disc of radius 5": ((x**2 + y**2) <= 5**2).astype(float),
        "Laplacian of a Gaussian, sigma 2": (square - 2) * np.exp(-square / 2),
        "Gabor, 45 degrees": gabor_2d(y, x, sigma=3.0, frequency=(0.1, 0.1), phase=0.0),
        "white noise": np.random.default_rng(0).standard_normal((TAPS, TAPS)),
    }


def page() -> Page:
    problem = gaussian_impulses(size=EXAMPLES, test_size=TEST, sigma=SIGMA)
    equations = least_squares.sums(*problem.examples("train"), (TAPS, TAPS))
    weight, bias = least_squares.convolution(equations)
    down, first, across, second = least_squares.separable(equations)
    kernel, true = weight[0, 0].numpy(), centred(gaussian_kernel(SIGMA), TAPS)
    reading = of_rank(kernel, 1)
    inputs, targets = problem.examples("test")
    readings = {
        "least squares, 15 x 15": ([(weight, bias)], TAPS**2 + 1),
        "its first singular pair, same offset": ([(as_weight(reading), bias)], 2 * TAPS + 1),
        "least squares of a column and a row": ([(down, first), (across, second)], 2 * (TAPS + 1)),
        "the true kernel, cut to 15 x 15": ([(as_weight(true), torch.zeros(1))], 0),
    }
    rows, numbers = [], {"second_singular": ratio(kernel), "true_second_singular": ratio(true)}
    for name, (layers, parameters) in readings.items():
        outputs = convolved(inputs, layers)
        full, inner = (float(f(outputs, targets).mean()) for f in (mse, partial(mse, border=BORDER)))
        numbers |= {f"{name}: mse": full, f"{name}: mse_interior": inner}
        rows.append([name, f"{parameters or 'none'}", f"{full:.3e}", f"{inner:.3e}"])
    numbers |= {
        "rank_1_residual": energy_left(kernel, 1),
        "kernel_error": distance(kernel, true),
        "reading_error": distance(reading, true),
        "reach": float(true.sum()),
    }
    kernels = {name: [energy_left(k, terms) for terms in TERMS] for name, k in others().items()}
    numbers |= {f"{name}: {t}": left for name, found in kernels.items() for t, left in zip(TERMS, found, strict=True)}
    return Page(
        title="Separable filters inside a full kernel",
        parts=[
            Picture("kernels", kernels_picture(kernel, reading, true), "the fitted kernel, its reading, the true one"),
            f"The second singular value is {100 * ratio(kernel):.2g} % of the first: the first pair leaves "
            f"{numbers['rank_1_residual']:.1e} of the fitted kernel's energy. Distance to the true kernel, of its "
            f"norm: {100 * numbers['kernel_error']:.2g} % before, {100 * numbers['reading_error']:.2g} % after.",
            table([f"filter, {EXAMPLES:,} examples", "weights", "mse", "mse, interior"], rows),
            f"Test data: {TEST} images of the experiment `gaussian`; the interior leaves out {BORDER} pixels. "
            f"The 15 rows hold {100 * numbers['reach']:.0f} % of the true kernel, which has 33.",
            Picture("singular_values", values_picture(kernel), "singular values, of the largest"),
            f"Share of other kernels' energy that separable terms leave; {TAPS} x {TAPS} taps cost {TAPS**2} "
            f"multiplications a pixel, a term {2 * TAPS}:",
            table(
                ["kernel", *(f"{terms} terms" if terms > 1 else "1 term" for terms in TERMS)],
                [
                    [name, *(f"{left:.1e}" if left > 1e-20 else "0" for left in found)]
                    for name, found in kernels.items()
                ],
            ),
        ],
        numbers=numbers,
    )


def ratio(kernel: np.ndarray) -> float:
    """Second over first singular value."""
    values = np.linalg.svd(kernel, compute_uv=False)
    return float(values[1] / values[0])


def distance(kernel: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(kernel - true) / np.linalg.norm(true))


def as_weight(kernel: np.ndarray) -> Tensor:
    """As a convolution layer's [1, 1, h, w]."""
    return torch.from_numpy(kernel)[None, None]


def convolved(inputs: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Convolutions in turn, padded with zeros: [N, 1, H, W]."""
    for weight, bias in layers:
        inputs = conv2d(inputs, weight.float(), bias.float(), padding=(weight.shape[2] // 2, weight.shape[3] // 2))
    return inputs


def kernels_picture(kernel: np.ndarray, reading: np.ndarray, true: np.ndarray) -> bytes:
    figure, axes = panels(1, 4, width=2.1, height=2.3)
    most = float(true.max())
    shown = {"least squares": kernel, "first singular pair": reading, "true kernel": true}
    for axis, (name, one) in zip(axes, shown.items(), strict=False):
        axis.imshow(one, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        axis.set_title(name)
    times = 0.5 * most / float(np.abs(kernel - reading).max())
    axes[3].imshow((kernel - reading) * times, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axes[3].set_title(f"first - second, times {times:.0f}")
    for axis in axes:
        axis.set_axis_off()
    return png(figure)


def values_picture(kernel: np.ndarray) -> bytes:
    figure, (axis,) = panels(1, 1, width=6, height=3)
    shown = {"least squares": kernel, **others()}
    for i, (name, one) in enumerate(shown.items()):
        values = np.linalg.svd(one, compute_uv=False)
        axis.semilogy(range(1, TAPS + 1), values / values[0], ".-" if i else "o-", label=name, linewidth=1)
    axis.set_ylim(1e-7, 2)
    axis.set_xticks(range(1, TAPS + 1, 2))
    axis.set_xlabel("number")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return png(figure)
