"""What a search says of itself: after every round, and at its end."""

from dataclasses import dataclass

from sigexp.population.state import State
from sigexp.search.base import HParams


class Diverged(RuntimeError):
    """Every member of the population has a loss that is not finite."""


@dataclass(frozen=True)
class MemberRecord:
    """One member at the end of one round; a line of rounds.jsonl."""

    round: int
    id: int
    parent: int | None
    hparams: HParams
    samples: int  # that this member's line has learned from
    train_loss: float  # mean of the last 100 minibatches
    valid_loss: float
    valid: float  # the headline metric on validation data
    diverged: bool


@dataclass(frozen=True)
class RoundRecord:
    round: int
    members: list[MemberRecord]
    total_samples: int  # member-samples of the search so far
    round_samples: int  # of this round
    seconds: float  # of training in this round
    best: MemberRecord  # of the whole search so far
    improved: bool
    best_state: State  # of that member, P = 1


@dataclass(frozen=True)
class Outcome:
    best: MemberRecord
    state: State  # of the best member, P = 1
    total_samples: int
    train_seconds: float
    rounds: int
    stopped: str  # why the search ended
