"""The numbers of small models in one line, to be updated in a few operations: starting them is what takes the time."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sigexp.population.optimizers import LARGE, SLOTS, update

if TYPE_CHECKING:
    from sigexp.population.state import State


@dataclass
class Flat:
    """All parameters of all members in one line, and the optimizer's state likewise; those in `State` are views of it.

    tensors: params and slots -> [numbers]. owner: [numbers] int64, whose number it is.
    """

    tensors: dict[str, Tensor]
    owner: Tensor

    @classmethod
    def of(cls, state: "State", slots: Collection[str]) -> "Flat | None":
        """Replaces the tensors in `state` by views; None for large models, which gain nothing, and for mixed types."""
        names = [name.removeprefix("params/") for name in state if name.startswith("params/")]
        params = [state[f"params/{name}"] for name in names]
        if sum(param[0].numel() for param in params) >= LARGE or len({param.dtype for param in params}) != 1:
            return None
        kinds = ("params", *slots)
        tensors = {kind: torch.cat([state[f"{kind}/{name}"].flatten() for name in names]) for kind in kinds}
        for kind, line in tensors.items():
            for name, part in zip(names, line.split([param.numel() for param in params]), strict=True):
                state[f"{kind}/{name}"] = part.view(state[f"{kind}/{name}"].shape)
        count = len(params[0])
        members = torch.arange(count, device=params[0].device)
        return cls(tensors, torch.cat([members.repeat_interleave(param.numel() // count) for param in params]))


def advance(optimizer: str, kinds: int, *tensors: Tensor) -> list[Tensor]:
    """Update in place what `Flat` has, `step` and `alive`; of members whose turn it is, if that is given. Their losses,
    [P].

    tensors: as many lines as there are kinds; step, alive [P]; gradients in a line; losses [P]; owner; learning rate,
    momentum and weight decay in lines; the schedule's factors [P]; turn [P] bool, or nothing.
    """
    lines, (step, alive, grad, losses, owner, lr, momentum, decay, scales, *turn) = tensors[:kinds], tensors[kinds:]
    before = [line.clone() for line in lines] if turn else []
    hparams = {"lr": lr * scales.index_select(0, owner), "momentum": momentum, "weight_decay": decay}
    slots = {slot: [line] for slot, line in zip(SLOTS[optimizer], lines[1:], strict=True)}
    update(optimizer, [lines[0]], [grad], slots, step.index_select(0, owner), hparams)
    losses = torch.where(alive, losses, torch.nan)
    if not turn:
        step += 1
        alive &= losses.isfinite()
        return [losses]
    theirs = turn[0].index_select(0, owner)
    for line, old in zip(lines, before, strict=True):
        line.copy_(torch.where(theirs, line, old))
    step += turn[0]
    alive &= losses.isfinite() | ~turn[0]
    return [losses]
