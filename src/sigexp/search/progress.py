"""A search under way, as tensors and plain values: what a checkpoint holds, and what a search goes on from.

What is read back may come from a damaged or a stranger's file: `decode` takes nothing that the search could not have
written.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigexp.population.plan import Plan
from sigexp.population.state import HPARAMS, Snapshot, State
from sigexp.search.base import Candidate, HParams, Recorded, Round
from sigexp.search.records import MemberRecord

RECENT = 100  # minibatch losses of a member that are averaged


@dataclass(frozen=True)
class Progress:
    """Where a search is.

    round: the one under way, and `done`: how many samples of it every member has learned from. candidates: the pool
    that it came from. lineage: samples behind every candidate's id.
    kept: of the pool, `round.keep`. losses: of every member, the last minibatches of the round. snapshot: of the
    population; None where it lives elsewhere or the search has `stopped`. best, best_state: of the search so far.
    """

    round: Round
    candidates: list[Candidate] = field(default_factory=list)
    lineage: dict[int, int] = field(default_factory=dict)
    number: int = 0  # rounds finished
    done: int = 0
    waited: int = 0  # rounds without improvement
    total: int = 0  # member-samples of the rounds finished
    position: int = 0  # in the training data
    next_id: int = 0
    train_seconds: float = 0.0
    round_seconds: float = 0.0
    best: MemberRecord | None = None
    stopped: str | None = None
    rng: Mapping[str, Any] = field(default_factory=dict)
    kept: State = field(default_factory=dict)
    best_state: State = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    snapshot: Snapshot | None = None

    def seen(self) -> int:
        """Member-samples so far."""
        return self.total + (self.done * len(self.round.parents) if self.stopped is None else 0)


PLAIN = ("number", "done", "waited", "total", "position", "next_id", "train_seconds", "round_seconds", "stopped", "rng")


def encode(now: Progress) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and values for JSON. Losses that are not finite become null there."""
    tensors = {f"best/{name}": tensor for name, tensor in now.best_state.items()}
    data: dict[str, Any] = {name: getattr(now, name) for name in PLAIN}
    data |= {
        "best": now.best and asdict(now.best),
        "candidates": [asdict(one) for one in now.candidates],
        "lineage": [[id_, samples] for id_, samples in now.lineage.items()],
        "round": asdict(now.round),
        "plans": [],
    }
    if now.snapshot is not None and now.stopped is None:
        data["plans"] = [plan.as_dict() for plan in now.snapshot.plans]
        tensors |= {f"members/{name}": tensor for name, tensor in now.snapshot.members.items()}
        tensors |= {f"kept/{name}": tensor for name, tensor in now.kept.items()}
        tensors |= {f"losses/{p}": values for p, values in enumerate(now.losses)}
        for part, state in enumerate(now.snapshot.unfinished):
            tensors |= {f"unfinished/{part}/{name}": tensor for name, tensor in state.items()}
    return tensors, data


def below(tensors: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def decode(tensors: Mapping[str, Tensor], data: Mapping[str, Any], like: Mapping[str, Tensor]) -> Progress:
    """What `encode` made. like: the state of a population of the same model, whose names, shapes and types it must
    have. Raises ValueError for what is not of this search."""
    try:
        return _decoded(tensors, data, like)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error


def _decoded(tensors: Mapping[str, Tensor], data: Mapping[str, Any], like: Mapping[str, Tensor]) -> Progress:
    plain = {name: data[name] for name in PLAIN}
    for name, value in plain.items():
        if name not in ("stopped", "rng") and not (isinstance(value, (int, float)) and 0 <= value < 2**53):
            raise ValueError(f"{name} is {value!r:.40}")
    if not isinstance(plain["stopped"], str | None):
        raise ValueError("stopped")
    np.random.default_rng(0).bit_generator.state = plain["rng"]  # refuses what is none
    candidates = [candidate(one) for one in data["candidates"]]
    now = Progress(
        round=round_of(data["round"], len(candidates)),
        candidates=candidates,
        lineage={int(id_): int(samples) for id_, samples in data["lineage"]},
        best=member(data["best"]) if data["best"] else None,
        best_state=matching(below(tensors, "best"), like, 1) if data["best"] else {},
        **plain,
    )
    if not {one.id for one in candidates} <= now.lineage.keys():
        raise ValueError("lineage")
    if now.stopped is not None:
        if now.best is None:
            raise ValueError("no best member")
        return now
    count = len(now.round.parents)
    plans = [plan_of(one) for one in data["plans"]]
    unfinished = [below(tensors, f"unfinished/{part}") for part in range(len(plans))]
    if not plans or not all("random" in state for state in unfinished) or now.done > now.round.samples:
        raise ValueError("parts of the population")
    return replace(
        now,
        kept=matching(below(tensors, "kept"), like, len(now.round.keep)) if now.round.keep else {},
        losses=[tensors[f"losses/{p}"] for p in range(count)],
        snapshot=Snapshot(matching(below(tensors, "members"), like, count), unfinished, plans),
    )


def matching(state: State, like: Mapping[str, Tensor], count: int) -> State:
    """The state, where it is that of `count` members like those of `like`."""
    if state.keys() != like.keys():
        raise ValueError(f"other parameters: {', '.join(sorted(state.keys() ^ like.keys())[:2])}")
    for name, tensor in state.items():
        if tensor.shape != (count, *like[name].shape[1:]) or tensor.dtype != like[name].dtype:
            raise ValueError(f"{name}: {tensor.dtype} {list(tensor.shape)}")
    return state


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no number")
    return value


def whole(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**53:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def hparams_of(found: Mapping[str, Any]) -> HParams:
    if found.keys() != set(HPARAMS) or not found["lr"] > 0 or whole(int(found["batch_size"]), 1) > 2**31:
        raise ValueError(f"hyperparameters {found!s:.60}")
    return {str(name): number(value) for name, value in found.items()}


def candidate(found: Mapping[str, Any]) -> Candidate:
    score = math.inf if found["score"] is None else number(found["score"])
    parent = None if found["parent"] is None else whole(found["parent"])
    return Candidate(whole(found["id"]), hparams_of(found["hparams"]), score, parent)


def member(found: Mapping[str, Any]) -> MemberRecord:
    losses: dict[str, Any] = {name: number(found[name]) for name in ("train_loss", "valid_loss", "valid")}
    parent = None if found["parent"] is None else whole(found["parent"])
    counts = {name: whole(found[name]) for name in ("round", "id", "samples")}
    return MemberRecord(parent=parent, hparams=hparams_of(found["hparams"]), diverged=False, **counts, **losses)


def round_of(found: Mapping[str, Any], pool: int) -> Round:
    parents = [None if one is None else whole(one) for one in found["parents"]]
    keep = [whole(one) for one in found["keep"]]
    if not parents or not all(one is None or one < pool for one in [*parents, *keep]):
        raise ValueError("parents")
    recorded = None
    if found["recorded"] is not None:
        first, last = found["recorded"]["progress"]
        recorded = Recorded(whole(found["recorded"]["position"]), (number(first), number(last)))
    hparams = [hparams_of(one) for one in found["hparams"]]
    if len(hparams) != len(parents):
        raise ValueError("hyperparameters")
    return Round(parents, hparams, whole(found["samples"], 1), keep, recorded)


def plan_of(found: Mapping[str, Any]) -> Plan:
    """A plan out of its `as_dict`. Raises ValueError or TypeError for anything else."""
    counts: Sequence[str] = ("shards", "processes", "threads")
    if any(whole(found[name], 1) > 4096 for name in counts):
        raise ValueError("plan")
    if found["slice"] is not None:
        whole(found["slice"], 1)
    if not isinstance(found["channels_last"], bool) or not all(isinstance(k, str) for k in found["kernels"].values()):
        raise ValueError("plan")
    return Plan(**found)


def recent(losses: Sequence[Tensor]) -> Tensor:
    """The last minibatch losses of a member: at most RECENT."""
    return torch.cat(list(losses))[-RECENT:] if losses else torch.empty(0)
