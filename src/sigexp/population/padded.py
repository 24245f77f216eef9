"""Members that each take their own next minibatch in a pass, padded to the longest where batch sizes differ.

The passes of steps.py end wherever a minibatch of any member does, and so are as short as what the sizes have in
common. That is right for images, which are computed one by one. Of short sequences many are computed side by side in a
processor's registers, and small layers take as long for few examples as for many.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sigexp.population.lines import Flat
from sigexp.population.sending import sent
from sigexp.population.steps import AllAtOnce, joined, smaller_passes, waiting
from sigexp.problem import Batch

if TYPE_CHECKING:
    from sigexp.population.population import Population

LONG = 64  # examples that fill a processor: passes are at least so long, where minibatches are
GRAIN = 32  # multiples of it are the lengths of passes, so that few shapes occur, each of which repeats (repeating.py)


class Padded(AllAtOnce):
    """`seen` is what all members have learned from; `taken`, how much each has of the examples that wait."""

    def __init__(self, population: "Population", flat: Flat | None, seen: int = 0) -> None:
        super().__init__(population, flat, seen)
        self.taken = [0] * len(self.sizes)
        self.masks = True
        most = population.plan.slice
        self.longest = most or -(-min(self.sizes) // LONG) * LONG  # examples in one pass

    def advance(self, batch: Batch) -> list[Tensor]:
        stock = joined(self.waiting, batch)
        done: list[list[Tensor]] = [[] for _ in self.sizes]
        while due := [p for p, size in enumerate(self.sizes) if self.taken[p] + size <= len(stock.inputs)]:
            self._learn(stock, due)
            losses = self._update(due)
            for i, p in enumerate(due):
                done[p].append(losses[i])
                self.taken[p] += self.sizes[p]
        used = min(self.taken)
        self.seen += used
        self.taken = [taken - used for taken in self.taken]
        rest = Batch(*(part[used:] for part in stock))
        self.waiting = [rest] if len(rest.inputs) else []
        return [torch.stack(losses) if losses else self.losses.new_empty(0) for losses in done]

    def _learn(self, stock: Batch, due: list[int]) -> None:
        """The losses and gradients of the next minibatches of these members; those of the others are zero."""
        population = self.population
        width, grain = max(self.sizes[p] for p in due), min(GRAIN, self.longest)
        same = len(due) == len(self.sizes) and len({*zip(self.sizes, self.taken, strict=True)}) == 1
        device = population.device
        place = torch.arange(width if same else -(-width // grain) * grain, device=device)
        lengths = sent([size if p in due else 0 for p, size in enumerate(self.sizes)], device)
        begin = sent(self.taken, device)
        index = (begin[:, None] + place).clamp_(max=len(stock.inputs) - 1)
        weights = torch.where(place < lengths[:, None], self.weights[:, None], 0)
        first = 0
        while first < width:
            here = slice(first, first + self.longest)
            some = [p for p in due if self.sizes[p] > first]
            everyone = population.buffers or len(some) == len(self.sizes)
            rows = slice(None) if everyone else sent(some, device)
            try:
                if same:
                    self._accumulate(Batch(*(part[index[0, here]] for part in stock)))
                else:
                    self._pass(stock, index[rows, here], weights[rows, here], rows)
            except (MemoryError, RuntimeError) as error:
                if self.longest == 1:
                    raise
                smaller_passes(population, self.longest, error)
                self.longest //= 2
                continue
            first += self.longest

    def _pass(self, stock: Batch, index: Tensor, weights: Tensor, rows: Tensor | slice) -> None:
        """Learn from examples [Q, B] of some members; their buffers are not copied, because a pass may change them."""
        population = self.population
        params = {name: tensor[rows] for name, tensor in population.params.items()}
        with population.autocast():
            own = Batch(*(part[index] for part in stock))
            losses, found = population.together.losses_and_gradients(params, population.buffers, own, weights)
        sums = torch.where(weights > 0, losses * weights.to(losses), 0).sum(1)
        if isinstance(rows, slice):
            self._add(sums, found)
            return
        spread = [
            None if g is None else g.new_zeros(len(self.sizes), *g.shape[1:]).index_copy_(0, rows, g) for g in found
        ]
        self._add(sums.new_zeros(len(self.sizes)).index_copy_(0, rows, sums), spread)

    def _begin(self, due: list[int] | None) -> None:
        """Nothing is left for a later pass: every minibatch was whole."""
        super()._begin(None)

    def scale(self) -> float | Tensor:
        """The schedule's factor where each member's minibatch began: [P] on the CPU, or one number for all."""
        schedule = self.population.schedule
        if schedule.name == "constant":
            return 1.0
        return torch.tensor([schedule.at(self.seen + taken) for taken in self.taken], dtype=torch.float64)

    def unfinished(self) -> dict[str, Tensor]:
        if not self.seen and not self.waiting:
            return {}
        found = {"seen": torch.tensor(self.seen), "taken": torch.tensor(self.taken)}
        for name, part in zip(Batch._fields, self.waiting[0] if self.waiting else (), strict=False):
            found[f"waiting/{name}"] = part.clone()
        return found

    def go_on(self, unfinished: Mapping[str, Tensor]) -> None:
        self.seen, self.taken = int(unfinished["seen"]), unfinished["taken"].tolist()
        self.waiting = waiting(unfinished, "waiting", self.population.device)
