"""What of a population waits between two calls of `advance`, member by member: cut apart, and put together.

The members of a state have advanced over the same examples, by the same way: `AllAtOnce`, `Padded` or `OneByOne`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sigexp.population.state import State

WAITING = "waiting/"


def split(unfinished: Mapping[str, Tensor], count: int) -> list[State]:
    """What each of `count` members would have alone, without random numbers."""
    if "seen" not in unfinished:
        return [{} for _ in range(count)]
    if unfinished["seen"].ndim:  # of `OneByOne`
        return [_alone(unfinished, p) for p in range(count)]
    shared = {name: t for name, t in unfinished.items() if name in ("seen", "used") or name.startswith(WAITING)}
    rows = {name: t for name, t in unfinished.items() if name not in shared and not name.startswith("random")}
    return [shared | {name: t[p : p + 1].clone() for name, t in rows.items()} for p in range(count)]


def _alone(unfinished: Mapping[str, Tensor], p: int) -> State:
    own = f"{WAITING}{p}/"
    waits = {f"{WAITING}0/{name.removeprefix(own)}": t for name, t in unfinished.items() if name.startswith(own)}
    return {"seen": unfinished["seen"][p : p + 1].clone(), **waits}


def merge(members: Sequence[Mapping[str, Tensor]]) -> State:
    """What members have together of whom each has what `split` gave."""
    first = max(members, key=len)
    if "seen" not in first:
        return {}
    if first["seen"].ndim:
        waits = {
            f"{WAITING}{p}/{name.removeprefix(f'{WAITING}0/')}": t
            for p, member in enumerate(members)
            for name, t in member.items()
            if name.startswith(WAITING)
        }
        return {"seen": torch.cat([member["seen"] for member in members]), **waits}
    if "taken" in first:  # of `Padded`; who waits with the most examples has those of all
        first = min(members, key=lambda member: int(member["seen"]))
        taken = torch.cat([member["taken"] + member["seen"] - first["seen"] for member in members])
        return {**first, "taken": taken}
    shared = {name: t for name, t in first.items() if name in ("seen", "used") or name.startswith(WAITING)}
    # Who has just begun a minibatch may have no gradients, where others do.
    rows = {name: t for name, t in first.items() if name not in shared}
    return shared | {name: torch.cat([m.get(name, torch.zeros_like(t)) for m in members]) for name, t in rows.items()}


def advanced(unfinished: Mapping[str, Tensor]) -> int:
    """Over how many examples the members have gone."""
    if "seen" not in unfinished:
        return 0
    waits = unfinished.get(f"{WAITING}0/inputs", unfinished.get(f"{WAITING}inputs"))
    return int(unfinished["seen"].flatten()[0]) + (0 if waits is None else len(waits))
