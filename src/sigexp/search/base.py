"""A search proposes rounds of training: which members go on from which, with which hyperparameters.

It sees members as numbered candidates with a score (lower is better) and never their weights, so one loop carries
every search, and a search can be resumed from its random generator and its candidates.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

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


@dataclass(frozen=True, kw_only=True)
class Search(ABC):
    """A search, as the fields of `conf/search/*.yaml`; `sigexp.config.Search` gives their meaning and defaults."""

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
    patience: int | None
    min_improvement: float

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

    @abstractmethod
    def first(self, start: Start, rng: np.random.Generator) -> Round:
        """The first round: its members start from fresh weights."""

    @abstractmethod
    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        """The round that follows; `None` ends the search. At least one candidate has a finite score.

        A pure function of its arguments, so that a search goes on from a checkpoint as it would have gone on without.
        """
