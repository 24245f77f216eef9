"""Members as tensors that lead with P, parameters, optimizer state and all: chosen, and put together."""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sigexp.population.plan import Plan

State = dict[str, Tensor]
HPARAMS = ("lr", "momentum", "weight_decay", "batch_size")


def initial(
    members: Sequence[nn.Module], hparams: Mapping[str, Tensor], slots: Sequence[str], device: torch.device
) -> State:
    """The state of modules before any training. slots: state tensors of the optimizer, shaped like a parameter."""
    state: State = {}
    learned = {name for name, parameter in members[0].named_parameters() if parameter.requires_grad}
    by_member = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in members]
    for name in by_member[0]:
        kind = "params" if name in learned else "buffers"
        state[f"{kind}/{name}"] = torch.stack([t[name].detach() for t in by_member]).to(device)
    for name in learned:
        for slot in slots:
            state[f"{slot}/{name}"] = torch.zeros_like(state[f"params/{name}"])
    count = len(members)
    state["step"] = torch.zeros(count, device=device)
    state["alive"] = torch.ones(count, dtype=torch.bool, device=device)
    for name in HPARAMS:
        dtype = torch.int64 if name == "batch_size" else torch.float64
        state[f"hparams/{name}"] = hparams[name].to(dtype).clone()
    return state


def take(state: Mapping[str, Tensor], members: Tensor) -> State:
    """The members [Q] int64 of a state, in that order, as copies."""
    return {name: tensor[members.to(tensor.device)] for name, tensor in state.items()}


def join(*states: Mapping[str, Tensor]) -> State:
    """The members of several states as one, where the first is: those of a checkpoint come on the CPU."""
    return {name: torch.cat([state[name].to(tensor.device) for state in states]) for name, tensor in states[0].items()}


class Snapshot(NamedTuple):
    """All that the future of a population depends on, between two calls of `advance`.

    unfinished, plans: of every part of it that is computed by itself; minibatches not yet full, and random numbers.
    """

    members: State
    unfinished: list[State]
    plans: list[Plan]


def module_of(template: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The only member of a state as a module of its own, in evaluation mode and the usual memory layout."""
    member = copy.deepcopy(template)
    with torch.no_grad():
        for name, tensor in [*member.named_parameters(), *member.named_buffers()]:
            kind = "params" if tensor.requires_grad else "buffers"
            tensor.copy_(state[f"{kind}/{name}"][0])
    return member.eval()
