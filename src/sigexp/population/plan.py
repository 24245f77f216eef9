"""How a population is computed: the choices that change the speed and the last bits of a run, and nothing else."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

WAYS = ("together", "one by one", "moments")


@dataclass(frozen=True)
class Plan:
    """With the same plan, a run on a CPU repeats bit for bit.

    way: 'together' is one pass for all members (together.py), 'one by one' the library's operations member by member,
        'moments' second-order statistics instead of examples (moments.py).
    channels_last: memory layout of images and kernels, for 'one by one'.
    slice: examples in one pass, so that activations stay in the cache or in memory; None takes the minibatch whole.
    padded: each member takes its own next minibatch in a pass, also where batch sizes differ (padded.py); else a pass
        ends where a minibatch of any member does.
    shards: parts of the population that are computed apart from each other, each on `threads` threads.
    processes: that carry them; their number changes no bit.
    kernels: which algorithm each layer takes, for 'together'.
    """

    way: str = "one by one"
    channels_last: bool = False
    slice: int | None = None
    padded: bool = False
    shards: int = 1
    processes: int = 1
    threads: int = 1
    kernels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"way {self.way!r}: expected one of {', '.join(WAYS)}")

    def divided(self, parts: int) -> "Plan":
        """The same in so many parts at least, each on a thread."""
        return self if self.shards >= parts else replace(self, shards=parts, processes=parts, threads=1)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        parts = [self.way, *["channels_last"] * self.channels_last]
        parts += [f"{self.slice} examples a pass"] if self.slice else []
        parts += ["minibatches padded"] if self.padded else []
        parts += [f"{self.shards} parts"] if self.shards > 1 else []
        number = self.processes * self.threads
        carriers = "processes" if self.processes > 1 else "threads" if number > 1 else "thread"
        return ", ".join([*parts, f"{number} {carriers}"])


@dataclass(frozen=True)
class Wanted:
    """What the trainer's settings leave open, and the extent of the run.

    execution: auto, together, sequential or moments. processes: a number, or None for what is quicker. threads: of the
    arithmetic in all. memory_limit: bytes for the activations of a pass, or None for half of what is free.
    samples: member-samples of the whole run. members: that train for most of it.
    """

    execution: str = "auto"
    processes: int | None = None
    threads: int = 1
    memory_limit: int | None = None
    samples: int = 100_000
    members: int = 8
