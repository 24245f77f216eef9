"""A learned model in a run's folder, and out of it without running anything the folder names.

`model.json` may name only targets that a conf in force offers (the packaged one or the user's ./conf) and modules of
`torch.nn`; weights are safetensors. No pickle is read.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sigexp import catalog, config
from sigexp.track import folder as folders


def offered_targets() -> set[str]:
    """Every model `_target_` of the packaged conf and the user's own."""
    found: set[str] = set()
    for conf in (catalog.conf_dir(), catalog.user_conf()):
        for path in (conf / "model").glob("*.yaml") if conf else ():
            for line in path.read_text(encoding="utf-8").splitlines():
                key, _, value = line.strip().partition(":")
                if key.lstrip("- ") == "_target_":
                    found.add(value.split("#")[0].strip().strip("\"'"))
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
    if target in offered_targets():
        return True
    name = target.removeprefix("torch.nn.")
    found = getattr(nn, name, None) if target.startswith("torch.nn.") and name.isidentifier() else None
    return isinstance(found, type) and issubclass(found, nn.Module)


def refuse_magic(node: Any, where: Path) -> None:
    """Refuse what would be computed while a config is built: interpolations, and keys that Hydra acts on."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if str(key).startswith("_") and key != "_target_":
                raise ValueError(f"{where}: names the key {key!r}, which a saved model has no use for")
            refuse_magic(value, where)
    elif isinstance(node, list):
        for item in node:
            refuse_magic(item, where)
    elif isinstance(node, str) and "${" in node:
        raise ValueError(f"{where}: holds {node!r}; a saved model has plain values only")


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
