"""What all sides are given: the problem, the budget, the search's ranges, and the examples as arrays."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 12  # after which members are scored, of pbt and random
HALVING_PARTS = 27  # 9 members for one part, 3 for 3, 1 for 9
UNIT = 216  # budgets are multiples of it: both 6 x ROUNDS and HALVING_PARTS divide it


@dataclass(frozen=True)
class Case:
    """A problem. samples: member-samples of a search, three minutes of the slowest peer on two cores of a server.
    layers: whose convolutions the peers take, torch's or those of sigexp's conf where they are others. selection: the
    loss by which a search chooses, as conf/tune has it."""

    words: tuple[str, ...]
    samples: int
    layers: tuple[str, ...] = ("torch",)
    selection: str = "valid"


CASES = {
    "gaussian": Case(("experiment=gaussian", "model=linear"), 2_400 * UNIT, ("torch", "sigexp")),
    "bayer": Case(("experiment=bayer", "model=linear"), 25_000 * UNIT, selection="train"),
    "spikes": Case(("experiment=spikes", "model=seqlstm"), 7_400 * UNIT),
}


@dataclass(frozen=True)
class Peer:
    """A tool, and the searches of sigexp that are nearest to what it does."""

    title: str
    searches: tuple[str, ...]


PEERS = {
    "ray": Peer("Ray Tune, PBT", ("pbt",)),
    "optuna": Peer("Optuna, pruned", ("halving", "automlp")),
    "joblib": Peer("Hydra, joblib", ("random",)),
}


@dataclass(frozen=True)
class Arrangement:
    """How a peer computes."""

    workers: int = 1
    threads: int = 1
    channels_last: bool = False

    def __str__(self) -> str:
        layout = ", channels_last" if self.channels_last else ""
        return f"{self.workers} x {self.threads} thread{'s' * (self.threads > 1)}{layout}"


@dataclass(frozen=True)
class Spec:
    """One run. side: a peer, 'probe', or a search of sigexp. extra: settings of every side."""

    problem: str
    side: str
    seed: int
    samples: int
    layers: str = ""
    arrangement: Arrangement = field(default_factory=Arrangement)
    extra: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Spec":
        """Out of `as_dict`."""
        return cls(**{**found, "arrangement": Arrangement(**found["arrangement"]), "extra": tuple(found["extra"])})

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "extra": list(self.extra)}

    @property
    def search(self) -> str:
        """The search of sigexp that it is, or whose ranges and members it has."""
        return PEERS[self.side].searches[0] if self.side in PEERS else self.side.replace("probe", "random")

    def members(self) -> int:
        return 9 if self.search == "halving" else 6

    def round_samples(self) -> int:
        """Samples of a member between two scores."""
        parts = HALVING_PARTS if self.search == "halving" else self.members() * ROUNDS
        return max(1, self.samples // parts)

    def words(self) -> list[str]:
        """The settings, as on sigexp's command line."""
        words = [
            *CASES[self.problem].words, f"search={self.search}", f"seed={self.seed}", f"dataset.seed={self.seed}",
            f"search.members={self.members()}", "search.survivors=1", f"search.max_samples={self.samples}",
            f"search.round_samples={self.round_samples()}", f"search.initial_samples={self.round_samples()}",
            f"search.selection={CASES[self.problem].selection}", "search.patience=null", "device=cpu",
        ]  # fmt: skip
        words += [f"search.min_rounds={ROUNDS}"] if self.search == "pbt" else []
        return [*words, *self.extra]


Arrays = Mapping[str, np.ndarray]  # inputs, targets, valid_inputs, valid_targets


def draw(config: Mapping[str, Any]) -> tuple[Any, Arrays]:
    """The problem of a config, and its examples for training and validation."""
    from sigexp import training

    problem = training.build_problem(config)
    train = problem.examples("train")
    valid = problem.examples("valid", 0, min(problem.sizes["valid"] or 0, config["search"]["valid_samples"]))
    names = ("inputs", "targets", "valid_inputs", "valid_targets")
    return problem, {name: part.numpy() for name, part in zip(names, (*train, *valid), strict=True)}


def save(arrays: Arrays, folder: Path) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def mapped(folder: Path) -> Arrays:
    """What `save` wrote, in memory that processes share as long as they only read it."""
    return {path.stem: np.load(path, mmap_mode="c") for path in folder.glob("*.npy")}
