"""How near demosaiced photographs come to the originals, summed tile by tile, so that they may be of any size.

PSNR and SSIM are scikit-image's (`peak_signal_noise_ratio`; `structural_similarity` with Gaussian weights), of values
clipped to 0..1 and not rounded, 4 pixels cut from every side. CPSNR is the PSNR of all three channels together.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from sigexp.datasets.bayer import BORDER
from sigexp.report.tables import set_table
from sigexp.report.terminal import print_table
from sigexp.signal.quality import MSE_FLOOR, ssim
from sigexp.tiling import Tile

Judged = Mapping[str, Mapping[str, Mapping[str, float]]]  # picture -> predictor -> metric -> value
SSIM_REACH = 5  # pixels: half of its 11x11 window
METRICS = ("cpsnr", "psnr_r", "psnr_g", "psnr_b", "ssim")
SHORT = ("cpsnr", "ssim")  # for narrow terminals
COLUMNS_WIDTH = 57  # characters that METRICS take beside the names
CONVENTION = (
    "cpsnr: one MSE over the three channels; psnr_r, psnr_g, psnr_b: each alone; ssim: mean over channels; values "
    "clipped to 0..1 and not rounded, 4 border pixels cut; means are over photographs"
)


@dataclass
class Quality:
    """Sums over the tiles of one picture of H x W pixels."""

    extent: tuple[int, ...]
    squares: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    pixels: int = 0
    similarity: float = 0.0
    windows: int = 0

    def add(self, tile: Tile, outputs: Tensor, targets: Tensor) -> None:
        """Take in what was seen of a tile, outputs and targets [3, h, w], valid up to 5 pixels around what is kept."""
        inner = _within(tile.kept, self.extent, BORDER)
        at = self._local(tile, inner)
        error = outputs[at].clamp(0, 1).double() - targets[at].double()
        self.squares += error.square().sum((1, 2))
        self.pixels += error[0].numel()
        around = tuple(slice(max(0, k.start - SSIM_REACH), k.stop + SSIM_REACH) for k in tile.kept)
        region = _within(around, self.extent, BORDER)
        count = int(np.prod([max(0, r.stop - r.start - 2 * SSIM_REACH) for r in region]))
        if count:
            at = self._local(tile, region)
            self.similarity += count * float(ssim(outputs[at][None], targets[at][None]))
            self.windows += count

    def _local(self, tile: Tile, region: tuple[slice, ...]) -> tuple[slice, ...]:
        moved = (slice(r.start - s.start, r.stop - s.start) for r, s in zip(region, tile.seen, strict=True))
        return (slice(None), *moved)

    def values(self) -> dict[str, float]:
        """The metrics by name; those of pictures too small for them are left out."""
        if not self.pixels:
            return {}
        errors = (self.squares / self.pixels).tolist()
        decibels = [-10 * float(np.log10(max(e, MSE_FLOOR))) for e in (sum(errors) / 3, *errors)]
        found = dict(zip(METRICS, decibels, strict=False))
        return {**found, "ssim": self.similarity / self.windows} if self.windows else found


def _within(region: tuple[slice, ...], extent: tuple[int, ...], border: int) -> tuple[slice, ...]:
    """The part of a region that is no nearer than `border` to any side."""
    starts = [max(r.start, border) for r in region]
    stops = [min(r.stop, n - border) for r, n in zip(region, extent, strict=True)]
    return tuple(slice(start, max(start, stop)) for start, stop in zip(starts, stops, strict=True))


def mean(judged: list[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over pictures of predictor -> metric -> value, over those that have the metric."""
    found: dict[str, dict[str, float]] = {}
    for name in judged[0]:
        for metric in METRICS:
            values = [one[name][metric] for one in judged if metric in one[name]]
            if values:
                found.setdefault(name, {})[metric] = float(np.mean(values))
    return found


def show(judged: Judged, console: Console) -> None:
    """A table for every picture, their mean, and what the numbers are."""
    average = mean(list(judged.values()))
    metrics = list(METRICS if console.width >= max(map(len, average)) + COLUMNS_WIDTH else SHORT)
    for picture, quality in judged.items():
        print_table(console, set_table(picture, quality, metrics))
    if len(judged) > 1:
        print_table(console, set_table(f"mean of {len(judged)} photographs", average, metrics))
    console.print(CONVENTION, soft_wrap=False)


def as_csv(judged: Judged) -> str:
    """A line for every picture and predictor, and for the means over pictures; PSNR in dB."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "predictor", *METRICS])
    average = {"mean": mean(list(judged.values()))} if judged else {}
    for picture, quality in [*judged.items(), *average.items()]:
        for name, values in quality.items():
            writer.writerow([picture, name, *(f"{values[m]:.6g}" if m in values else "" for m in METRICS)])
    return text.getvalue()
