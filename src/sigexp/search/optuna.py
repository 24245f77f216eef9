"""Optuna proposes the hyperparameters of whole rounds, by TPE or CMA-ES, for members that go on from the best.

T. Akiba et al., 'Optuna: A Next-generation Hyperparameter Optimization Framework', 2019,
https://arxiv.org/abs/1907.10902. A trial is one member for one round. Trials that began anew would each have a
hundredth of the budget; here they inherit weights, so that a trial is judged by what its round gained: the logarithm of
its score over its parent's, less the round's median, because gains shrink as training goes on.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from sigexp.fields import did_you_mean
from sigexp.search.base import Candidate, HParams, Past, Round, Search, Start, divided, latin

RECENT = 25  # rounds that TPE learns from: what is best changes as training goes on
SAMPLERS = {"tpe": "optuna", "cmaes": "cmaes"}  # and the package it needs


class Range(NamedTuple):
    """Where a hyperparameter may lie. whole: it is a whole number. log: its logarithm is what is uniform."""

    low: float
    high: float
    log: bool = True
    whole: bool = False

    def at(self, share: float) -> float:
        """The value at a share 0..1 of the range."""
        value = self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share
        return self.inside(value)

    def inside(self, value: float) -> float:
        """The value, or what is nearest to it in the range."""
        value = min(max(round(value) if self.whole else value, self.low), self.high)
        return int(value) if self.whole else float(value)

    def share(self, value: float) -> float:
        """Where a value lies in the range, 0..1; the middle of a range of one value."""
        if self.low == self.high:
            return 0.5
        value = self.inside(value)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class Optuna(Search):
    """Fields beside those of every search.

    sampler: tpe or cmaes. momentum_range, weight_decay_range: where these may lie; null leaves them as the trainer has
    them. min_rounds: rounds are shortened so far that the budget holds so many. Learning rates lie within `lr_decades`
    of the trainer's, batch sizes within a factor of 2. The first round has all members, later ones twice the
    survivors: the best goes on as it is, the others from the survivors as proposed.

    Raises ValueError for what cannot work, and where a package is missing.
    """

    sampler: str = "tpe"
    min_rounds: int = 10
    momentum_range: tuple[float, float] | None = None
    weight_decay_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"search.sampler={self.sampler}: unknown{did_you_mean(self.sampler, SAMPLERS)}")
        if find_spec(SAMPLERS[self.sampler]) is None:
            needed = f"search=optuna with search.sampler={self.sampler} needs {SAMPLERS[self.sampler]}"
            raise ValueError(f"{needed}: pip install 'sigexp[optuna]'")
        if self.min_rounds < 1:
            raise ValueError(f"search.min_rounds={self.min_rounds}: expected a whole number of at least 1")
        momentum, decay = self.momentum_range, self.weight_decay_range
        if momentum is not None and not 0 <= momentum[0] <= momentum[1] < 1:
            raise ValueError(f"search.momentum_range={list(momentum)}: expected two numbers in 0..1 below 1, in order")
        if decay is not None and not 0 < decay[0] <= decay[1] < math.inf:
            raise ValueError(f"search.weight_decay_range={list(decay)}: expected two positive numbers, in order")

    def space(self, start: Start) -> dict[str, Range]:
        lr, batch_size = start.hparams["lr"], start.hparams["batch_size"]
        ends = [10.0**-self.lr_decades, 10.0**self.lr_decades]
        rates = np.clip([lr * end for end in ends], *start.lr_range)
        sizes = np.clip([round(batch_size / 2), round(batch_size * 2)], *start.batch_range)
        found = {
            "lr": Range(float(rates[0]), float(rates[1])),
            "batch_size": Range(float(sizes[0]), float(sizes[1]), whole=True),
        }
        if self.momentum_range is not None:
            found["momentum"] = Range(*self.momentum_range, log=False)
        if self.weight_decay_range is not None:
            found["weight_decay"] = Range(*self.weight_decay_range)
        return found

    def plan(self) -> list[tuple[int, int]]:
        """Members and samples of each round."""
        initial = max(1, min(self.initial_samples, self.max_samples // (self.members * self.min_rounds)))
        members = 2 * self.survivors
        each = (self.max_samples - self.members * initial) // members
        return [(self.members, initial)] + [
            (members, samples) for samples in divided(each, self.round_samples, self.min_rounds - 1)
        ]

    def first(self, start: Start, rng: np.random.Generator) -> Round:
        space = self.space(start)
        points = latin(self.members, len(space), rng)
        drawn = [{name: r.at(share) for (name, r), share in zip(space.items(), p, strict=True)} for p in points]
        return Round([None] * self.members, [merged(start.hparams, one, start) for one in drawn], self.plan()[0][1])

    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        plan = self.plan()
        members, samples = plan[min(len(past), len(plan) - 1)]
        best = self.ranked(candidates, rng)[: self.survivors]
        parents = [best[i % len(best)] for i in range(members)]
        inherited = [candidates[i].hparams for i in parents]
        propose = self.by_tpe if self.sampler == "tpe" else self.by_cmaes
        proposals = propose(members - 1, rng, past, start)
        hparams = [merged(h, one, start) for h, one in zip(inherited[1:], proposals, strict=True)]
        return Round(list(parents), [inherited[0], *hparams], samples, keep=best)

    def by_tpe(self, count: int, rng: np.random.Generator, past: Past, start: Start) -> list[HParams]:
        import optuna

        seed = int(rng.integers(2**31))
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.members, multivariate=True)
        ranges = self.space(start)
        space = distributions(ranges)
        with quiet():
            study = optuna.create_study(sampler=sampler)
            for trained, values in list(zip(past, gains(past), strict=True))[-RECENT:]:
                # What was trained with may lie outside: batch sizes are rounded, and cut to short rounds.
                params = [{name: r.inside(c.hparams[name]) for name, r in ranges.items()} for c in trained]
                study.add_trials(
                    optuna.trial.create_trial(params=one, distributions=space, value=value)
                    for one, value in zip(params, values, strict=True)
                )
            return [study.ask(space).params for _ in range(count)]

    def by_cmaes(self, count: int, rng: np.random.Generator, past: Past, start: Start) -> list[HParams]:
        """By the package that Optuna's sampler is made of, told of all proposals at once: Optuna would go through every
        question and answer again, which takes seconds where there are many."""
        import cmaes

        space = self.space(start)
        points = [np.array([[r.share(c.hparams[name]) for name, r in space.items()] for c in one]) for one in past]
        first = points[0][int(np.argmin([c.score for c in past[0]]))]
        sampler = cmaes.CMA(
            mean=first, sigma=0.3, bounds=np.tile([0.0, 1.0], (len(space), 1)), seed=int(rng.integers(2**31))
        )
        told = [
            pair
            for where, values in zip(points[1:], gains(past)[1:], strict=True)
            for pair in zip(where[1:], values[1:], strict=True)
        ]
        size = sampler.population_size
        for at in range(0, len(told) - size + 1, size):
            sampler.tell(told[at : at + size])
        return [
            {name: r.at(share) for (name, r), share in zip(space.items(), sampler.ask(), strict=True)}
            for _ in range(count)
        ]


def merged(inherited: HParams, proposed: HParams, start: Start) -> HParams:
    return start.clip({**inherited, **proposed})


def gains(past: Past) -> list[list[float]]:
    """What every trial gained, lower is better; one that diverged stands behind the worst of its round."""
    positive = all(candidate.score > 0 for trained in past for candidate in trained)
    level = math.log if positive else float
    before: dict[int | None, float] = {None: 0.0}
    found = []
    for trained in past:
        before |= {c.id: level(c.score) for c in trained}
        values = np.array([before[c.id] - before[c.parent] for c in trained])
        healthy = values[np.isfinite(values)]
        middle, worst = (np.median(healthy), healthy.max()) if len(healthy) else (0.0, 0.0)
        found.append([float(v - middle) for v in np.where(np.isfinite(values), values, worst + 1)])
    return found


def distributions(space: dict[str, Range]) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution, IntDistribution

    return {
        name: IntDistribution(int(r.low), int(r.high), log=r.log)
        if r.whole
        else FloatDistribution(r.low, r.high, log=r.log)
        for name, r in space.items()
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's own log only from warnings on: it tells of every study and every trial."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
