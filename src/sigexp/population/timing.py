"""How long pieces of training take on this machine: what the race of the plans measures with."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sigexp.population.gradients import gradients
from sigexp.population.repeating import CALLS
from sigexp.population.sending import wait

CLEAR = 0.85  # of the first candidate's time, below which another is clearly quicker
ENOUGH = 0.05  # seconds of one run, above which its noise is small
SHORT = 4  # times as many runs where they are short
WARMING = 0.9  # of the least time before, below which a run says that the next one may be quicker still


def least_seconds(work: Callable[[], Any], device: torch.device, most: int = 3, fewest: int = 2) -> float:
    """The shortest of about `most` runs of `work`; after the `fewest` first, one that takes long is enough.

    Short ones are as many as make one that is long, because they may become quicker (repeating.py); and there are more
    as long as they are still warming up, because memory that comes from the system for the first time may take several.
    """
    for _ in range(CALLS + 1 if device.type == "cuda" else 0):  # after which passes are graphs, however long they take
        work()
    wait(device)
    least, spent, runs, warming = float("inf"), 0.0, 0, False
    while runs < most or (spent < ENOUGH and runs < SHORT * most) or (warming and runs < 2 * most):
        began = time.perf_counter()
        work()
        wait(device)
        seconds = time.perf_counter() - began
        warming = runs > 0 and seconds < WARMING * least
        least, spent, runs = min(least, seconds), spent + seconds, runs + 1
        if runs >= fewest and least > ENOUGH and not warming:
            break
    return least


def quickest(candidates: Mapping[str, Callable], arguments: tuple[Any, ...]) -> str:
    """The name of the quickest candidate, forward and backward; the first, unless another is clearly quicker."""
    device = next(a.device for a in arguments if isinstance(a, Tensor))

    def learn(function: Callable) -> None:
        own = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in arguments]
        result = function(*own)
        out = result[0] if isinstance(result, tuple) else result
        learned = [a for a in own if isinstance(a, Tensor) and a.requires_grad]
        if learned and any(g is None for g in gradients(out, learned, torch.ones_like(out))):
            raise RuntimeError(f"{function} loses what it depends on")

    first, times = next(iter(candidates)), dict[str, float]()
    for name, one in candidates.items():  # the first run of all loads libraries, whose time is not the candidate's
        times[name] = least_seconds(partial(learn, one), device, fewest=2 if name == first else 1)
    best = min(times, key=lambda name: times[name])
    return best if times[best] < CLEAR * times[first] else first
