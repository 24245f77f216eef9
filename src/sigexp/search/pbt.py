"""Population based training: after every round the worst go on from the best, with explored hyperparameters.

M. Jaderberg et al., 'Population Based Training of Neural Networks', 2017, https://arxiv.org/abs/1711.09846: exploit by
truncation selection, explore by perturbing or resampling. All others train on as they are, weights and
hyperparameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sigexp.fields import did_you_mean
from sigexp.search.base import Candidate, HParams, Past, Round, Search, Start, divided

EXPLORE = ("perturb", "resample")


@dataclass(frozen=True, kw_only=True)
class PBT(Search):
    """Fields beside those of every search.

    quantile: share of the members, at least one of two, that is replaced from as many of the best after a round.
    explore: 'perturb' multiplies learning rate and batch size each by one of `factors`, 'resample' draws both anew as
    `search=random` does. min_rounds: rounds are shortened below `round_samples` so far that the budget holds so many.
    Raises ValueError for what cannot work.
    """

    unused: ClassVar[tuple[str, ...]] = ("survivors", "initial_samples")

    quantile: float = 0.25
    explore: str = "perturb"
    factors: tuple[float, float] = (0.8, 1.25)
    min_rounds: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"search.quantile={self.quantile}: expected a number above 0, at most 0.5")
        if self.explore not in EXPLORE:
            raise ValueError(f"search.explore={self.explore}: unknown{did_you_mean(self.explore, EXPLORE)}")
        if not 0 < min(self.factors) <= max(self.factors) < np.inf:
            raise ValueError(f"search.factors={list(self.factors)}: expected two positive numbers")
        if self.min_rounds < 1:
            raise ValueError(f"search.min_rounds={self.min_rounds}: expected a whole number of at least 1")

    def intervals(self) -> list[int]:
        """Samples of a member before each decision, and after the last one."""
        return divided(self.max_samples // self.members, self.round_samples, self.min_rounds)

    def first(self, start: Start, rng: np.random.Generator) -> Round:
        return Round([None] * self.members, self.spread(start), self.intervals()[0])

    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        count = len(past[-1])
        order = self.healthy(candidates, rng, past)
        cut = min(max(1, round(self.quantile * count)), count // 2)
        top, going_on = order[: max(1, cut)], set(order[: count - cut])
        parents = [i if i in going_on else int(rng.choice(top)) for i in range(count)]
        inherited = [candidates[parent].hparams for parent in parents]
        hparams = [h if i in going_on else self.explored(h, start, rng) for i, h in enumerate(inherited)]
        intervals = self.intervals()
        samples = intervals[min(len(past), len(intervals) - 1)]
        return Round(list(parents), hparams, samples, keep=order[:1])  # for a round in which all diverge

    def explored(self, hparams: HParams, start: Start, rng: np.random.Generator) -> HParams:
        if self.explore == "resample":
            return self.drawn(start, rng.random(2))
        changed = {name: hparams[name] * float(rng.choice(self.factors)) for name in ("lr", "batch_size")}
        return start.clip({**hparams, **changed})
