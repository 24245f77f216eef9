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

from sigexp import catalog, config
from sigexp.problem import Problem
from sigexp.track import folder as folders


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


def load_model(folder: Path) -> nn.Module:
    """The best member of a run, in evaluation mode on the CPU. Raises ValueError for what is missing or damaged."""
    described, weights = folder / "model.json", folder / "model.safetensors"
    for path in (described, weights):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; a finished run's folder has it")
    try:
        found = json.loads(described.read_text(encoding="utf-8"))
        node, shapes = found["model"], (tuple(found["input_shape"]), tuple(found["target_shape"]))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{described}: damaged or not a model of sigexp ({error})") from error
    refuse_magic(node, described)
    for target in targets(node):
        if not trusted(target):
            raise ValueError(
                f"{described}: names {target!r}, which neither sigexp's conf nor your ./conf offers; "
                "a model of your own loads in the folder that holds its ./conf"
            )
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = config.build(node, *shapes, what="model")
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{weights}: damaged, or of another model: {str(error).splitlines()[0]}") from error
    return model.eval()
