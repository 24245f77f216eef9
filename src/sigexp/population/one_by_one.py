"""How members advance one after the other: by the library's operations, or, where whole minibatches of different sizes
keep them apart, by those of `Together`; beside steps.py, where all advance at once."""

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sigexp.population.optimizers import SLOTS, clipped, update_one
from sigexp.population.steps import LEARNING, joined, smaller_passes, waiting
from sigexp.problem import Batch

if TYPE_CHECKING:
    from sigexp.population.population import Population


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class OneByOne:
    """Has the methods of `AllAtOnce`."""

    def __init__(self, population: "Population", seen: int = 0) -> None:
        self.population = weakref.proxy(population)
        self.sizes = [int(size) for size in population.hparams["batch_size"]]
        self.seen = [seen] * len(self.sizes)  # examples that each member has learned from since the beginning
        self.waiting: list[list[Batch]] = [[] for _ in self.sizes]

    def advance(self, batch: Batch) -> list[Tensor]:
        return [self._advance_member(p, size, batch) for p, size in enumerate(self.sizes)]

    def _advance_member(self, p: int, size: int, batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        alive = self.population.store["alive"]
        watched = alive.device.type == "cpu"  # elsewhere to read a number is to wait for all that was begun
        if not watched or alive[p]:
            stock = joined(self.waiting[p], batch)
            full = len(stock.inputs) // size
            for i in range(full):
                here = slice(i * size, (i + 1) * size)
                losses.append(self._update_one(p, Batch(stock.inputs[here], stock.targets[here])))
                self.seen[p] += size
                if watched and not losses[-1].isfinite():
                    alive[p] = False
                    break
            rest = slice(full * size, None)
            self.waiting[p] = [Batch(stock.inputs[rest], stock.targets[rest])] if len(stock.inputs) % size else []
        found = torch.stack(losses) if losses else torch.empty(0, device=alive.device)
        if not watched and losses:
            finite = found.isfinite().cumprod(0).bool() & alive[p]
            found, alive[p] = torch.where(finite, found, torch.nan), finite[-1]
        return found

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
                **{**hparams, "lr": hparams["lr"] * population.schedule.at(self.seen[p])},
            )
        return loss

    def unfinished(self) -> dict[str, Tensor]:
        if not any(self.seen) and not any(self.waiting):
            return {}
        found = {"seen": torch.tensor(self.seen)}
        for p, stock in enumerate(self.waiting):
            for name, part in zip(Batch._fields, stock[0] if stock else (), strict=False):
                found[f"waiting/{p}/{name}"] = part.clone()  # members wait with parts of the same batch
        return found

    def go_on(self, unfinished: Mapping[str, Tensor]) -> None:
        self.seen = unfinished["seen"].tolist()
        self.waiting = [waiting(unfinished, f"waiting/{p}", self.population.device) for p in range(len(self.sizes))]

    def _by_layers(self, p: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        population = self.population
        params, buffers = (
            {name: tensor[p : p + 1] for name, tensor in of.items()} for of in (population.params, population.buffers)
        )
        weights = torch.full((1,), 1 / len(batch.inputs), dtype=torch.float64, device=population.device)
        with population.autocast():
            losses, found = population.together.losses_and_gradients(params, buffers, batch, weights)
        grads = {name: grad[0] for name, grad in zip(params, found, strict=True) if grad is not None}
        return losses.mean(), grads

    def _gradients_one(self, p: int, batch: Batch, length: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a minibatch and its gradients, in passes of `length` examples."""
        population = self.population
        if (
            population.plan.way == "together"
        ):  # whole minibatches, of another length each: its layers, this member alone
            return self._by_layers(p, batch)
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
