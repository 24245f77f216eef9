"""What a run would hold in memory, estimated before it is allocated.

Estimates are low: they refuse what cannot work, not what will be tight.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sigexp import machine
from sigexp.config import ConfigError
from sigexp.evaluation import CHUNK_VALUES
from sigexp.population.optimizers import SLOTS
from sigexp.problem import Problem

FLOAT_BYTES = 4
FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye})


def check_examples(config: Mapping[str, Any], problem: Problem, shapes: Sequence[Sequence[int]]) -> None:
    """Refuse a training set or a minibatch that the memory cannot hold; raises `TooHeavy`."""
    example = FLOAT_BYTES * (math.prod(shapes[0]) + (2 if problem.classes else math.prod(shapes[1])))
    batch = config["trainer"]["batch_size"]
    remedies = {
        "dataset.size": (problem.sizes["train"] or 0, "take fewer, or dataset.size=stream"),
        "trainer.batch_size": (batch, "take smaller minibatches"),
    }
    for name, (count, remedy) in remedies.items():
        what = f"{name}={count}: examples of {list(shapes[0])}"
        _refuse_beyond(count * example, "cpu", what, remedy)


class Allowance(TorchFunctionMode):
    """Counts the numbers of new tensors, and raises `TooLarge` before one is made that is more than there may be."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most, self.numbers = most, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in FACTORIES:
            sizes = (kwargs or {}).get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
            self.numbers += math.prod(size for size in sizes if isinstance(size, int))
            if self.numbers > self.most:
                raise TooLarge(self.numbers)
        return function(*args, **(kwargs or {}))


class TooLarge(Exception):
    """So many numbers, or more."""


class TooHeavy(ConfigError):
    """A setting that would take more memory than there is; another model would not help."""


@contextmanager
def building(name: str) -> Iterator[None]:
    """Where one member is built: raises `TooHeavy` before it takes more memory than there is."""
    free = machine.free_memory_bytes("cpu")
    try:
        with Allowance(free / FLOAT_BYTES):
            yield
    except TooLarge as reached:
        numbers = int(reached.args[0])
        what = f"model={name}: its {numbers:.3g} weights or more"
        raise TooHeavy(_short_of(what, FLOAT_BYTES * numbers, free, SMALLER)) from reached


SMALLER = "make it smaller (its model.* fields, or footprint)"


def check_members(
    config: Mapping[str, Any], model: nn.Module, shapes: Sequence[Sequence[int]], name: str, device: str
) -> None:
    """Refuse members that the memory cannot hold, in their number or size; raises `TooHeavy`.

    model: one member, built. shapes: of one input and one target.
    """
    numbers = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    members, optimizer = config["search"]["members"], config["trainer"]["optimizer"]
    # Weights, their gradients and the optimizer's state; and weights and state once more between rounds.
    each = FLOAT_BYTES * numbers * (3 + 2 * len(SLOTS[optimizer["name"]]))
    _refuse_beyond(each, device, f"model={name}: {numbers:,} weights with their gradients and state", SMALLER)
    what = f"search.members={members}: members of {numbers:,} weights each"
    _refuse_beyond(members * each, device, what, "take fewer, or a smaller model")
    free = machine.free_memory_bytes(device)
    examples = max(1, min(250, CHUNK_VALUES // math.prod(shapes[0])))  # that are evaluated at once
    if FLOAT_BYTES * examples * widest(model, shapes[0]) > free:
        needed = FLOAT_BYTES * examples * largest_layer(model, shapes[0])
        what = f"model={name}: what its largest layer makes of {examples} inputs {list(shapes[0])}"
        _refuse_beyond(needed, device, what, SMALLER)


def widest(model: nn.Module, shape: Sequence[int]) -> int:
    """The most numbers that a layer could give for an input [C, ...], if none were at a smaller extent."""
    channels = [1]
    for layer in model.modules():
        given = getattr(layer, "out_channels", getattr(layer, "hidden_size", 1))
        channels.append(given if isinstance(given, int) else 1)
    return max(channels) * math.prod(shape[1:])


def largest_layer(model: nn.Module, shape: Sequence[int]) -> int:
    """The numbers that the largest layer takes and gives for an input [C, ...], found without storage; 1 where that
    cannot be told. The first call takes seconds, in which torch imports what it needs for it."""
    found = [1]

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        held = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        found.append(sum(t.numel() for t in held))

    hollow = {name: torch.empty_like(t, device="meta") for name, t in model.state_dict().items()}
    hooks = [layer.register_forward_hook(note) for layer in model.modules()]
    try:
        with torch.no_grad():
            torch.func.functional_call(model.eval(), hollow, (torch.empty(1, *shape, device="meta"),))
    except Exception:  # an operation that has no form without storage
        return 1
    finally:
        for hook in hooks:
            hook.remove()
    return max(found)


def _refuse_beyond(needed: float, device: str, what: str, remedy: str) -> None:
    free = machine.free_memory_bytes(device)
    if needed > free:
        raise TooHeavy(_short_of(what, needed, free, remedy))


def _short_of(what: str, needed: float, free: float, remedy: str) -> str:
    return f"{what} take {in_gigabytes(needed)} of memory, and {in_gigabytes(free)} are free; {remedy}"


def in_gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 1e13 else f"{count / 1e9:.1e} GB"
