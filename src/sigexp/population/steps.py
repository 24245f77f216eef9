"""How the members of a population advance over a minibatch all at once; one_by_one.py is the other way.

`advance` is what both do. Examples that do not fill a member's minibatch, or what was learned from them, wait in here
for the next call; `unfinished` and `go_on` take that out and put it back. They know their population by a weak
reference: in a cycle its tensors would outlive it.
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sigexp.population import compiling
from sigexp.population.lines import Flat, advance
from sigexp.population.optimizers import SLOTS, clipped, compiled_update, update
from sigexp.population.repeating import KINDS
from sigexp.population.sending import sent
from sigexp.problem import Batch

if TYPE_CHECKING:
    from sigexp.population.population import Population

log = logging.getLogger("sigexp")
LEARNING = ("lr", "momentum", "weight_decay")


def joined(before: Sequence[Batch], batch: Batch) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*before, batch, strict=True))) if before else batch


def waiting(unfinished: Mapping[str, Tensor], prefix: str, device: torch.device) -> list[Batch]:
    """The examples that wait under a prefix, where there are any."""
    parts = [unfinished.get(f"{prefix}/{name}") for name in Batch._fields]
    return [Batch(*(part.to(device) for part in parts if part is not None))] if parts[0] is not None else []


def smaller_passes(population: "Population", count: int, error: BaseException) -> None:
    """After a pass over `count` examples that did not fit into memory: a plan that needs less, or the error."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    if not isinstance(error, MemoryError) and not any(text in str(error) for text in texts):
        raise error
    population.forget_recordings()
    if not population.whole and count > 1:
        population.plan = replace(population.plan, slice=count // 2)
    elif population.plan.way == "together":
        population.plan = replace(population.plan, way="one by one")
    else:
        raise error
    log.warning("out of memory: training goes on with %s", population.plan)


class AllAtOnce:
    """One pass for all members. Gradients are summed over the passes that a member's minibatch takes."""

    def __init__(self, population: "Population", flat: Flat | None, seen: int = 0) -> None:
        count = len(population)
        self.population, self.flat = weakref.proxy(population), flat
        self.sizes = [int(size) for size in population.hparams["batch_size"]]
        self.full = np.array(self.sizes)  # the same, as `filled` is reckoned with
        self.weights = 1 / torch.tensor(self.sizes, dtype=torch.float64, device=population.device)
        self.seen = seen  # examples since the beginning
        self.filled = np.zeros(count, np.int64)  # of them in each member's unfinished minibatch
        self.waiting: list[Batch] = []  # examples, of models that take a minibatch whole
        self.gradients: list[Tensor] | None = None
        self.unused: list[str] = []
        self.spread: dict[str, Tensor] = {}  # hyperparameters as the update takes them, made when first needed
        self.losses = torch.zeros(count, device=population.device)
        # On a processor the members whose turn it is are quicker one by one.
        self.masks = population.device.type != "cpu"

    def advance(self, batch: Batch) -> list[Tensor]:
        """Passes of as many examples as all members can take before one of them has filled its minibatch."""
        population, offset = self.population, 0
        done: list[list[Tensor]] = [[] for _ in self.sizes]
        batch, self.waiting = joined(self.waiting, batch), []
        examples = len(batch.inputs)
        while offset < examples:
            count = self._room()
            rest = examples - offset
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
                alone = population.restart(self.seen)
                others = alone.advance(Batch(*(part[offset:] for part in batch)))
                pairs = zip(done, others, strict=True)
                return [torch.cat([*[loss[None] for loss in losses], other]) for losses, other in pairs]
            offset += count
            if due := np.flatnonzero(self._fill(count)).tolist():
                losses = self._update(due)
                for i, p in enumerate(due):
                    done[p].append(losses[i])
        return [torch.stack(losses) if losses else self.losses.new_empty(0) for losses in done]

    def _room(self) -> int:
        """The examples that all members can take before one of them has filled its minibatch."""
        return int((self.full - self.filled).min())

    def _fill(self, count: int) -> np.ndarray:
        """A pass takes so many examples: whose minibatch is full after it, and the next one empty, [P] bool."""
        self.seen += count
        self.filled = self.filled + count
        turn = self.filled == self.full
        self.filled[turn] = 0
        return turn

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
        self._add(sums * weights.to(sums), found)

    def _add(self, losses: Tensor, found: Sequence[Tensor | None]) -> None:
        """Add one pass's share of the minibatches' losses [P], and its gradients."""
        params = self.population.params
        self.losses = self.losses.to(losses.dtype) + losses
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
        everyone = len(due) == len(self.sizes)
        if self.flat and not self.unused and compiling.takes(self.flat.tensors["params"]):
            losses = self._update_compiled(self.flat, due)
        elif self.flat and not self.unused and (everyone or self.masks):
            losses = self._update_in_line(self.flat, due)
        else:
            losses = self._update_by_parameters(due)
        self._begin(None if everyone else due)
        return losses

    def _begin(self, due: list[int] | None) -> None:
        """The next minibatch of some members, or of all."""
        if due is None:
            self.gradients, self.losses = None, torch.zeros_like(self.losses)
            return
        chosen = sent(due, self.population.device)
        for part in (*(self.gradients or ()), self.losses):
            part.index_fill_(0, chosen, 0)  # by assignment torch would fetch the 0 from the host, and wait

    def _update_by_parameters(self, due: list[int]) -> Tensor:
        """Some members one by one, or everyone, whatever their parameters are."""
        assert self.gradients is not None
        population, everyone = self.population, len(due) == len(self.sizes)
        names = [name for name in population.params if name not in self.unused]
        kept = [i for i, name in enumerate(population.params) if name not in self.unused]
        hparams = {name: population.hparams[name] for name in LEARNING}
        hparams["lr"] = hparams["lr"] * self.scale()
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
        chosen, alive = sent(due, population.device), population.store["alive"]
        losses = torch.where(alive[chosen], self.losses[chosen], torch.nan)
        alive[chosen] = alive[chosen] & losses.isfinite()
        return losses

    def _update_compiled(self, flat: Flat, due: list[int]) -> Tensor:
        """Any members in one call of update.c, in float32 on the CPU."""
        population, everyone = self.population, len(due) == len(self.sizes)
        assert self.gradients is not None
        grads = self.gradients if population.clip_norm is None else clipped(self.gradients, population.clip_norm)
        if not self.spread:
            self.spread = {name: population.hparams[name].float() for name in LEARNING}
        turn = torch.full((len(self.sizes),), everyone)
        turn[due] = True
        losses = self.losses.to(torch.float32, copy=True)  # a loss may come in any type
        scale = self.scale()
        values = {**self.spread, "lr": self.spread["lr"] * (scale.float() if isinstance(scale, Tensor) else scale)}
        slots = [flat.tensors[slot] for slot in SLOTS[population.optimizer]]
        compiled_update(
            population.optimizer, [flat.tensors["params"], *slots], torch.cat([grad.reshape(-1) for grad in grads]),
            flat.owner, values, turn, population.store["step"], population.store["alive"], losses,
        )  # fmt: skip
        return losses if everyone else losses[due]

    def _update_in_line(self, flat: Flat, due: list[int]) -> Tensor:
        """Those whose turn it is, in a few operations on all numbers: starting them is what takes the time."""
        population, count = self.population, len(self.sizes)
        assert self.gradients is not None
        grads = self.gradients if population.clip_norm is None else clipped(self.gradients, population.clip_norm)
        if not self.spread:
            hparams = {name: sent(population.hparams[name], population.device) for name in LEARNING}
            self.spread = {name: value.to(grads[0].dtype)[flat.owner] for name, value in hparams.items()}
        grad, scale = torch.cat([grad.reshape(-1) for grad in grads]), self.scale()
        scale = scale if isinstance(scale, Tensor) else torch.full((count,), scale, dtype=torch.float64)
        scales = sent(scale.to(grad.dtype), population.device)
        turn = [sent([p in due for p in range(count)], population.device)] if len(due) < count else []
        tensors = [
            *flat.tensors.values(), population.store["step"], population.store["alive"],
            grad, self.losses, flat.owner, *self.spread.values(), scales, *turn,
        ]  # fmt: skip
        learn = partial(advance, population.optimizer, len(flat.tensors))
        again = population.device.type in KINDS and population.device.type != "cpu"
        (losses,) = population.updates(learn, *tensors) if again else learn(*tensors)
        assert losses is not None
        return losses if len(due) == count else losses[sent(due, population.device)]

    def scale(self) -> float | Tensor:
        """The schedule's factor where a minibatch that ends here began: one number, or [P] on the CPU."""
        schedule = self.population.schedule
        if len(set(self.sizes)) == 1 or schedule.name == "constant":
            return schedule.at(self.seen - self.sizes[0])
        return torch.tensor([schedule.at(self.seen - size) for size in self.sizes], dtype=torch.float64)

    def unfinished(self) -> dict[str, Tensor]:
        """What waits for the next call; nothing at the beginning."""
        if self.seen == 0:
            return {}
        found = {
            "seen": torch.tensor(self.seen),
            "filled": torch.tensor(self.filled),
            "losses": self.losses.clone(),
        }
        for name, part in zip(Batch._fields, self.waiting[0] if self.waiting else (), strict=False):
            found[f"waiting/{name}"] = part.clone()  # parts of a population wait with those of the same batch
        if self.gradients is not None:
            found |= {f"gradients/{i}": gradient.clone() for i, gradient in enumerate(self.gradients)}
            found["used"] = torch.tensor([name not in self.unused for name in self.population.params])
        return found

    def go_on(self, unfinished: Mapping[str, Tensor]) -> None:
        """Begin where `unfinished` was taken."""
        device = self.population.device
        self.seen, self.filled = int(unfinished["seen"]), unfinished["filled"].cpu().numpy().copy()
        self.losses = unfinished["losses"].to(device)
        self.waiting = waiting(unfinished, "waiting", device)
        if "used" in unfinished:
            used = zip(self.population.params, unfinished["used"].tolist(), strict=True)
            self.unused = [name for name, was in used if not was]
            self.gradients = [unfinished[f"gradients/{i}"].to(device) for i in range(len(self.population.params))]
