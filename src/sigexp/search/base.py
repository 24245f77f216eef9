"""A search proposes rounds of training: which members go on from which, with which hyperparameters.

It sees members as numbered candidates with a score (lower is better) and never their weights, so one loop carries
every search, and a search can be resumed from its random generator and its candidates.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

PATIENCE = 12  # rounds
HParams = dict[str, float]  # lr, momentum, weight_decay, batch_size of one member


@dataclass(frozen=True)
class Candidate:
    """A member at the end of a round. `score` is infinite where it diverged. `parent` is the id of the candidate that
    it went on from, None where it began with fresh weights."""

    id: int
    hparams: HParams
    score: float
    parent: int | None = None


Past = Sequence[Sequence[Candidate]]  # of every finished round, the candidates that it trained, in their order


@dataclass(frozen=True)
class Round:
    """What to train next.

    parents: index into the candidates for every member; None, in the first round, starts from fresh weights.
    samples: for every member of the round. keep: candidates that stay in the pool untrained. recorded: what was so in
    an earlier run, whose round this one repeats.
    """

    parents: list[int | None]
    hparams: list[HParams]
    samples: int
    keep: list[int] = field(default_factory=list)
    recorded: "Recorded | None" = None


@dataclass(frozen=True)
class Recorded:
    """Where a round stood in its own run: its first example, its first and last share (0..1) of the budget."""

    position: int
    progress: tuple[float, float]


@dataclass(frozen=True)
class Start:
    """What every search begins with: the trainer's hyperparameters and the ranges they may move in."""

    hparams: HParams
    lr_range: tuple[float, float]
    batch_range: tuple[int, int]

    def clip(self, hparams: HParams) -> HParams:
        lr = float(np.clip(hparams["lr"], *self.lr_range))
        return {**hparams, "lr": lr, "batch_size": int(np.clip(round(hparams["batch_size"]), *self.batch_range))}


def latin(count: int, fields: int, rng: np.random.Generator) -> np.ndarray:
    """Points of the unit cube, [count, fields]: in each field one in every `count`-th part of 0..1, drawn within."""
    return np.stack([(rng.permutation(count) + rng.random(count)) / count for _ in range(fields)], 1)


def divided(total: int, most: int, least: int = 1) -> list[int]:
    """A number as a sum of nearly equal whole ones of at most `most`, at least `least` of them where that can be."""
    count = max(1, min(total, max(least, -(-total // most))))
    return [total // count + (i < total % count) for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class Search(ABC):
    """A search, as the fields of `conf/search/*.yaml`; `sigexp.config.Search` gives their meaning and defaults.

    unused: those that it has no use for, so that setting one of them is no mistake that goes unseen.
    """

    unused: ClassVar[tuple[str, ...]] = ()

    members: int
    survivors: int
    initial_samples: int
    round_samples: int
    max_samples: int
    lr_decades: float
    lr_min: float
    lr_max: float
    batch_min: int
    batch_max: int
    valid_samples: int
    selection: str
    selection_noise: float
    patience: int | str | None
    min_improvement: float

    def rounds_to_wait(self, schedule: str) -> int | None:
        """Rounds without improvement that end the search; None: it uses its whole budget.

        Under a schedule `auto` waits for ever: a loss may stand still while the learning rate is high, and what
        the schedule is for comes at its end.
        """
        if self.patience == "auto":
            return PATIENCE if schedule == "constant" else None
        assert not isinstance(self.patience, str)
        return self.patience

    def first_samples(self) -> int:
        """Samples for each initial member: together at most half of the budget."""
        return max(1, min(self.initial_samples, self.max_samples // (2 * self.members)))

    def origin(self, member: int) -> int:
        """The number by which an initial member's random weights are drawn."""
        return member

    def start(self, hparams: HParams) -> Start:
        return Start(hparams, (self.lr_min, self.lr_max), (self.batch_min, self.batch_max))

    def learning_rates(self, lr: float) -> np.ndarray:
        """Initial learning rates, `lr_decades` to both sides of the trainer's: [members]."""
        return lr * 10 ** np.linspace(-self.lr_decades, self.lr_decades, self.members)

    def spread(self, start: Start) -> list[HParams]:
        """The members' initial hyperparameters: the trainer's, with learning rates to both sides of its own."""
        rates = self.learning_rates(start.hparams["lr"]) if self.members > 1 else [start.hparams["lr"]]
        return [start.clip({**start.hparams, "lr": float(lr)}) for lr in rates]

    def drawn(self, start: Start, shares: np.ndarray) -> HParams:
        """Learning rate within `lr_decades` of the trainer's and batch size within a factor of 2 of it, at two shares
        0..1 of these ranges' logarithms."""
        lr = start.hparams["lr"] * 10 ** float(self.lr_decades * (2 * shares[0] - 1))
        batch_size = start.hparams["batch_size"] * 2 ** float(2 * shares[1] - 1)
        return start.clip({**start.hparams, "lr": lr, "batch_size": batch_size})

    def mutate(self, hparams: HParams, start: Start, rng: np.random.Generator) -> HParams:
        """Learning rate and batch size times U(0.8, 1.25), inside their ranges."""
        lr, batch_size = (hparams[name] * rng.uniform(0.8, 1.25) for name in ("lr", "batch_size"))
        return start.clip({**hparams, "lr": lr, "batch_size": batch_size})

    def ranked(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> list[int]:
        """The candidates that are healthy, as indices, the best first; ties in their order."""
        noise = 1 + self.selection_noise * rng.standard_normal(len(candidates))
        scores = np.array([c.score for c in candidates]) * noise
        order = np.argsort(np.where(np.isfinite(scores), scores, np.inf), kind="stable")
        return [int(i) for i in order if np.isfinite(scores[i])]

    def healthy(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past) -> list[int]:
        """`ranked` of the last round's members; where all of them diverged, of those that were kept."""
        order = self.ranked(candidates, rng)
        return [i for i in order if i < len(past[-1])] or order

    @abstractmethod
    def first(self, start: Start, rng: np.random.Generator) -> Round:
        """The first round: its members start from fresh weights."""

    @abstractmethod
    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        """The round that follows; `None` ends the search. At least one candidate has a finite score.

        A pure function of its arguments, so that a search goes on from a checkpoint as it would have gone on without.
        """


def batch_step(batch_size: int) -> int:
    """What batch sizes are multiples of: a divisor of the trainer's, at most a fourth of it.

    Members with different batch sizes train together in passes that end where a minibatch does, and multiples of one
    number end at the same places.
    """
    return next(step for step in range(max(1, batch_size // 4), 0, -1) if batch_size % step == 0)
