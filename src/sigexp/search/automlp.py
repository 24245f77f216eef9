"""AutoMLP: a population that trains, is thinned to its best, and continues beside mutated clones.

T. Breuel and F. Shafait, 'AutoMLP: Simple, Effective, Fully Automated Learning Rate and Size Adjustment', 2010.
A round trains the survivors and a clone of each with learning rate and batch size multiplied by U(0.8, 1.25). The
next survivors are the best of these and of the survivors as they were before the round, so the best is never lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sigexp.search.base import Candidate, HParams, Past, Round, Search, Start


@dataclass(frozen=True, kw_only=True)
class AutoMLP(Search):
    def first(self, start: Start, rng: np.random.Generator) -> Round:
        rates = self.learning_rates(start.hparams["lr"]) if self.members > 1 else [start.hparams["lr"]]
        hparams = [start.clip({**start.hparams, "lr": float(lr)}) for lr in rates]
        return Round([None] * self.members, hparams, self.first_samples())

    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        noise = 1 + self.selection_noise * rng.standard_normal(len(candidates))
        scores = np.array([c.score for c in candidates]) * noise
        order = np.argsort(np.where(np.isfinite(scores), scores, np.inf), kind="stable")
        finite = [int(i) for i in order if np.isfinite(scores[i])]
        best = finite[: self.survivors]
        # Where fewer than `survivors` are healthy, the diverged are seeded anew from the best.
        parents = [best[i % len(best)] for i in range(self.survivors)]
        clones = [self.mutate(candidates[i].hparams, rng) for i in parents]
        hparams = [candidates[i].hparams for i in parents] + clones
        return Round([*parents, *parents], hparams, self.round_samples, keep=best)

    def mutate(self, hparams: HParams, rng: np.random.Generator) -> HParams:
        """Learning rate and batch size times U(0.8, 1.25), inside their ranges."""
        lr, batch_size = (hparams[name] * rng.uniform(0.8, 1.25) for name in ("lr", "batch_size"))
        return self.start(hparams).clip({**hparams, "lr": lr, "batch_size": batch_size})
