"""What the filters of a learned bank look like: how near to Gabor functions, and how near white noise would be."""

import numpy as np
from torch import nn

from sigexp.signal.gabor_fit import fit_gabor

FEWEST, SHORTEST = 8, 9  # filters and taps below which a bank says nothing
WHITE = 256  # kernels of white noise that the bank is compared with
LONGEST_SIGMA = 10.0  # samples; a kernel without an envelope is a plain sinusoid
FAINTEST = 0.01  # of the bank's mean energy; what is weaker does nothing


def measure(model: nn.Module) -> dict[str, float]:
    """Medians over the first layer's filters, where that is a bank of FIR filters over one channel; else nothing.

    gabor_residual: share of a filter's energy that the nearest Gabor function leaves, over filters whose sigma is at
    most LONGEST_SIGMA; gabor_share: how many of the filters that are not faint those are; white_residual: the same
    residual of white noise with as many taps.
    """
    first = next((module for module in model.modules() if not list(module.children())), None)
    if not isinstance(first, nn.Conv1d) or first.in_channels != 1:
        return {}
    bank = first.weight.detach()[:, 0].double().cpu().numpy()
    if bank.shape[0] < FEWEST or bank.shape[1] < SHORTEST or not np.isfinite(bank).all():
        return {}
    energy = (bank**2).sum(1)
    residual, sigma = fit_gabor(bank[energy >= FAINTEST * energy.mean()])
    local = sigma <= LONGEST_SIGMA
    found = {"gabor_share": float(local.mean())}
    if local.any():
        found["gabor_residual"] = float(np.median(residual[local]))
    return {**found, "white_residual": white_residual(bank.shape[1])}


def white_residual(taps: int) -> float:
    """Median residual of kernels of white Gaussian noise, by the same rule."""
    residual, sigma = fit_gabor(np.random.default_rng(0).standard_normal((WHITE, taps)))
    return float(np.median(residual[sigma <= LONGEST_SIGMA]))
