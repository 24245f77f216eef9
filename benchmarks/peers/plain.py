"""A model that learns by a plain PyTorch loop: what the peers' members are."""

import copy
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines import library_layers
from benchmarks.peers.task import Arrays, Spec
from sigexp import training
from sigexp.population.feed import Feed
from sigexp.population.optimizers import BETA2, Schedule
from sigexp.problem import Problem
from sigexp.search.base import HParams, batch_step
from sigexp.search.progress import RECENT
from sigexp.signal.quality import mse

WORST = 1e30  # the score of a member that diverged; tools compare and store it as any other
Segment = tuple[float, float, int]  # when training began and ended, by time.time(), and its samples


@dataclass
class Found:
    """What a peer's search came to: stretches of training and validation in any process, and the best model."""

    segments: list[Segment] = field(default_factory=list)
    trials: int = 0
    valid: float = math.inf
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def add(self, segments: Sequence[Segment], valid: float, state: Mapping[str, Tensor]) -> None:
        self.segments += segments
        if valid < self.valid:
            self.valid, self.state = valid, state


def first_members(config: Mapping[str, Any]) -> list[HParams]:
    """The learning rates and batch sizes of the first members of sigexp's search, as it trains them."""
    settings = training.build_search(config)
    given = hparams_of(config)
    step, rng = batch_step(int(given["batch_size"])), np.random.default_rng([config["seed"], 1])
    members = settings.first(settings.start(given), rng).hparams
    return [{**one, "batch_size": max(1, round(one["batch_size"] / step)) * step} for one in members]


def hparams_of(config: Mapping[str, Any]) -> HParams:
    """The trainer's hyperparameters, as a search starts with them."""
    trainer = config["trainer"]
    named = {name: float(trainer["optimizer"][name]) for name in ("lr", "momentum", "weight_decay")}
    return {**named, "batch_size": trainer["batch_size"]}


def model_of(spec: Spec, config: Mapping[str, Any], arrays: Arrays, member: int) -> nn.Module:
    """A member with the initial weights that it has in sigexp's search."""
    shapes = (arrays["inputs"].shape[1:], arrays["targets"].shape[1:])
    model = training.initial_model(config, shapes, config["seed"], member)
    if spec.layers == "torch":
        model = library_layers(model)
    layout = torch.channels_last if spec.arrangement.channels_last else torch.contiguous_format
    return model.to(memory_format=layout)  # type: ignore[call-overload]


def optimizer_of(config: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """torch's own, with the kernel that updates a tensor in one pass."""
    chosen = config["trainer"]["optimizer"]
    lr, momentum, decay = (float(chosen[name]) for name in ("lr", "momentum", "weight_decay"))
    if chosen["name"] == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay, fused=True)
    assert chosen["name"] == "adam"
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(momentum, BETA2), weight_decay=decay, fused=True)


def finite(loss: float) -> float:
    """The score of a member with this loss."""
    return loss if math.isfinite(loss) else WORST


class Learner:
    """One member. total: samples that it learns from in all, over which its learning rate follows the schedule."""

    def __init__(self, spec: Spec, config: Mapping[str, Any], arrays: Arrays, member: int, total: int) -> None:
        self.model = model_of(spec, config, arrays, member)
        self.optimizer = optimizer_of(config, self.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that arrays in Ray's store are read-only; nothing writes to them
            self.tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        images = self.tensors["inputs"].ndim == 4
        self.layout = torch.channels_last if images and spec.arrangement.channels_last else torch.contiguous_format
        self.schedule = Schedule(config["trainer"]["schedule"], 0.0, 1 / total)
        self.lr, self.batch_size = float(config["trainer"]["optimizer"]["lr"]), int(config["trainer"]["batch_size"])
        self.selection = config["search"]["selection"]
        self.losses: list[float] = []  # of the minibatches of a round; tensors would keep the allocator's heap apart
        self.seen, self.best, self.best_model = 0, math.inf, self.model.state_dict()
        sizes = {"train": len(arrays["inputs"])}
        only_sizes = Problem(kind="image", sample=_never, sizes=sizes, loss=mse, metrics={})
        self.feed = Feed(only_sizes, seed=config["dataset"]["seed"], device=torch.device("cpu"))  # for the order alone

    def round(self, samples: int) -> tuple[float, Segment]:
        """Learn from so many samples: the loss that the search chooses by, and how long both took."""
        began = time.time()
        self.losses = []
        self.train(samples)
        score = self.validate() if self.selection == "valid" else finite(fmean(self.losses[-RECENT:]))
        if score < self.best:
            self.best, self.best_model = score, copy.deepcopy(self.model.state_dict())
        return score, (began, time.time(), samples)

    def train(self, samples: int) -> None:
        """Whole minibatches; what is left of the samples is passed over, as in sigexp's rounds."""
        inputs, targets = self.tensors["inputs"], self.tensors["targets"]
        end, batch_size = self.seen + samples, min(self.batch_size, samples)
        (group,) = self.optimizer.param_groups
        self.model.train()
        while self.seen + batch_size <= end:
            group["lr"] = self.lr * self.schedule.at(self.seen)
            index = self.feed.indices(self.seen, batch_size)
            x = inputs.index_select(0, index).contiguous(memory_format=self.layout)
            self.optimizer.zero_grad()
            loss = F.mse_loss(self.model(x), targets.index_select(0, index))
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            self.seen += batch_size
        self.seen = end

    def validate(self) -> float:
        """The mean squared error over the validation examples."""
        self.model.eval()
        total = 0.0
        with torch.no_grad():
            for x, y in zip(*(self.tensors[f"valid_{name}"].split(250) for name in ("inputs", "targets")), strict=True):
                total += len(x) * float(F.mse_loss(self.model(x.contiguous(memory_format=self.layout)), y))
        return finite(total / len(self.tensors["valid_inputs"]))

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "seen": self.seen,
            "best": self.best, "best_model": self.best_model,
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen, self.best, self.best_model = state["seen"], state["best"], state["best_model"]


def _never(split: str, index: Tensor) -> Any:
    raise AssertionError("the learner has its examples")
