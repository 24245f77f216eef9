"""P members of one architecture, their optimizer states and hyperparameters, advancing on shared minibatches.

Every parameter, buffer and optimizer state is one tensor with the members in front, so copying and selecting members
is indexing. How a minibatch's gradients are computed is the plan's choice and no concern of who uses a population.
"""

import copy
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sigexp import machine
from sigexp.evaluation import passes
from sigexp.population import compiling
from sigexp.population.convolution import Kernels
from sigexp.population.descent import Descent
from sigexp.population.feed import Feed
from sigexp.population.lines import Flat
from sigexp.population.moments import Moments
from sigexp.population.one_by_one import OneByOne
from sigexp.population.optimizers import SLOTS, Schedule
from sigexp.population.padded import Padded
from sigexp.population.plan import Plan
from sigexp.population.repeating import Repeating
from sigexp.population.sending import sent
from sigexp.population.state import HPARAMS, Snapshot, State, initial, module_of, take
from sigexp.population.steps import AllAtOnce
from sigexp.population.together import Together
from sigexp.problem import Batch, PerExample

log = logging.getLogger("sigexp")


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
        self.schedule = Schedule()  # of learning rates, over the examples since `set_hparams` or `drop_pending`
        self.template = copy.deepcopy(members[0]).to(self.device)
        # Statistics over the minibatch: it can neither be cut nor be longer for one member than for another.
        self.whole = any(isinstance(module, _BatchNorm) for module in self.template.modules())
        self.plan = plan or Plan()
        self.moments = Moments.of(self.template, loss) if not self.whole else None
        self.table: Tensor | None = None  # of `moments`, of the training set
        self._members: list[nn.Module] = []
        self.store: State = {}
        self.updates = Repeating()
        self.together = Together(self.template, self.full_precision(loss), Kernels(dict(self.plan.kernels)))
        self.load_state(initial(members, hparams, SLOTS[optimizer], self.device))

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
        return len(self.store["step"])

    @property
    def hparams(self) -> dict[str, Tensor]:
        return {name: self.store[f"hparams/{name}"] for name in HPARAMS}

    def set_hparams(self, hparams: Mapping[str, Tensor]) -> None:
        for name in HPARAMS:
            self.store[f"hparams/{name}"].copy_(hparams[name])
        self.drop_pending()

    def use(self, plan: Plan) -> None:
        """Compute by another plan from now on."""
        self.plan = plan
        self.together.use(Kernels(dict(plan.kernels)))
        self.load_state(self.store)

    def state(self) -> State:
        """All that makes up the members, as copies; every tensor leads with P."""
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in self.store.items()}

    def view(self) -> State:
        """`state` without copies: it changes as the members do."""
        return dict(self.store)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Become the members of `state`; their number may differ from before."""
        # In the model's order, on which the layers rely, whatever file the state comes from.
        self.store = {name: self._laid_out(name, state[name]) for name in self.store or state}
        self._flat = Flat.of(self.store, SLOTS[self.optimizer]) if self.plan.way != "one by one" else None
        self.params, self.buffers = self._named("params"), self._named("buffers")
        self._members = []
        self.drop_pending()

    def _laid_out(self, name: str, tensor: Tensor) -> Tensor:
        """A copy on the device, kernels [P, C_out, C_in, h, w] with the input channels innermost where that is asked
        for. Hyperparameters are for the host."""
        tensor = tensor if name.startswith("hparams/") else tensor.to(self.device)
        if self.plan.channels_last and tensor.ndim == 5:
            return tensor.permute(0, 1, 3, 4, 2).clone(memory_format=torch.contiguous_format).permute(0, 1, 4, 2, 3)
        return tensor.clone(memory_format=torch.contiguous_format)

    def _named(self, kind: str) -> dict[str, Tensor]:
        return {name.removeprefix(f"{kind}/"): t for name, t in self.store.items() if name.startswith(f"{kind}/")}

    def modules(self) -> list[nn.Module]:
        """The members as modules whose tensors are views of the population's; made when first needed."""
        while len(self._members) < len(self):
            member, p = copy.deepcopy(self.template), len(self._members)
            for name, tensor in member.named_parameters():
                kind = "params" if tensor.requires_grad else "buffers"
                tensor.data = self.store[f"{kind}/{name}"][p]
            for name, _ in list(member.named_buffers()):
                owner, _, leaf = name.rpartition(".")
                setattr(member.get_submodule(owner), leaf, self.store[f"buffers/{name}"][p])
            self._members.append(torch.compile(member) if self.compiled else member)  # type: ignore[arg-type]
        return self._members

    def copy(self, parents: Tensor) -> None:
        """Member i becomes a copy of member parents[i], optimizer state and hyperparameters too. parents: [Q] int64."""
        self.load_state(take(self.store, parents))

    def advance(self, feed: Feed, position: int, count: int) -> list[Tensor]:
        """`minibatch_losses` of the `count` examples that follow `position` samples of training."""
        return self.minibatch_losses(self.examples(feed, position, count))

    def examples(self, feed: Feed, position: int, count: int) -> Batch:
        """What the population learns from there; where it learns from statistics, the numbers of the examples."""
        if self.plan.way != "moments":
            return feed.take(position, count)
        self.statistics(feed)
        index = sent(feed.indices(position, count), self.device)
        return Batch(index, index)

    def statistics(self, feed: Feed) -> Batch:
        """What is learned from instead of examples: a row for each, and the weights that they are about."""
        assert self.moments is not None
        if self.table is None:
            began = time.perf_counter()
            self.table = self.moments.compute(feed.data())
            log.info("second-order statistics of %d examples: %.1f s", len(self.table), time.perf_counter() - began)
        return Batch(self.table, self.moments.centre)

    def least_squares(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias, float64, of least error on the training set, where its statistics were learned from."""
        return self.moments.least_squares(self.table) if self.moments and self.table is not None else None

    def learn_from(self, statistics: Batch) -> None:
        """Take what `statistics` of a population of the same model gave."""
        assert self.moments is not None
        self.table = statistics.inputs
        self.moments.use(statistics.targets)

    def step(self, batch: Batch) -> Tensor:
        """Every member advances over the same examples, in minibatches of its own size.

        Examples that do not fill a member's minibatch wait for the next call (until `drop_pending`). Returns each
        member's losses, averaged over the minibatches it made in this call: [P], NaN where it made none.
        """
        none = torch.full((), torch.nan, device=self.device)
        return torch.stack([loss.mean() if len(loss) else none for loss in self.minibatch_losses(batch)])

    def minibatch_losses(self, batch: Batch) -> list[Tensor]:
        """`step`, but each member's minibatch losses one by one: P tensors of shape [minibatches]."""
        return self._steps.advance(batch)

    def forget_recordings(self) -> None:
        """Of passes and updates, which hold memory."""
        self.together.use(self.together.kernels)
        self.updates = Repeating()

    def drop_pending(self) -> None:
        """Forget the examples that did not fill a minibatch, and what was learned from them."""
        self.restart()

    def snapshot(self) -> Snapshot:
        """What `restore` goes on from, bit for bit; random numbers are those of this thread."""
        unfinished, plan = self.unfinished()
        return Snapshot(self.state(), [unfinished], [plan])

    def restore(self, snapshot: Snapshot) -> None:
        """Be as `snapshot` found the population."""
        self.load_state(snapshot.members)
        self.go_on(snapshot.unfinished[0], snapshot.plans[0])

    def unfinished(self) -> tuple[State, Plan]:
        """What a snapshot has beside the members: minibatches not yet full, random numbers, and the plan."""
        found = {**self._steps.unfinished(), "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return found, self.plan

    def go_on(self, unfinished: State, plan: Plan) -> None:
        """Take back what `unfinished` gave, with the same members."""
        if plan != self.plan:
            self.use(plan)
        if "seen" in unfinished:
            self._steps.go_on(unfinished)
        torch.set_rng_state(unfinished["random"])
        if "random_cuda" in unfinished:
            torch.cuda.set_rng_state(unfinished["random_cuda"], self.device)

    def restart(self, seen: int = 0) -> AllAtOnce | OneByOne:
        """Advance by the plan as it is now, from the beginning of a minibatch, after `seen` examples."""
        differ = len(self.hparams["batch_size"].unique()) > 1
        one_by_one = self.plan.way == "one by one" or (differ and self.whole)
        at_once: type[AllAtOnce] = AllAtOnce
        if self.plan.way == "moments" and Descent.takes(self, self._flat):
            at_once = Descent
        elif self.plan.padded and self.plan.way == "together" and not self.whole:
            at_once = Padded
        self._steps = OneByOne(self, seen) if one_by_one else at_once(self, self._flat, seen)
        return self._steps

    def full_precision(self, loss: PerExample) -> PerExample:
        if self.precision != "bf16":
            return loss

        @wraps(loss)  # whose module says whether its calls can be repeated
        def rounded(outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs.float(), targets)

        return rounded

    def autocast(self) -> AbstractContextManager[None]:
        return machine.autocast(self.device, self.template) if self.precision == "bf16" else nullcontext()

    def predict(self, inputs: Tensor) -> list[Tensor]:
        """Outputs of every member, in evaluation mode and without gradients: P tensors [B, ...]."""
        with torch.no_grad(), self.autocast():
            # The module of a model that learns from statistics has no plan, and may be many times as slow.
            compiled = self.plan.way == "moments" and compiling.takes(inputs, *self.params.values())
            if compiled:  # a single layer has nothing to keep in the cache, and what it gives is new
                outputs = list(self.together.outputs(self.params, self.buffers, inputs).contiguous().unbind())
            elif self.plan.way == "together":
                parts = inputs.split(self.plan.slice) if self.plan.slice else passes(inputs)
                found = [self.together.outputs(self.params, self.buffers, part) for part in parts]
                outputs = list(torch.cat(found, 1).unbind())
            else:
                order = torch.channels_last if self.plan.channels_last and inputs.ndim == 4 else torch.preserve_format
                parts = [part.contiguous(memory_format=order) for part in passes(inputs)]
                outputs = [torch.cat([member.eval()(part) for part in parts]) for member in self.modules()]
        return [out.float() for out in outputs] if self.precision == "bf16" else outputs

    def evaluate(self, batch: Batch, metrics: Collection[str] | None = None) -> dict[str, Tensor]:
        """The loss and some metrics, by default all, of every member in evaluation mode, summed over the examples:
        name -> [P] float64 on the CPU."""
        chosen = self.metrics if metrics is None else {name: self.metrics[name] for name in metrics}
        fit = self.plan.way == "moments" and self.precision == "fp32" and all(m is self.loss for m in chosen.values())
        if self.moments and fit and (row := self.moments.again(batch)) is not None:
            return dict.fromkeys(["loss", *chosen], self.moments.total_losses(self.params, row))
        outputs = self.predict(batch.inputs)

        def total(measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            return torch.stack([measure(o, batch.targets) for o in outputs]).cpu().double().sum(1)

        with torch.no_grad():
            loss = total(self.loss)
            return {"loss": loss, **{name: loss if m is self.loss else total(m) for name, m in chosen.items()}}

    def member(self, p: int) -> nn.Module:
        """A free-standing copy of one member, in evaluation mode and the usual memory layout."""
        return module_of(self.template, {name: tensor[p : p + 1] for name, tensor in self.store.items()})
