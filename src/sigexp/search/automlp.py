"""AutoMLP: a population that trains, is thinned to its best, and continues beside mutated clones.

T. Breuel and F. Shafait, 'AutoMLP: Simple, Effective, Fully Automated Learning Rate and Size Adjustment', 2010.
A round trains the survivors and a clone of each with learning rate and batch size multiplied by U(0.8, 1.25). The
next survivors are the best of these and of the survivors as they were before the round, so the best is never lost.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sigexp.search.base import Candidate, Past, Round, Search, Start

log = logging.getLogger("sigexp")


@dataclass(frozen=True, kw_only=True)
class AutoMLP(Search):
    def first(self, start: Start, rng: np.random.Generator) -> Round:
        return Round([None] * self.members, self.spread(start), self.first_samples())

    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        best = self.ranked(candidates, rng)[: self.survivors]
        # Where fewer than `survivors` are healthy, the diverged are seeded anew from the best.
        parents = [best[i % len(best)] for i in range(self.survivors)]
        if len(best) < self.survivors:
            anew = ", ".join(str(candidates[i].id) for i in parents[len(best) :])
            log.warning("%d survivors diverged: seeded anew from members %s", self.survivors - len(best), anew)
        clones = [self.mutate(candidates[i].hparams, start, rng) for i in parents]
        hparams = [candidates[i].hparams for i in parents] + clones
        return Round([*parents, *parents], hparams, self.round_samples, keep=best)
