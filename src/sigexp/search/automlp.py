"""AutoMLP: a population that trains, is thinned to its best, and continues beside mutated clones.

T. Breuel and F. Shafait, 'AutoMLP: Simple, Effective, Fully Automated Learning Rate and Size Adjustment', 2010.
A round trains the survivors and a clone of each with learning rate and batch size multiplied by U(0.8, 1.25). The
next survivors are the best of these and of the survivors as they were before the round, so the best is never lost.

The finish is not in that paper. While clones train, a line of members gets a part of the budget only, and what is
chosen after a round is what gained most in that round. So the best trains on alone with what is left.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sigexp.search.base import Candidate, Past, Round, Search, Start

log = logging.getLogger("sigexp")


@dataclass(frozen=True, kw_only=True)
class AutoMLP(Search):
    """Field beside those of every search.

    finish: part of max_samples, 0..1, that is left for the best member alone; 0 keeps survivors and clones to the end.
    The first round is trained in any case, and rounds of clones where they fit before it as a whole. Raises ValueError
    for another number.
    """

    finish: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.finish <= 1:
            raise ValueError(f"search.finish={self.finish}: expected a number from 0 to 1")

    def searching(self) -> int:
        """Rounds before the finish, at least one; more than there can be where there is none."""
        if self.finish == 0:
            return self.max_samples
        left = self.max_samples - self.members * self.first_samples()
        return 1 + max(0, int((left - self.finish * self.max_samples) / (2 * self.survivors * self.round_samples)))

    def first(self, start: Start, rng: np.random.Generator) -> Round:
        return Round([None] * self.members, self.spread(start), self.first_samples())

    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        best = self.ranked(candidates, rng)
        if len(past) >= self.searching():
            return self._alone(candidates, best, rng, past, start)
        best = best[: self.survivors]
        # Where fewer than `survivors` are healthy, the diverged are seeded anew from the best.
        parents = [best[i % len(best)] for i in range(self.survivors)]
        if len(best) < self.survivors:
            anew = ", ".join(str(candidates[i].id) for i in parents[len(best) :])
            log.warning("%d survivors diverged: seeded anew from members %s", self.survivors - len(best), anew)
        clones = [self.mutate(candidates[i].hparams, start, rng) for i in parents]
        hparams = [candidates[i].hparams for i in parents] + clones
        return Round([*parents, *parents], hparams, self.round_samples, keep=best)

    def _alone(
        self, candidates: Sequence[Candidate], best: Sequence[int], rng: np.random.Generator, past: Past, start: Start
    ) -> Round:
        """One round of the finish: the member that trained goes on, and the best so far is kept."""
        done = len(past) - self.searching()
        parent = 0 if done and 0 in best else best[0]
        hparams = candidates[parent].hparams
        if done and parent != 0:
            log.warning("the member that trains alone diverged: seeded anew from member %d", candidates[parent].id)
            hparams = self.mutate(hparams, start, rng)
        return Round([parent], [hparams], self.round_samples, keep=list(best[:1]))
