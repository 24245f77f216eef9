"""A learned model in a run's folder, and out of it without running anything the folder names.

`model.json` and the dataset in `config.yaml` may name only what `sigexp.trust` allows; weights are safetensors. No
pickle is read. `trust` are the prefixes of targets that the user allows besides.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.overrides import TorchFunctionMode

from sigexp import config
from sigexp.problem import Problem
from sigexp.track import folder as folders
from sigexp.trust import check_targets, refuse_magic, targets

KINDS = ("image", "sequence", "class")
CREATORS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye})
LEAST_ELEMENTS = 2**24  # that a model may make, 64 MB: more than its weights where it prepares tables
LONGEST = 2**24  # samples along an axis of a model's signals


def load_problem(folder: Path, trust: Sequence[str] = ()) -> Problem:
    """The problem of a run, built anew from its config.yaml. Raises ValueError for what is missing or not on offer."""
    path = folder / "config.yaml"
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))["dataset"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: missing, damaged or not a config of sigexp ({error})") from error
    refuse_magic(node, path)
    check_targets(targets(node), ("dataset", "experiment"), trust, path)
    problem: Problem = config.build(node, what="dataset")
    return problem


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
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shapes = [found["input_shape"], found["target_shape"]]
        words = [found["experiment"], found["name"], *found["labels"]]
        if not (isinstance(found["model"], dict) and found["kind"] in KINDS and all(isinstance(w, str) for w in words)):
            raise ValueError("a field is not what it should be")
        if not all(0 < len(shape) < 4 and all(type(n) is int and 0 < n <= LONGEST for n in shape) for shape in shapes):
            raise ValueError(f"shapes {str(shapes)[:80]}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged or not a model of sigexp ({error})") from error
    return found


def load_model(folder: Path, trust: Sequence[str] = ()) -> nn.Module:
    """The best member of a run, in evaluation mode on the CPU. Raises ValueError for what is missing or damaged."""
    found = read_description(folder)
    described, weights = folder / "model.json", folder / "model.safetensors"
    node, shapes = found["model"], (tuple(found["input_shape"]), tuple(found["target_shape"]))
    refuse_magic(node, described)
    check_targets(targets(node), ("model",), trust, described)
    try:
        with torch.random.fork_rng(devices=[]), Bounded(max(LEAST_ELEMENTS, weights.stat().st_size)):
            model: nn.Module = config.build(node, *shapes, what="model")
    except TooLarge:
        raise ValueError(f"{described}: describes a larger model than {weights.name} holds; damaged") from None
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{weights}: damaged, or of another model: {str(error).splitlines()[0]}") from error
    return model.eval()


class Bounded(TorchFunctionMode):
    """Refuses to make tensors of more than `most` elements in all, before they take any memory."""

    def __init__(self, most: int):
        super().__init__()
        self.left = most

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in CREATORS:
            self.left -= function(*args, **{**kwargs, "device": "meta"}).numel()
            if self.left < 0:
                raise TooLarge
        return function(*args, **kwargs)


class TooLarge(Exception):
    """A model is described as larger than its weights are."""
