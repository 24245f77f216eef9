"""How the members of a population advance over a minibatch: all at once, or one after the other.

Both have one method, `advance`. Examples that do not fill a member's minibatch, or what was learned from them, wait in
here for the next call. They know their population by a weak reference: in a cycle its tensors would outlive it.
"""

import logging
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sigexp.population.optimizers import LARGE, SLOTS, clipped, update, update_one
from sigexp.problem import Batch

if TYPE_CHECKING:
    from sigexp.population.population import Population, State

log = logging.getLogger("sigexp")
LEARNING = ("lr", "momentum", "weight_decay")


def joined(before: Sequence[Batch], batch: Batch) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*before, batch, strict=True))) if before else batch


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def smaller_passes(population: "Population", count: int, error: BaseException) -> None:
    """After a pass over `count` examples that did not fit into memory: a plan that needs less, or the error."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    if not isinstance(error, MemoryError) and not any(text in str(error) for text in texts):
        raise error
    if not population.whole and count > 1:
        population.plan = replace(population.plan, slice=count // 2)
    elif population.plan.way == "together":
        population.plan = replace(population.plan, way="one by one")
    else:
        raise error
    log.warning("out of memory: training goes on with %s", population.plan)


@dataclass
class Flat:
    """All parameters of all members in one line, and the optimizer's state likewise; those in `State` are views of it.

    tensors: params and slots -> [numbers]. owner: [numbers] int64, whose number it is.
    """

    tensors: dict[str, Tensor]
    owner: Tensor

    @classmethod
    def of(cls, state: "State", slots: Collection[str]) -> "Flat | None":
        """Replaces the tensors in `state` by views; None for large models, which gain nothing, and for mixed types."""
        names = [name.removeprefix("params/") for name in state if name.startswith("params/")]
        params = [state[f"params/{name}"] for name in names]
        if sum(param[0].numel() for param in params) >= LARGE or len({param.dtype for param in params}) != 1:
            return None
        kinds = ("params", *slots)
        tensors = {kind: torch.cat([state[f"{kind}/{name}"].flatten() for name in names]) for kind in kinds}
        for kind, line in tensors.items():
            for name, part in zip(names, line.split([param.numel() for param in params]), strict=True):
                state[f"{kind}/{name}"] = part.view(state[f"{kind}/{name}"].shape)
        count = len(params[0])
        members = torch.arange(count, device=params[0].device)
        return cls(tensors, torch.cat([members.repeat_interleave(param.numel() // count) for param in params]))


class AllAtOnce:
    """One pass for all members. Gradients are summed over the passes that a member's minibatch takes."""

    def __init__(self, population: "Population", flat: Flat | None) -> None:
        count = len(population)
        self.population, self.flat = weakref.proxy(population), flat
        self.sizes = [int(size) for size in population.hparams["batch_size"]]
        self.weights = 1 / torch.tensor(self.sizes, dtype=torch.float64, device=population.device)
        self.filled = [0] * count  # examples of each member's unfinished minibatch
        self.waiting: list[Batch] = []  # examples, of models that take a minibatch whole
        self.gradients: list[Tensor] | None = None
        self.unused: list[str] = []
        self.spread: dict[str, Tensor] = {}  # the hyperparameters of every number in `flat`, made when first needed
        self.losses = torch.zeros(count, device=population.device)

    def advance(self, batch: Batch) -> list[Tensor]:
        """Passes of as many examples as all members can take before one of them has filled its minibatch."""
        population, offset = self.population, 0
        done: list[list[Tensor]] = [[] for _ in self.sizes]
        batch, self.waiting = joined(self.waiting, batch), []
        while offset < len(batch.inputs):
            count = min(size - filled for size, filled in zip(self.sizes, self.filled, strict=True))
            rest = len(batch.inputs) - offset
            if population.whole and rest < count:
                self.waiting = [Batch(*(part[offset:] for part in batch))]
                break
            count = min(count, rest, count if population.whole else population.plan.slice or count)
            try:
                self._accumulate(Batch(*(part[offset : offset + count] for part in batch)))
            except (MemoryError, RuntimeError) as error:
                smaller_passes(population, count, error)
                if population.plan.way == "together":
                    continue
                alone = population.restart()
                others = alone.advance(Batch(*(part[offset:] for part in batch)))
                pairs = zip(done, others, strict=True)
                return [torch.cat([*[loss[None] for loss in losses], other]) for losses, other in pairs]
            offset += count
            self.filled = [filled + count for filled in self.filled]
            due = [p for p, (size, filled) in enumerate(zip(self.sizes, self.filled, strict=True)) if filled == size]
            if due:
                losses = self._update(due)
                for i, p in enumerate(due):
                    done[p].append(losses[i])
        return [torch.stack(losses) if losses else self.losses.new_empty(0) for losses in done]

    def _accumulate(self, batch: Batch) -> None:
        """Add the gradients of one pass to those of every member's unfinished minibatch."""
        population, weights = self.population, self.weights
        params, buffers = population.params, population.buffers
        before = {name: buffer.clone() for name, buffer in buffers.items()} if population.whole else {}
        found: Sequence[Tensor | None]
        try:
            if population.plan.way == "moments":
                assert population.moments is not None
                assert population.table is not None
                sums, found = population.moments.losses_and_gradients(params, population.table, batch.inputs, weights)
            else:
                with population.autocast():
                    losses, found = population.together.losses_and_gradients(params, buffers, batch, weights)
                sums = losses.sum(1)
        except (MemoryError, RuntimeError):
            for name, buffer in before.items():  # running statistics, which the pass may have changed
                buffers[name].copy_(buffer)
            raise
        self.losses = self.losses.to(sums.dtype) + sums * weights.to(sums)
        grads = [g if g is not None else torch.zeros_like(p) for g, p in zip(found, params.values(), strict=True)]
        self.unused = [name for name, grad in zip(params, found, strict=True) if grad is None]
        if self.gradients is None:
            self.gradients = grads
        else:
            # Not in place: two parameters may share one gradient, as the two biases of an LSTM do.
            self.gradients = [a + b for a, b in zip(self.gradients, grads, strict=True)]

    def _update(self, due: list[int]) -> Tensor:
        """Update the members whose minibatch is full, and begin their next one; its losses, [len(due)]."""
        assert self.gradients is not None
        population, everyone = self.population, len(due) == len(self.sizes)
        if everyone and self.flat and not self.unused:
            return self._update_everyone(self.flat)
        names = [name for name in population.params if name not in self.unused]
        kept = [i for i, name in enumerate(population.params) if name not in self.unused]
        hparams = {name: population.hparams[name].to(population.device) for name in LEARNING}
        hparams["lr"] = hparams["lr"] * population.lr_scale
        slots = SLOTS[population.optimizer]
        for rows in [slice(None)] if everyone else [slice(p, p + 1) for p in due]:
            grads = [self.gradients[i][rows] for i in kept]
            if population.clip_norm is not None:
                grads = clipped(grads, population.clip_norm)
            update(
                population.optimizer,
                [population.store[f"params/{name}"][rows] for name in names],
                grads,
                {slot: [population.store[f"{slot}/{name}"][rows] for name in names] for slot in slots},
                population.store["step"][rows],
                {name: value[rows] for name, value in hparams.items()},
            )
        chosen = torch.tensor(due, device=population.device)
        losses, alive = self.losses[chosen], population.store["alive"]
        if everyone:
            self.gradients = None
            self.losses = torch.zeros_like(self.losses)
        else:
            for grad in self.gradients:
                grad[chosen] = 0
            self.losses[chosen] = 0
        for p in due:
            self.filled[p] = 0
        losses = torch.where(alive[chosen], losses, torch.nan)
        alive[chosen] = alive[chosen] & losses.isfinite()
        return losses

    def _update_everyone(self, flat: Flat) -> Tensor:
        """`_update` of all members in a few operations on all their numbers: starting them is what takes the time."""
        population = self.population
        assert self.gradients is not None
        grads = self.gradients if population.clip_norm is None else clipped(self.gradients, population.clip_norm)
        if not self.spread:
            hparams = {name: population.hparams[name].to(population.device) for name in LEARNING}
            self.spread = {name: value.to(grads[0].dtype)[flat.owner] for name, value in hparams.items()}
        hparams = {**self.spread, "lr": self.spread["lr"] * population.lr_scale}
        update(
            population.optimizer,
            [flat.tensors["params"]],
            [torch.cat([grad.reshape(-1) for grad in grads])],
            {slot: [flat.tensors[slot]] for slot in SLOTS[population.optimizer]},
            population.store["step"][flat.owner],
            hparams,
        )
        population.store["step"] += 1
        alive = population.store["alive"]
        losses = torch.where(alive, self.losses, torch.nan)
        alive &= losses.isfinite()
        self.gradients, self.losses, self.filled = None, torch.zeros_like(losses), [0] * len(self.sizes)
        return losses


class OneByOne:
    """The library's operations, member after member."""

    def __init__(self, population: "Population") -> None:
        self.population = weakref.proxy(population)
        self.sizes = [int(size) for size in population.hparams["batch_size"]]
        self.waiting: list[list[Batch]] = [[] for _ in self.sizes]

    def advance(self, batch: Batch) -> list[Tensor]:
        return [self._advance_member(p, size, batch) for p, size in enumerate(self.sizes)]

    def _advance_member(self, p: int, size: int, batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        alive = self.population.store["alive"]
        if alive[p]:
            stock = joined(self.waiting[p], batch)
            full = len(stock.inputs) // size
            for i in range(full):
                here = slice(i * size, (i + 1) * size)
                losses.append(self._update_one(p, Batch(stock.inputs[here], stock.targets[here])))
                if not losses[-1].isfinite():
                    alive[p] = False
                    break
            rest = slice(full * size, None)
            self.waiting[p] = [Batch(stock.inputs[rest], stock.targets[rest])] if len(stock.inputs) % size else []
        return torch.stack(losses) if losses else torch.empty(0, device=self.population.device)

    def _update_one(self, p: int, batch: Batch) -> Tensor:
        population = self.population
        while True:
            count = len(batch.inputs)
            length = count if population.whole else min(population.plan.slice or count, count)
            try:
                loss, grads = self._gradients_one(p, batch, length)
                break
            except (MemoryError, RuntimeError) as error:
                smaller_passes(population, length, error)
        if population.clip_norm is not None:
            whole = clipped([grad[None] for grad in grads.values()], population.clip_norm)
            grads = {name: grad[0] for name, grad in zip(grads, whole, strict=True)}
        hparams = {name: float(population.hparams[name][p]) for name in LEARNING}
        slots = SLOTS[population.optimizer]
        with torch.no_grad():
            update_one(
                population.optimizer,
                [population.store[f"params/{name}"][p] for name in grads],
                list(grads.values()),
                {slot: [population.store[f"{slot}/{name}"][p] for name in grads] for slot in slots},
                population.store["step"][p],
                **{**hparams, "lr": hparams["lr"] * population.lr_scale},
            )
        return loss

    def _gradients_one(self, p: int, batch: Batch, length: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a minibatch and its gradients, in passes of `length` examples."""
        population = self.population
        member = population.modules()[p].train()
        named = {name.removeprefix("_orig_mod."): t for name, t in member.named_parameters() if t.requires_grad}
        total = torch.zeros((), device=self.population.device)
        found: Sequence[Tensor | None] | None = None
        for inputs, targets in zip(batch.inputs.split(length), batch.targets.split(length), strict=True):
            if population.plan.channels_last and inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with population.autocast():
                losses = population.full_precision(population.loss)(member(inputs), targets)
            loss = losses.sum() / len(batch.inputs)
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            found = grads if found is None else [_sum(a, b) for a, b in zip(found, grads, strict=True)]
            total = total + loss.detach()
        assert found is not None
        return total, {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}
