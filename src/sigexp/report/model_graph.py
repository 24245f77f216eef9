"""A model's graph as boxes, one for every layer and for every function between layers, from one forward pass.

Tracing with torch.jit takes seconds the first time, and shows a layer as the dozen functions that it is made of.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sigexp.track.events import Node

MOST_NODES = 400  # more are no picture that anyone reads
# What reads a tensor and makes none that goes anywhere.
PLAIN = ("__get__", "size", "dim", "detach", "__len__", "numel", "stride", "__set__", "requires_grad_", "__hash__")


class TooLarge(ValueError):
    """A graph of more boxes than can be shown."""


def graph(model: nn.Module, inputs: Tensor) -> list[Node]:
    """The boxes of one forward pass with `inputs` [B, ...]. Raises TooLarge, and whatever the model does."""
    recorder = Recorder(model, inputs)
    hooks = [
        hook
        for name, module in model.named_modules()
        if not list(module.children())
        for hook in (
            module.register_forward_pre_hook(recorder.enter),
            module.register_forward_hook(recorder.leave(name, module)),
        )
    ]
    try:
        with torch.no_grad(), recorder:
            output = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    recorder.add("output", "Output", (output,), None)
    return recorder.nodes


class Recorder(TorchFunctionMode):
    """Which function or layer made which tensor."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.made: dict[int, str] = {}  # tensor -> box
        self.alive: list[Any] = []  # an id means something only as long as its tensor lives
        self.inside = 0
        for name, parameter in model.named_parameters():
            self.made[id(parameter)] = f"parameters/{name}"
        self.own = set(self.made)
        self.used: set[str] = set()
        self.add("input", "Input", (), inputs)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = function(*args, **given)
        name = getattr(function, "__name__", "function")
        if not self.inside and name not in PLAIN:
            made = list(tensors(result))
            if made:
                self.add(name.strip("_"), name.strip("_"), (args, given), result)
        return result

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.inside += 1

    def leave(self, name: str, module: nn.Module) -> Any:
        place = name.replace(".", "/")

        def left(_: nn.Module, inputs: Any, output: Any) -> None:
            self.inside -= 1
            if not self.inside:
                self.add(
                    f"{place} {type(module).__name__}".strip(), type(module).__name__, inputs, output, about(module)
                )

        return left

    def add(self, name: str, kind: str, inputs: Any, output: Any, about: dict[str, str] | None = None) -> None:
        """A box with edges from those that made its inputs."""
        if len(self.nodes) >= MOST_NODES:
            raise TooLarge(f"more than {MOST_NODES} functions")
        name = spelled(name)
        number = 2
        unique = name
        while unique in self.used:
            unique, number = f"{name}_{number}", number + 1
        self.used.add(unique)
        before = [self.made[id(t)] for t in tensors(inputs) if id(t) in self.made and id(t) not in self.own]
        made = list(tensors(output))
        shape = tuple(made[0].shape) if made else None
        self.nodes.append(Node(unique, kind, list(dict.fromkeys(before)), shape, about or {}))
        for tensor in made:
            self.made[id(tensor)] = unique
        self.alive.append((inputs, output))


def about(module: nn.Module) -> dict[str, str]:
    count = sum(parameter.numel() for parameter in module.parameters())
    return {"settings": module.extra_repr(), "parameters": f"{count:,}"}


def spelled(name: str) -> str:
    """A name of a box: TensorBoard refuses spaces and other signs."""
    return "".join(c if c.isalnum() or c in "_./-" else "." for c in name)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
