"""P members of one architecture, their optimizer states and hyperparameters, advancing on shared minibatches.

Every parameter, buffer and optimizer state is one tensor with the members in front, so copying and selecting members
is indexing. How a minibatch's gradients are computed is the plan's choice and no concern of who uses a population.
"""

import copy
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sigexp.population.convolution import Kernels
from sigexp.population.feed import Feed
from sigexp.population.moments import Moments
from sigexp.population.optimizers import LARGE, SLOTS, clipped, update, update_one
from sigexp.population.plan import Plan
from sigexp.population.together import Together
from sigexp.problem import Batch, PerExample

log = logging.getLogger("sigexp")
State = dict[str, Tensor]
HPARAMS = ("lr", "momentum", "weight_decay", "batch_size")


def take(state: Mapping[str, Tensor], members: Tensor) -> State:
    """The members [Q] int64 of a state, in that order, as copies."""
    return {name: tensor[members.to(tensor.device)] for name, tensor in state.items()}


def join(*states: Mapping[str, Tensor]) -> State:
    """The members of several states as one."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


@dataclass
class Flat:
    """All parameters of all members in one line, and the optimizer's state likewise; those in `State` are views of it.

    tensors: params and slots -> [numbers]. owner: [numbers] int64, whose number it is. spread: every number's
    hyperparameters, made when first needed.
    """

    tensors: State
    owner: Tensor
    spread: State = field(default_factory=dict)

    @classmethod
    def of(cls, state: State, slots: Collection[str]) -> "Flat | None":
        """Replaces the tensors in `state` by views; None for large models, which gain nothing, and for mixed types."""
        names = [name.removeprefix("params/") for name in state if name.startswith("params/")]
        params = [state[f"params/{name}"] for name in names]
        if sum(param[0].numel() for param in params) >= LARGE or len({param.dtype for param in params}) != 1:
            return None
        tensors = {
            kind: torch.cat([state[f"{kind}/{name}"].flatten() for name in names]) for kind in ("params", *slots)
        }
        for kind, line in tensors.items():
            for name, part in zip(names, line.split([param.numel() for param in params]), strict=True):
                state[f"{kind}/{name}"] = part.view(state[f"{kind}/{name}"].shape)
        count = len(params[0])
        members = torch.arange(count, device=params[0].device)
        return cls(tensors, torch.cat([members.repeat_interleave(param.numel() // count) for param in params]))


class Population:
    """Members with their own weights, optimizer state and hyperparameters.

    members: P modules of the same architecture. loss, metrics: per example, as in `Problem`.
    optimizer: sgd, nesterov, adam or adamw. hparams: lr, momentum, weight_decay [P] float64 and batch_size [P] int64.
    clip_norm: of each member's gradient. precision: fp32, or bf16 for autocast. plan: how to compute.
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
        plan: Plan | None = None,
        compiled: bool = False,
    ) -> None:
        if optimizer not in SLOTS:
            raise ValueError(f"optimizer {optimizer!r}: expected one of {', '.join(SLOTS)}")
        self.loss, self.metrics, self.optimizer = loss, metrics, optimizer
        self.clip_norm, self.precision, self.device = clip_norm, precision, torch.device(device)
        self.compiled = compiled  # by torch.compile, for 'one by one'
        self.lr_scale = 1.0  # what the schedule multiplies every member's learning rate with
        self.template = copy.deepcopy(members[0]).to(self.device)
        # Statistics over the minibatch: it can neither be cut nor be longer for one member than for another.
        self.whole = any(isinstance(module, _BatchNorm) for module in self.template.modules())
        self.plan = plan or Plan()
        self.moments = Moments.of(self.template, loss) if not self.whole else None
        self.table: Tensor | None = None  # of `moments`, of the training set
        self._members: list[nn.Module] = []
        self._state: State = {}
        self.together = Together(self.template, self._full_precision(loss), Kernels(dict(self.plan.kernels)))
        self.load_state(self._initial(members, hparams))

    def settings(self) -> dict[str, Any]:
        """What makes a population like this one, with the template for a member: see `of_settings`."""
        names = ("template", "loss", "metrics", "optimizer", "clip_norm", "precision", "device", "plan", "compiled")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> "Population":
        """A population of one member, to be filled by `load_state`."""
        hparams = {name: torch.ones(1) for name in HPARAMS}
        others = {name: value for name, value in settings.items() if name != "template"}
        return cls([settings["template"]], hparams=hparams, **others)

    def twin(self, plan: Plan | None = None) -> "Population":
        """`of_settings` with this population's settings, and another plan if one is given."""
        return self.of_settings({**self.settings(), "plan": plan or self.plan})

    def __len__(self) -> int:
        return len(self._state["step"])

    @property
    def hparams(self) -> dict[str, Tensor]:
        return {name: self._state[f"hparams/{name}"] for name in HPARAMS}

    def set_hparams(self, hparams: Mapping[str, Tensor]) -> None:
        for name in HPARAMS:
            self._state[f"hparams/{name}"].copy_(hparams[name])
        self.drop_pending()

    def use(self, plan: Plan) -> None:
        """Compute by another plan from now on."""
        self.plan = plan
        self.together.kernels = Kernels(dict(plan.kernels))
        self.load_state(self._state)

    def _initial(self, members: Sequence[nn.Module], hparams: Mapping[str, Tensor]) -> State:
        state: State = {}
        learned = {name for name, parameter in members[0].named_parameters() if parameter.requires_grad}
        by_member = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in members]
        for name in by_member[0]:
            kind = "params" if name in learned else "buffers"
            state[f"{kind}/{name}"] = torch.stack([t[name].detach() for t in by_member]).to(self.device)
        for name in learned:
            for slot in SLOTS[self.optimizer]:
                state[f"{slot}/{name}"] = torch.zeros_like(state[f"params/{name}"])
        count = len(members)
        state["step"] = torch.zeros(count, device=self.device)
        state["alive"] = torch.ones(count, dtype=torch.bool, device=self.device)
        for name in HPARAMS:
            dtype = torch.int64 if name == "batch_size" else torch.float64
            state[f"hparams/{name}"] = hparams[name].to(dtype).clone()
        return state

    def state(self) -> State:
        """All that makes up the members, as copies; every tensor leads with P."""
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in self._state.items()}

    def view(self) -> State:
        """`state` without copies: it changes as the members do."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Become the members of `state`; their number may differ from before."""
        self._state = {name: self._laid_out(tensor) for name, tensor in state.items()}
        self._flat = Flat.of(self._state, SLOTS[self.optimizer]) if self.plan.way != "one by one" else None
        self._params, self._buffers = self._named("params"), self._named("buffers")
        self._members = []
        self.drop_pending()

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """A copy, kernels [P, C_out, C_in, h, w] with the input channels innermost where that is asked for."""
        if self.plan.channels_last and tensor.ndim == 5:
            return tensor.permute(0, 1, 3, 4, 2).clone(memory_format=torch.contiguous_format).permute(0, 1, 4, 2, 3)
        return tensor.clone(memory_format=torch.contiguous_format)

    def _named(self, kind: str) -> dict[str, Tensor]:
        return {name.removeprefix(f"{kind}/"): t for name, t in self._state.items() if name.startswith(f"{kind}/")}

    def modules(self) -> list[nn.Module]:
        """The members as modules whose tensors are views of the population's; made when first needed."""
        while len(self._members) < len(self):
            member, p = copy.deepcopy(self.template), len(self._members)
            for name, tensor in member.named_parameters():
                kind = "params" if tensor.requires_grad else "buffers"
                tensor.data = self._state[f"{kind}/{name}"][p]
            for name, _ in list(member.named_buffers()):
                owner, _, leaf = name.rpartition(".")
                setattr(member.get_submodule(owner), leaf, self._state[f"buffers/{name}"][p])
            self._members.append(torch.compile(member) if self.compiled else member)  # type: ignore[arg-type]
        return self._members

    def copy(self, parents: Tensor) -> None:
        """Member i becomes a copy of member parents[i], optimizer state and hyperparameters too. parents: [Q] int64."""
        self.load_state(take(self._state, parents))

    def advance(self, feed: Feed, position: int, count: int) -> list[Tensor]:
        """`minibatch_losses` of the `count` examples that follow `position` samples of training."""
        return self.minibatch_losses(self.examples(feed, position, count))

    def examples(self, feed: Feed, position: int, count: int) -> Batch:
        """What the population learns from there; where it learns from statistics, the numbers of the examples."""
        if self.plan.way != "moments":
            return feed.take(position, count)
        if self.table is None:
            assert self.moments is not None
            began = time.perf_counter()
            self.table = self.moments.compute(feed.data())
            log.info("second-order statistics of %d examples: %.1f s", len(self.table), time.perf_counter() - began)
        index = feed.indices(position, count).to(self.device)
        return Batch(index, index)

    def step(self, batch: Batch) -> Tensor:
        """Every member advances over the same examples, in minibatches of its own size.

        Examples that do not fill a member's minibatch wait for the next call (until `drop_pending`). Returns each
        member's losses, averaged over the minibatches it made in this call: [P], NaN where it made none.
        """
        none = torch.tensor(torch.nan, device=self.device)
        return torch.stack([loss.mean() if len(loss) else none for loss in self.minibatch_losses(batch)])

    def minibatch_losses(self, batch: Batch) -> list[Tensor]:
        """`step`, but each member's minibatch losses one by one: P tensors of shape [minibatches]."""
        sizes = self._sizes
        if self.plan.way == "one by one" or (self.whole and len(set(sizes)) > 1):
            return [self._advance_one(p, size, batch) for p, size in enumerate(sizes)]
        return self._advance_together(sizes, batch)

    def drop_pending(self) -> None:
        """Forget the examples that did not fill a minibatch, and what was learned from them."""
        count = len(self)
        self._pending: list[list[Batch]] = [[] for _ in range(count)]
        self._filled = [0] * count
        self._sizes = [int(size) for size in self._state["hparams/batch_size"]]
        self._weights = 1 / torch.tensor(self._sizes, dtype=torch.float64, device=self.device)
        if self._flat:
            self._flat.spread = {}
        self._gradients: list[Tensor] | None = None
        self._losses = torch.zeros(count, device=self.device)

    # All members at once.

    def _advance_together(self, sizes: list[int], batch: Batch) -> list[Tensor]:
        """Passes of as many examples as all members can take before one of them has filled its minibatch."""
        done: list[list[Tensor]] = [[] for _ in sizes]
        offset = 0
        if self.whole:
            batch = Batch(*(torch.cat(parts) for parts in zip(*self._pending[0], batch, strict=True)))
            self._pending[0] = []
        while offset < len(batch.inputs):
            count = min(size - filled for size, filled in zip(sizes, self._filled, strict=True))
            rest = len(batch.inputs) - offset
            if self.whole and rest < count:
                self._pending[0] = [Batch(*(part[offset:] for part in batch))]
                break
            count = min(count, rest, count if self.whole else self.plan.slice or count)
            try:
                self._accumulate(Batch(*(part[offset : offset + count] for part in batch)))
            except (MemoryError, RuntimeError) as error:
                self._split(count, error)
                if self.plan.way == "together":
                    continue
                remaining = Batch(*(part[offset:] for part in batch))
                return [
                    torch.cat([torch.stack(losses)] * bool(losses) + [self._advance_one(p, sizes[p], remaining)])
                    for p, losses in enumerate(done)
                ]
            offset += count
            self._filled = [filled + count for filled in self._filled]
            due = [p for p, (size, filled) in enumerate(zip(sizes, self._filled, strict=True)) if filled == size]
            if due:
                losses = self._update(due, sizes)
                for i, p in enumerate(due):
                    done[p].append(losses[i])
        return [torch.stack(losses) if losses else self._losses.new_empty(0) for losses in done]

    def _accumulate(self, batch: Batch) -> None:
        """Add the gradients of one pass to those of every member's unfinished minibatch."""
        params, buffers, weights = self._params, self._buffers, self._weights
        before = {name: buffer.clone() for name, buffer in buffers.items()} if self.whole else {}
        found: Sequence[Tensor | None]
        try:
            if self.plan.way == "moments":
                assert self.moments is not None
                assert self.table is not None
                sums, found = self.moments.losses_and_gradients(params, self.table, batch.inputs, weights)
            else:
                with self._autocast():
                    losses, found = self.together.losses_and_gradients(params, buffers, batch, weights)
                sums = losses.sum(1)
        except (MemoryError, RuntimeError):
            for name, buffer in before.items():  # running statistics, which the pass may have changed
                buffers[name].copy_(buffer)
            raise
        self._losses = self._losses.to(sums.dtype) + sums * weights.to(sums)
        grads = [g if g is not None else torch.zeros_like(p) for g, p in zip(found, params.values(), strict=True)]
        self._unused = [name for name, grad in zip(params, found, strict=True) if grad is None]
        if self._gradients is None:
            self._gradients = grads
        else:
            # Not in place: two parameters may share one gradient, as the two biases of an LSTM do.
            self._gradients = [a + b for a, b in zip(self._gradients, grads, strict=True)]

    def _split(self, count: int, error: BaseException) -> None:
        """After a pass over `count` examples that did not fit into memory: a plan of smaller passes, or the error."""
        texts = ("can't allocate memory", "not enough memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in texts):
            raise error
        if not self.whole and count > 1:
            self.plan = replace(self.plan, slice=count // 2)
        elif self.plan.way == "together":
            self.plan = replace(self.plan, way="one by one")
        else:
            raise error
        log.warning("out of memory: training goes on with %s", self.plan)

    def _update(self, due: list[int], sizes: list[int]) -> Tensor:
        """Update the members whose minibatch is full, and begin their next one; its losses, [len(due)]."""
        assert self._gradients is not None
        everyone = len(due) == len(sizes)
        if everyone and self._flat and not self._unused:
            return self._update_everyone(self._flat)
        names = [name for name in self._params if name not in self._unused]
        kept = [i for i, name in enumerate(self._params) if name not in self._unused]
        hparams = {name: self._state[f"hparams/{name}"].to(self.device) for name in HPARAMS[:3]}
        hparams["lr"] = hparams["lr"] * self.lr_scale
        for rows in [slice(None)] if everyone else [slice(p, p + 1) for p in due]:
            grads = [self._gradients[i][rows] for i in kept]
            if self.clip_norm is not None:
                grads = clipped(grads, self.clip_norm)
            update(
                self.optimizer,
                [self._state[f"params/{name}"][rows] for name in names],
                grads,
                {slot: [self._state[f"{slot}/{name}"][rows] for name in names] for slot in SLOTS[self.optimizer]},
                self._state["step"][rows],
                {name: value[rows] for name, value in hparams.items()},
            )
        chosen = torch.tensor(due, device=self.device)
        losses, alive = self._losses[chosen], self._state["alive"]
        if everyone:
            self._gradients = None
            self._losses = torch.zeros_like(self._losses)
        else:
            for grad in self._gradients:
                grad[chosen] = 0
            self._losses[chosen] = 0
        for p in due:
            self._filled[p] = 0
        losses = torch.where(alive[chosen], losses, torch.nan)
        alive[chosen] = alive[chosen] & losses.isfinite()
        return losses

    def _update_everyone(self, flat: "Flat") -> Tensor:
        """`_update` of all members in a few operations on all their numbers: starting them is what takes the time."""
        assert self._gradients is not None
        grads = self._gradients if self.clip_norm is None else clipped(self._gradients, self.clip_norm)
        if not flat.spread:
            hparams = {name: self._state[f"hparams/{name}"].to(self.device) for name in HPARAMS[:3]}
            flat.spread = {name: value.to(grads[0].dtype)[flat.owner] for name, value in hparams.items()}
        hparams = {**flat.spread, "lr": flat.spread["lr"] * self.lr_scale}
        update(
            self.optimizer,
            [flat.tensors["params"]],
            [torch.cat([grad.reshape(-1) for grad in grads])],
            {slot: [flat.tensors[slot]] for slot in SLOTS[self.optimizer]},
            self._state["step"][flat.owner],
            hparams,
        )
        self._state["step"] += 1
        alive = self._state["alive"]
        losses = torch.where(alive, self._losses, torch.nan)
        alive &= losses.isfinite()
        self._gradients, self._losses, self._filled = None, torch.zeros_like(losses), [0] * len(self)
        return losses

    # One member after the other.

    def _advance_one(self, p: int, size: int, batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        if self._state["alive"][p]:
            stock = Batch(*(torch.cat(parts) for parts in zip(*self._pending[p], batch, strict=True)))
            full = len(stock.inputs) // size
            for i in range(full):
                here = slice(i * size, (i + 1) * size)
                losses.append(self._update_one(p, Batch(stock.inputs[here], stock.targets[here])))
                if not losses[-1].isfinite():
                    self._state["alive"][p] = False
                    break
            rest = slice(full * size, None)
            self._pending[p] = [Batch(stock.inputs[rest], stock.targets[rest])] if len(stock.inputs) % size else []
        return torch.stack(losses) if losses else torch.empty(0, device=self.device)

    def _update_one(self, p: int, batch: Batch) -> Tensor:
        while True:
            count = len(batch.inputs)
            length = count if self.whole else min(self.plan.slice or count, count)
            try:
                loss, grads = self._gradients_one(p, batch, length)
                break
            except (MemoryError, RuntimeError) as error:
                self._split(length, error)
        if self.clip_norm is not None:
            whole = clipped([grad[None] for grad in grads.values()], self.clip_norm)
            grads = {name: grad[0] for name, grad in zip(grads, whole, strict=True)}
        hparams = {name: float(self._state[f"hparams/{name}"][p]) for name in HPARAMS[:3]}
        with torch.no_grad():
            update_one(
                self.optimizer,
                [self._state[f"params/{name}"][p] for name in grads],
                list(grads.values()),
                {slot: [self._state[f"{slot}/{name}"][p] for name in grads] for slot in SLOTS[self.optimizer]},
                self._state["step"][p],
                **{**hparams, "lr": hparams["lr"] * self.lr_scale},
            )
        return loss

    def _gradients_one(self, p: int, batch: Batch, length: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a minibatch and its gradients, in passes of `length` examples."""
        member = self.modules()[p].train()
        named = {name.removeprefix("_orig_mod."): t for name, t in member.named_parameters() if t.requires_grad}
        total = torch.zeros((), device=self.device)
        found: Sequence[Tensor | None] | None = None
        for inputs, targets in zip(batch.inputs.split(length), batch.targets.split(length), strict=True):
            if self.plan.channels_last and inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with self._autocast():
                losses = self._full_precision(self.loss)(member(inputs), targets)
            loss = losses.sum() / len(batch.inputs)
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            found = grads if found is None else [_sum(a, b) for a, b in zip(found, grads, strict=True)]
            total = total + loss.detach()
        assert found is not None
        return total, {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}

    def _full_precision(self, loss: PerExample) -> PerExample:
        return (lambda outputs, targets: loss(outputs.float(), targets)) if self.precision == "bf16" else loss

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    # Evaluation.

    def predict(self, inputs: Tensor) -> list[Tensor]:
        """Outputs of every member, in evaluation mode and without gradients: P tensors [B, ...]."""
        with torch.no_grad(), self._autocast():
            if self.plan.way == "together":
                length = self.plan.slice or len(inputs)
                parts = [self.together.outputs(self._params, self._buffers, part) for part in inputs.split(length)]
                outputs = list(torch.cat(parts, 1).unbind())
            else:
                outputs = [member.eval()(inputs) for member in self.modules()]
        return [out.float() for out in outputs] if self.precision == "bf16" else outputs

    def evaluate(self, batch: Batch, metrics: Collection[str] | None = None) -> dict[str, Tensor]:
        """The loss and some metrics, by default all, of every member in evaluation mode: name -> [P, B]."""
        chosen = self.metrics if metrics is None else {name: self.metrics[name] for name in metrics}
        measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"loss": self.loss, **chosen}
        outputs = self.predict(batch.inputs)
        with torch.no_grad():
            return {
                name: torch.stack([measure(o, batch.targets) for o in outputs]) for name, measure in measures.items()
            }

    def member(self, p: int) -> nn.Module:
        """A free-standing copy of one member, in evaluation mode and the usual memory layout."""
        member = copy.deepcopy(self.template)
        with torch.no_grad():
            for name, tensor in [*member.named_parameters(), *member.named_buffers()]:
                kind = "params" if tensor.requires_grad else "buffers"
                tensor.copy_(self._state[f"{kind}/{name}"][p])
        return member.eval()
