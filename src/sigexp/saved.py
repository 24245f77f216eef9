"""A learned model in a run's folder, and out of it without running anything the folder names.

`model.json` and the dataset in `config.yaml` may name only targets that a conf in force offers (the packaged one or the
user's ./conf), the former modules of `torch.nn` too; weights are safetensors. No pickle is read.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.overrides import TorchFunctionMode

from sigexp import catalog, config
from sigexp.problem import Problem
from sigexp.track import folder as folders

KINDS = ("image", "sequence", "class")
CREATORS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye})
LEAST_ELEMENTS = 2**24  # that a model may make, 64 MB: more than its weights where it prepares tables
LONGEST = 2**24  # samples along an axis of a model's signals


def offered_targets(*groups: str) -> set[str]:
    """Every `_target_` in some groups of the packaged conf and the user's own."""
    found: set[str] = set()
    for conf in (catalog.conf_dir(), catalog.user_conf()):
        for path in (path for group in groups for path in (conf / group).glob("*.yaml")) if conf else ():
            with suppress(yaml.YAMLError, UnicodeDecodeError):  # a broken file offers nothing; composing it says why
                found |= set(targets(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return found


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` anywhere in a config node."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield str(value)
            else:
                yield from targets(value)
    elif isinstance(node, list):
        for item in node:
            yield from targets(item)


def trusted(target: str) -> bool:
    """Whether a reloaded folder may name this target: one on offer, or a module class of torch.nn itself."""
    if target in offered_targets("model"):
        return True
    name = target.removeprefix("torch.nn.")
    found = getattr(nn, name, None) if target.startswith("torch.nn.") and name.isidentifier() else None
    return isinstance(found, type) and issubclass(found, nn.Module)


def refuse_magic(node: Any, where: Path) -> None:
    """Refuse what would be computed while a config is built: interpolations, and keys that Hydra acts on."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if str(key).startswith("_") and key != "_target_":
                raise ValueError(f"{where}: names the key {key!r}, which it has no use for")
            refuse_magic(value, where)
    elif isinstance(node, list):
        for item in node:
            refuse_magic(item, where)
    elif isinstance(node, str) and "${" in node:
        raise ValueError(f"{where}: holds {node!r}; it may have plain values only")


def load_problem(folder: Path) -> Problem:
    """The problem of a run, built anew from its config.yaml. Raises ValueError for what is missing or not on offer."""
    path = folder / "config.yaml"
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))["dataset"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: missing, damaged or not a config of sigexp ({error})") from error
    refuse_magic(node, path)
    for target in set(targets(node)) - offered_targets("dataset", "experiment"):
        raise ValueError(f"{path}: names {target!r}, which neither sigexp's conf nor your ./conf offers")
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


def load_model(folder: Path) -> nn.Module:
    """The best member of a run, in evaluation mode on the CPU. Raises ValueError for what is missing or damaged."""
    found = read_description(folder)
    described, weights = folder / "model.json", folder / "model.safetensors"
    node, shapes = found["model"], (tuple(found["input_shape"]), tuple(found["target_shape"]))
    refuse_magic(node, described)
    for target in targets(node):
        if not trusted(target):
            raise ValueError(
                f"{described}: names {target!r}, which neither sigexp's conf nor your ./conf offers; "
                "a model of your own loads in the folder that holds its ./conf"
            )
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
