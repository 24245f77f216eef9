"""Searches without selection: given hyperparameters, or random ones, trained side by side to the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sigexp.search.base import Candidate, HParams, Past, Round, Search, Start


@dataclass(frozen=True, kw_only=True)
class Fixed(Search):
    """Every member has the trainer's hyperparameters; several members differ in their initial weights."""

    unused: ClassVar[tuple[str, ...]] = ("survivors", "initial_samples", "selection_noise", "lr_decades")

    def first(self, start: Start, rng: np.random.Generator) -> Round:
        return Round([None] * self.members, self.choose(start, rng), self.round_samples)

    def choose(self, start: Start, rng: np.random.Generator) -> list[HParams]:
        return [start.clip(start.hparams) for _ in range(self.members)]

    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        return Round(list(range(len(candidates))), [c.hparams for c in candidates], self.round_samples)


@dataclass(frozen=True, kw_only=True)
class Random(Fixed):
    """Learning rates log-uniform within `lr_decades` of the trainer's, batch sizes within a factor of 2 of it."""

    unused: ClassVar[tuple[str, ...]] = ("survivors", "initial_samples", "selection_noise")

    def choose(self, start: Start, rng: np.random.Generator) -> list[HParams]:
        return [self.drawn(start, rng.random(2)) for _ in range(self.members)]
