"""What a user would run instead of a population: PyTorch's own layers, losses and optimizer, member after member."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sigexp.layers.fft_conv import FFTConv2d
from sigexp.problem import Batch, PerExample
from sigexp.signal import quality

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> []
LOSSES: Mapping[PerExample, Loss] = {quality.mse: F.mse_loss, quality.cross_entropy: F.cross_entropy}
MINIBATCHES_EACH = 10  # before it is the next member's turn: a round of a search is some tens to hundreds


def library_layers(module: nn.Module) -> nn.Module:
    """The same function, its convolutions by FFT replaced with `nn.Conv2d`."""
    if isinstance(module, FFTConv2d):
        height, width = module.kernel_size
        plain = nn.Conv2d(module.in_channels, module.out_channels, (height, width))
        plain.padding = module.padding
        plain.load_state_dict(module.state_dict())
        return plain
    for name, child in module.named_children():
        setattr(module, name, library_layers(child))
    return module


def sgd_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, batch: Batch) -> float:
    """One minibatch, as every tutorial has it; the loss before the update."""
    optimizer.zero_grad()
    value = loss(model(batch.inputs), batch.targets)
    value.backward()
    optimizer.step()
    return value.item()


class Sequential:
    """Members that train one after the other on shuffled minibatches, gathered by index.

    members: a few, because the rate does not depend on their number. settings: of torch.optim.SGD.
    channels_last: memory layout of weights and minibatches.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        loss: PerExample,
        data: Batch,
        batch_size: int,
        settings: Mapping[str, Any],
        channels_last: bool,
    ) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        models = [self._member(member) for member in members]
        self.members = [(model, torch.optim.SGD(model.parameters(), **settings)) for model in models]
        self.loss, self.data, self.batch_size = LOSSES[loss], data, batch_size
        self.plan = "channels_last" if channels_last else "NCHW"
        self._turns = self._steps()

    def _member(self, module: nn.Module) -> nn.Module:
        return library_layers(module).train().to(memory_format=self.layout)  # type: ignore[call-overload]

    def warm_up(self, first: Batch) -> tuple[float, float]:
        """The first minibatch's loss of the first member, and member-samples per second of a step after it."""
        loss = sgd_step(*self.members[0], self.loss, self._laid_out(first))
        began = time.perf_counter()
        return loss, self.step() / (time.perf_counter() - began)

    def step(self) -> int:
        """Train one member on one minibatch: member-samples."""
        next(self._turns)
        return self.batch_size

    def _steps(self) -> Iterator[float]:
        minibatches = self._minibatches()
        while True:
            for model, optimizer in self.members:
                for _ in range(MINIBATCHES_EACH):
                    yield sgd_step(model, optimizer, self.loss, next(minibatches))

    def _minibatches(self) -> Iterator[Batch]:
        size = len(self.data.inputs)
        while True:
            for index in torch.randperm(size)[: size - size % self.batch_size].split(self.batch_size):
                yield self._laid_out(Batch(*(part.index_select(0, index) for part in self.data)))

    def _laid_out(self, batch: Batch) -> Batch:
        if batch.inputs.ndim != 4:
            return batch
        return Batch(batch.inputs.contiguous(memory_format=self.layout), batch.targets)

    def flops(self) -> float:
        """Floating-point operations of both passes over one example, convolutions taken as sums of products.

        Counted on two examples, of which BatchNorm needs more than one, and without oneDNN, whose LSTM is opaque.
        """
        model = copy.deepcopy(self.members[0][0])
        counter = FlopCounterMode(display=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this build has no TF32, by oneDNN's switch
            with torch.backends.mkldnn.flags(enabled=False), counter:
                self.loss(model(self.data.inputs[:2]), self.data.targets[:2]).backward()
        return counter.get_total_flops() / 2

    def close(self) -> None:
        """There is nothing beside this process."""


def automlp(
    members: Sequence[nn.Module],
    loss: PerExample,
    data: Batch,
    config: Mapping[str, Any],
    *,
    on_round: Callable[[nn.Module], None],
    on_step: Callable[[], None],
) -> None:
    """The lecture's search, on and on: `on_round` sees the best member of every round, either may raise to end it.

    config: composed with search=lecture. Learning rates 10^-6 .. 10^2 at the start; of every round's members and the
    survivors before it the best by the last 100 minibatch losses live on, and a clone of each has another learning
    rate and batch size. A minibatch is a contiguous slice from a random start.
    """
    search, trainer, rng = config["search"], config["trainer"], np.random.default_rng(config["seed"])
    settings = {name: trainer["optimizer"][name] for name in ("momentum", "weight_decay")}
    rates = trainer["optimizer"]["lr"] * 10 ** np.linspace(-search["lr_decades"], search["lr_decades"], len(members))
    pool = [
        Member(model, torch.optim.SGD(model.parameters(), lr=float(lr), **settings), trainer["batch_size"])
        for model, lr in zip(map(library_layers, members), rates, strict=True)
    ]
    kept: list[Member] = []
    samples = search["initial_samples"]
    while True:
        for member in pool:
            member.train(LOSSES[loss], data, samples, rng, on_step)
        noise = 1 + search["selection_noise"] * rng.standard_normal(len(pool) + len(kept))
        order = np.argsort([m.score * n for m, n in zip(pool + kept, noise, strict=True)])
        survivors = [(pool + kept)[i] for i in order[: search["survivors"]]]
        on_round(survivors[0].model)
        kept = [copy.deepcopy(member) for member in survivors]
        pool = survivors + [member.clone(rng, search) for member in survivors]
        samples = search["round_samples"]


class Member:
    """A model with its optimizer, its batch size and its score: the mean of its last 100 minibatch losses."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
        self.model, self.optimizer, self.batch_size, self.score = model, optimizer, batch_size, np.inf

    def train(
        self, loss: Loss, data: Batch, samples: int, rng: np.random.Generator, on_step: Callable[[], None]
    ) -> None:
        losses: list[float] = []
        self.model.train()
        for _ in range(max(1, samples // self.batch_size)):
            start = int(rng.integers(len(data.inputs) - self.batch_size + 1))
            batch = Batch(*(part[start : start + self.batch_size] for part in data))
            losses.append(sgd_step(self.model, self.optimizer, loss, batch))
            on_step()
        mean = float(np.mean(losses[-100:]))
        self.score = mean if np.isfinite(mean) else np.inf

    def clone(self, rng: np.random.Generator, search: Mapping[str, Any]) -> "Member":
        """A copy with learning rate and batch size times U(0.8, 1.25), inside their ranges."""
        other = copy.deepcopy(self)
        group = other.optimizer.param_groups[0]
        group["lr"] = float(np.clip(group["lr"] * rng.uniform(0.8, 1.25), search["lr_min"], search["lr_max"]))
        size = round(self.batch_size * rng.uniform(0.8, 1.25))
        other.batch_size = int(np.clip(size, search["batch_min"], search["batch_max"]))
        return other
