"""Which models can learn a problem: tried on two examples, before anything is trained."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from sigexp import catalog, config
from sigexp.config import ConfigError
from sigexp.problem import Problem


def check(model: nn.Module, problem: Problem, name: str) -> None:
    """Refuse a model that cannot take the problem's inputs or does not give the shape of its targets."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model={name} is a {type(model).__name__}; expected a torch.nn.Module")
    batch = problem.sample("train", torch.arange(2))
    expected = [problem.classes] if problem.classes else list(batch.targets.shape[1:])
    try:
        with torch.no_grad():
            got = list(model.eval()(batch.inputs).shape[1:])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model={name} cannot take inputs of shape {list(batch.inputs.shape[1:])}: {reason}"
        ) from error
    if problem.ragged and len(batch.inputs.shape) == 4:
        larger = torch.zeros(1, *[n + 6 * (i > 0) for i, n in enumerate(batch.inputs.shape[1:])])
        try:
            with torch.no_grad():
                model(larger)
        except RuntimeError as error:
            raise ConfigError(
                f"model={name} works at one size only, but the tests of this dataset are whole photographs"
            ) from error
    further_logits = problem.classes is not None and len(got) == 1 and got[0] > problem.classes  # the lecture has them
    if got != expected and not further_logits:
        raise ConfigError(f"model={name} gives {got}, but the targets of this dataset are {expected}")


def needs_two(model: nn.Module, problem: Problem) -> bool:
    """Whether a model cannot learn from one example alone: batch normalisation of a single value is nothing."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return False
    try:
        with torch.no_grad():
            copy.deepcopy(model).train()(problem.sample("train", torch.arange(1)).inputs)
    except ValueError:
        return True
    return False


def fitting(problem: Problem, footprint: int) -> list[str]:
    """The models of the catalogue, with their default fields, that can learn the problem."""
    found = []
    for choice in catalog.choices("model"):
        try:
            node = node_of(choice.name, footprint)
            check(config.build(node, *problem.shapes(), what="model"), problem, choice.name)
        except Exception:  # a user's own model may fail in any way; it then does not fit
            continue
        found.append(choice.name)
    return found


def node_of(name: str, footprint: int) -> Mapping[str, Any]:
    """A model's YAML with its defaults, outside any composed config."""
    paths = [conf / "model" / f"{name}.yaml" for conf in (catalog.conf_dir(), catalog.user_conf()) if conf]
    text = next(path for path in paths if path.is_file()).read_text(encoding="utf-8")
    whole = OmegaConf.create({"footprint": footprint, "model": OmegaConf.create(text)})
    node = OmegaConf.to_container(whole, resolve=True)
    assert isinstance(node, dict)
    return node["model"]
