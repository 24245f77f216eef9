"""Successive halving: many members, of which the best part trains on with as much of the budget as all before it.

K. Jamieson and A. Talwalkar, 'Non-stochastic Best Arm Identification and Hyperparameter Optimization', 2016,
https://arxiv.org/abs/1502.07943; a bracket of L. Li et al., 'Hyperband', 2018, https://arxiv.org/abs/1603.06560. Here
nobody begins anew: weights and optimizer state go from rung to rung.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sigexp.search.base import Candidate, Past, Round, Search, Start, divided, latin


@dataclass(frozen=True, kw_only=True)
class Halving(Search):
    """Fields beside those of every search.

    eta: after each rung the best of every `eta` members goes on, until one is left. Rungs have equal shares of
    max_samples, and are trained in rounds of at most `round_samples` a member. Raises ValueError for what cannot work.
    """

    unused: ClassVar[tuple[str, ...]] = ("survivors", "initial_samples")

    eta: int = 3

    def __post_init__(self) -> None:
        if self.eta < 2:
            raise ValueError(f"search.eta={self.eta}: expected a whole number of at least 2")

    def plan(self) -> list[tuple[int, int]]:
        """Members and samples of each round; together exactly max_samples member-samples."""
        sizes = [self.members]
        while sizes[-1] > 1:
            sizes.append(max(1, sizes[-1] // self.eta))
        rounds: list[tuple[int, int]] = []
        left = self.max_samples
        for number, members in enumerate(sizes):
            each = max(1, left // (len(sizes) - number) // members)
            if left < members:  # of a budget of hardly a sample for each
                continue
            rounds += [(members, samples) for samples in divided(each, self.round_samples)]
            left -= each * members
        return rounds

    def first(self, start: Start, rng: np.random.Generator) -> Round:
        hparams = [self.drawn(start, shares) for shares in latin(self.members, 2, rng)]
        return Round([None] * self.members, hparams, self.plan()[0][1])

    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        plan = self.plan()
        members, samples = plan[min(len(past), len(plan) - 1)]
        best = self.healthy(candidates, rng, past)[:members]
        # The places of the diverged are taken by mutated copies of the best; where none is left, of the one kept.
        parents = [best[i % len(best)] for i in range(members)]
        same = [i for i in best if i < len(past[-1])]
        hparams = [candidates[i].hparams for i in same]
        hparams += [self.mutate(candidates[i].hparams, start, rng) for i in parents[len(same) :]]
        return Round(list(parents), hparams, samples, keep=best[:1])
