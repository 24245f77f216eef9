"""P members of one architecture, their optimizer states and hyperparameters, advancing on shared minibatches.

Every parameter, buffer and optimizer state is one tensor with the members in front; the members are plain modules
whose parameters are views of it, so copying and selecting members is indexing. Members train one after the other.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from sigexp.population.optimizers import SLOTS, clip_, update
from sigexp.problem import Batch, PerExample

State = dict[str, Tensor]
HPARAMS = ("lr", "momentum", "weight_decay", "batch_size")


def take(state: Mapping[str, Tensor], members: Tensor) -> State:
    """The members [Q] int64 of a state, in that order, as copies."""
    return {name: tensor[members.to(tensor.device)] for name, tensor in state.items()}


def join(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> State:
    """The members of two states as one."""
    return {name: torch.cat([first[name], second[name]]) for name in first}


class Population:
    """Members with their own weights, optimizer state and hyperparameters.

    members: P modules of the same architecture. loss, metrics: per example, as in `Problem`.
    hparams: lr, momentum, weight_decay [P] float64 and batch_size [P] int64.
    channels_last: memory layout of images and kernels; on a CPU up to twice as quick, equal but for rounding.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        loss: PerExample,
        metrics: Mapping[str, PerExample],
        optimizer: str,
        hparams: Mapping[str, Tensor],
        clip_norm: float | None = None,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        if optimizer not in SLOTS:
            raise ValueError(f"optimizer {optimizer!r}: expected one of {', '.join(SLOTS)}")
        self.loss, self.metrics, self.optimizer = loss, metrics, optimizer
        self.clip_norm, self.precision, self.device = clip_norm, precision, torch.device(device)
        self.channels_last = channels_last
        self.lr_scale = 1.0  # what the schedule multiplies every member's learning rate with
        self._template = copy.deepcopy(members[0]).to(self.device)
        self._members: list[nn.Module] = []
        self._state: State = {}
        self.load_state(self._initial(members, hparams))

    def __len__(self) -> int:
        return len(self._members)

    @property
    def hparams(self) -> dict[str, Tensor]:
        return {name: self._state[f"hparams/{name}"] for name in HPARAMS}

    def set_hparams(self, hparams: Mapping[str, Tensor]) -> None:
        for name in HPARAMS:
            self._state[f"hparams/{name}"].copy_(hparams[name])

    def _initial(self, members: Sequence[nn.Module], hparams: Mapping[str, Tensor]) -> State:
        state: State = {}
        for kind, tensors in (("params", nn.Module.named_parameters), ("buffers", nn.Module.named_buffers)):
            by_member = [dict(tensors(member)) for member in members]
            for name in by_member[0]:
                state[f"{kind}/{name}"] = torch.stack([t[name].detach() for t in by_member]).to(self.device)
        for name in [name for name in state if name.startswith("params/")]:
            for slot in SLOTS[self.optimizer]:
                state[f"{slot}/{name.removeprefix('params/')}"] = torch.zeros_like(state[name])
        count = len(members)
        state["step"] = torch.zeros(count)
        state["alive"] = torch.ones(count, dtype=torch.bool)
        for name in HPARAMS:
            dtype = torch.int64 if name == "batch_size" else torch.float64
            state[f"hparams/{name}"] = hparams[name].to(dtype).clone()
        return state

    def state(self) -> State:
        """All that makes up the members, as copies; every tensor leads with P."""
        return {name: tensor.clone() for name, tensor in self._state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Become the members of `state`; their number may differ from before."""
        count = len(state["step"])
        self._state = {name: self._laid_out(tensor) for name, tensor in state.items()}
        while len(self._members) < count:
            self._members.append(copy.deepcopy(self._template))
        del self._members[count:]
        for p, member in enumerate(self._members):
            for name, parameter in member.named_parameters():
                parameter.data = self._state[f"params/{name}"][p]
                parameter.grad = None
            for name, _ in list(member.named_buffers()):
                owner, _, leaf = name.rpartition(".")
                setattr(member.get_submodule(owner), leaf, self._state[f"buffers/{name}"][p])
        self._pending: list[list[Batch]] = [[] for _ in range(count)]

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """A copy, kernels [P, C_out, C_in, h, w] with the input channels innermost where that is asked for."""
        if self.channels_last and tensor.ndim == 5:
            return tensor.permute(0, 1, 3, 4, 2).clone(memory_format=torch.contiguous_format).permute(0, 1, 4, 2, 3)
        return tensor.clone()

    def copy(self, parents: Tensor) -> None:
        """Member i becomes a copy of member parents[i], optimizer state and hyperparameters too. parents: [Q] int64."""
        self.load_state(take(self._state, parents))

    def step(self, batch: Batch) -> Tensor:
        """Every member advances over the same examples, in minibatches of its own size.

        Examples that do not fill a member's minibatch wait for the next call (until `drop_pending`). Returns each
        member's losses, averaged over the minibatches it made in this call: [P], NaN where it made none.
        """
        losses = [self._advance(p, batch) for p in range(len(self))]
        none = torch.tensor(torch.nan, device=self.device)
        return torch.stack([loss.mean() if loss is not None else none for loss in losses])

    def minibatch_losses(self, batch: Batch) -> list[Tensor]:
        """`step`, but each member's minibatch losses one by one: P tensors of shape [minibatches]."""
        losses = [self._advance(p, batch) for p in range(len(self))]
        return [loss if loss is not None else torch.empty(0, device=self.device) for loss in losses]

    def drop_pending(self) -> None:
        """Forget the examples that did not fill a minibatch."""
        self._pending = [[] for _ in range(len(self))]

    def _advance(self, p: int, batch: Batch) -> Tensor | None:
        if not self._state["alive"][p]:
            return None
        size = int(self._state["hparams/batch_size"][p])
        stock = Batch(*(torch.cat(parts) for parts in zip(*self._pending[p], batch, strict=True)))
        full = len(stock.inputs) // size
        losses = []
        for i in range(full):
            here = slice(i * size, (i + 1) * size)
            losses.append(self._update(p, Batch(stock.inputs[here], stock.targets[here])))
            if not losses[-1].isfinite():
                self._state["alive"][p] = False
                break
        rest = slice(full * size, None)
        self._pending[p] = [Batch(stock.inputs[rest], stock.targets[rest])] if len(stock.inputs) % size else []
        return torch.stack(losses) if losses else None

    def _update(self, p: int, batch: Batch) -> Tensor:
        member = self._members[p].train()
        inputs = batch.inputs
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        params = dict(member.named_parameters())
        with self._autocast():
            outputs = member(inputs)
            loss = self.loss(outputs.float() if self.precision == "bf16" else outputs, batch.targets).mean()
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        params = {
            name: parameter for (name, parameter), grad in zip(params.items(), found, strict=True) if grad is not None
        }
        grads = [grad for grad in found if grad is not None]
        if self.clip_norm is not None:
            clip_(grads, self.clip_norm)
        hparams = {name: float(value[p]) for name, value in self.hparams.items()}
        with torch.no_grad():
            update(
                self.optimizer,
                [parameter.data for parameter in params.values()],
                grads,
                {slot: [self._state[f"{slot}/{name}"][p] for name in params] for slot in SLOTS[self.optimizer]},
                self._state["step"][p],
                lr=hparams["lr"] * self.lr_scale,
                momentum=hparams["momentum"],
                weight_decay=hparams["weight_decay"],
            )
        return loss.detach()

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    @contextmanager
    def predictors(self) -> Iterator[list[Callable[[Tensor], Tensor]]]:
        """The members as functions inputs -> outputs, in evaluation mode and without gradients."""
        for member in self._members:
            member.eval()
        with torch.inference_mode():
            yield [self._predict(member) for member in self._members]

    def _predict(self, member: nn.Module) -> Callable[[Tensor], Tensor]:
        def predict(inputs: Tensor) -> Tensor:
            with self._autocast():
                return member(inputs).float()

        return predict if self.precision == "bf16" else member

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """The loss and every metric of every member on a batch, in evaluation mode: name -> [P, B]."""
        measures = {"loss": self.loss, **self.metrics}
        with self.predictors() as members:
            outputs = [member(batch.inputs) for member in members]
            return {
                name: torch.stack([measure(o, batch.targets) for o in outputs]) for name, measure in measures.items()
            }

    def member(self, p: int) -> nn.Module:
        """A free-standing copy of one member, in evaluation mode and the usual memory layout."""
        member = copy.deepcopy(self._members[p])
        for parameter in member.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        return member.eval()
