"""One picture that shows a demosaicing side by side: mosaic, models, the best classical method, original."""

from collections.abc import Mapping

import numpy as np
import torch

from sigexp.report import canvas
from sigexp.report.canvas import Canvas
from sigexp.report.tables import number
from sigexp.signal.bayer import mosaic
from sigexp.signal.demosaic import METHODS, demosaic

WIDTH, NARROWEST, TITLE, GAP = 1600, 160, 38, 4  # pixels


def side_by_side(
    photograph: np.ndarray, outputs: Mapping[str, np.ndarray], quality: Mapping[str, Mapping[str, float]]
) -> bytes:
    """PNG of a photograph [H, W, 3] in 0..1 and of what the models made of its mosaic, label -> [H, W, 3].

    quality: predictor -> metric -> value of the whole picture, which the titles tell and the best method is chosen by.
    """
    count = len(outputs) + 3
    across = WIDTH // count - GAP
    photograph = photograph[:, : max(2, across)]
    method = max(METHODS, key=lambda name: quality.get(name, {}).get("cpsnr", 0.0))
    raw = mosaic(torch.from_numpy(np.ascontiguousarray(photograph.transpose(2, 0, 1))).float()[None])
    classical = demosaic(raw, method)[0].permute(1, 2, 0).numpy()
    columns = [("mosaic", "", raw[0].permute(1, 2, 0).numpy())]
    columns += [(name, f"{name} (learned)", output) for name, output in outputs.items()]
    columns += [(f"{method} (best classical)", method, classical), ("original", "", photograph)]
    times = max(1, -(-NARROWEST // photograph.shape[1]))
    wide = min(across, photograph.shape[1] * times)
    drawn = Canvas(count * (wide + GAP) - GAP, TITLE + photograph.shape[0] * times)
    for place, (title, predictor, pixels) in enumerate(columns):
        left = place * (wide + GAP)
        drawn.text(left, 2, canvas.fitted(title, wide), "lt")
        reached = quality.get(predictor, {}).get("cpsnr")
        if reached is not None:
            drawn.text(left, 19, number(reached, "cpsnr"), "lt", color=canvas.GREY)
        shown = canvas.rgb(pixels[:, : photograph.shape[1]]).repeat(times, 0).repeat(times, 1)
        drawn.paste(shown[:, :wide], left, TITLE)
    return drawn.png(full_color=True)
