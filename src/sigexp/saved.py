"""A learned model in a run's folder, and out of it without running anything the folder names.

`model.json` and the dataset in `config.yaml` may name only what `sigexp.trust` allows; weights are safetensors. No
pickle is read. `trust` are the prefixes of targets that the user allows besides.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.overrides import TorchFunctionMode

from sigexp import config, machine
from sigexp.problem import Problem
from sigexp.track import folder as folders
from sigexp.track.documents import Unreadable, load_json, load_yaml, printable, reason, regular
from sigexp.track.record import mapping
from sigexp.trust import check_targets, leads_out, refuse_magic, targets

KINDS = ("image", "sequence", "class")
CREATORS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye})
LEAST_ELEMENTS = 2**24  # that a model may make, 64 MB: more than its weights where it prepares tables
LEAST_PER_TENSOR = 256  # elements that a tensor counts for: a module takes memory too, however small its weights
MOST_SAMPLES = 2**24  # in a signal of a model
MOST_CHANNELS = 1024
MOST_WEIGHTS_BYTES = 2**40


def load_problem(folder: Path, trust: Sequence[str] = (), *, own: bool = False) -> Problem:
    """The problem of a run, built anew from its config.yaml. Raises ValueError for what is missing or not on offer.

    own: it is a run of the user's own, whose data may lie anywhere.
    """
    path = folder / "config.yaml"
    node = mapping(mapping(load_yaml(folder, path.name)).get("dataset"))
    if not node:
        raise ValueError(f"{path}: missing, damaged or not a config of sigexp (no dataset)")
    check_node(node, ("dataset", "experiment"), trust, path)
    if not own and leads_out(node):
        raise ValueError(f"{path}: its dataset names a path that leads out of the working directory")
    problem: Problem = config.build(node, what="dataset")
    return problem


def check_node(node: Mapping[str, Any], groups: Sequence[str], trust: Sequence[str], where: Path) -> None:
    """Raise ValueError for a node that names what is not on offer, or more than plain values."""
    refuse_magic(node, where)
    check_targets(targets(node), groups, trust, where)


def save_model(folder: Path, model: nn.Module, described: Mapping[str, Any]) -> None:
    """The weights, and the JSON that rebuilds the model."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    folders.write(folder / "model.safetensors", save(state))
    folders.write(folder / "model.json", folders.dumps(described, indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """What model.json says, its fields checked: `save_model` wrote it, or a stranger did. Raises ValueError."""
    path = folder / "model.json"
    for needed in (path, folder / "model.safetensors"):
        if not needed.is_file():
            raise ValueError(f"{needed}: no such file; a finished run's folder has it")
    found = mapping(load_json(path))
    try:
        shapes = [found["input_shape"], found["target_shape"]]
        words = [found["experiment"], found["name"], *found["labels"]]
        if not (isinstance(found["model"], dict) and found["kind"] in KINDS and all(isinstance(w, str) for w in words)):
            raise ValueError("a field is not what it should be")
        for shape in shapes:
            whole = 0 < len(shape) < 4 and all(type(n) is int and n > 0 for n in shape)
            if not whole or shape[0] > MOST_CHANNELS * MOST_SAMPLES ** (len(shape) == 1) or prod(shape) > MOST_SAMPLES:
                raise ValueError(f"shapes {str(shapes)[:80]}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged or not a model of sigexp ({reason(error)})") from error
    return found


def load_model(folder: Path, trust: Sequence[str] = ()) -> nn.Module:
    """The best member of a run, in evaluation mode on the CPU. Raises ValueError for what is missing or damaged."""
    found = read_description(folder)
    described, weights = folder / "model.json", folder / "model.safetensors"
    check_node(found["model"], ("model",), trust, described)
    model = described_model(found, described, weight_bytes(weights))
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{weights}: damaged, or of another model: {str(error).splitlines()[0]}") from error
    return model.eval()


def weight_bytes(path: Path) -> int:
    """The size of a file of weights. Raises ValueError for a link, and for more than the memory holds."""
    try:
        size = regular(path, MOST_WEIGHTS_BYTES).stat().st_size
    except ValueError as error:
        raise Unreadable(f"{path}: {error}") from error
    free = machine.free_memory_bytes("cpu")
    if 2 * size > free:
        raise ValueError(f"{path}: {size / 1e9:.1f} GB of weights, where {free / 1e9:.1f} GB of memory are free")
    return size


def described_model(found: Mapping[str, Any], where: Path, size: int) -> nn.Module:
    """The module that model.json describes, its weights not loaded yet; `size` bytes of them bound what it may take."""
    shapes = tuple(found["input_shape"]), tuple(found["target_shape"])
    try:
        with torch.random.fork_rng(devices=[]), Bounded(max(LEAST_ELEMENTS, size)):
            model = config.build(found["model"], *shapes, what="model")
    except TooLarge:
        raise ValueError(f"{where}: describes a larger model than its weights are; damaged") from None
    except ValueError:
        raise
    except Exception as error:  # odd fields can lead a model to any kind of error
        said = f"{type(error).__name__}: {printable(str(error))[:200]}"
        raise ValueError(f"{where}: describes no model that can be built ({said})") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{where}: describes a {type(model).__name__}, no model")
    return model


class Bounded(TorchFunctionMode):
    """Refuses to make tensors of more than `most` elements in all, before they take any memory.

    It also ends a model of very many small ones.
    """

    def __init__(self, most: int):
        super().__init__()
        self.left = most

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in CREATORS:
            made = function(*args, **{**kwargs, "device": "meta"}).numel()
            self.left -= max(made, LEAST_PER_TENSOR)
            if self.left < 0:
                raise TooLarge
        return function(*args, **kwargs)


class TooLarge(Exception):
    """A model is described as larger than its weights are."""
