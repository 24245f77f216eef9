"""Which plan is quickest for a model, on this machine: measured on copies (race.py), and kept.

The winner is kept in the cache folder by model, shapes, machine and versions, so that the next run has the same plan,
and by it the same bits.
"""

import hashlib
import json
import math
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import sigexp
from sigexp import machine
from sigexp.population import compiling
from sigexp.population.feed import Feed
from sigexp.population.plan import Plan, Wanted
from sigexp.population.population import Population
from sigexp.population.race import Race


@dataclass
class Calibration:
    plan: Plan
    rates: dict[str, float] = field(default_factory=dict)  # member-samples/s of every candidate that was timed
    seconds: float = 0.0
    cached: bool = False


def calibrate(population: Population, feed: Feed, wanted: Wanted, cache: Path | None) -> Calibration:
    """The plan for a population that trains on a feed. `cache`: the folder of known plans, or None for none."""
    began = time.perf_counter()
    batch_size = int(population.hparams["batch_size"].max())
    path = cache / f"{_key(population, feed, wanted, batch_size)}.json" if cache else None
    known = _read(path)
    if known is not None:
        return replace(known, seconds=0.0, cached=True)
    race = Race(population, feed.take(0, batch_size), wanted)
    if wanted.execution == "sequential" or population.compiled:
        plan = Plan(threads=wanted.threads)
    elif wanted.execution == "moments":
        if population.moments is None or feed.size is None:
            raise ValueError(
                "trainer.execution=moments trains models that are linear in their parameters, under squared error, on "
                "a fixed training set; use trainer.execution=auto"
            )
        plan = Plan(way="moments", threads=wanted.threads)
    else:
        if wanted.execution == "auto" and population.moments is not None and feed.size is not None:
            race.time_moments(population.moments, feed.size)
        plan = race.run()
    found = Calibration(plan, {name: round(rate, 1) for name, rate in race.rates.items()}, time.perf_counter() - began)
    if path and wanted.execution == "auto":
        _write(path, found)
    return found


def _key(population: Population, feed: Feed, wanted: Wanted, batch_size: int) -> str:
    """What determines the plan: the architecture, the shapes, the settings, the machine, the versions."""
    shapes = [
        (name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in population.template.state_dict().items()
    ]
    batch = feed.take(0, 1)
    pixels = math.prod(batch[0].shape[2:])
    parts = (
        repr(population.template), shapes, [tuple(part.shape[1:]) for part in batch], batch_size,
        population.optimizer, population.precision, population.clip_norm is not None, population.compiled, wanted,
        machine.describe_device(str(population.device)), torch.__version__, sigexp.__version__,
        [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.[chp]*"))],
        # Which waits for the compiler, or the race would, whose time is short.
        [part for part in compiling.parts_of(population.template, pixels) if compiling.kernel(part) is not None],
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _read(path: Path | None) -> Calibration | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path else None
        return Calibration(Plan(**content["plan"]), content["rates"], content["seconds"]) if content else None
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that another version wrote
        return None


def _write(path: Path, found: Calibration) -> None:
    """Whole or not at all; a cache that cannot be written is none."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"plan": found.plan.as_dict(), "rates": found.rates, "seconds": found.seconds}, file)
        os.replace(name, path)
