"""Candidate plans race on real training steps of members that are thrown away, in a small share of the run.

A candidate that disagrees with training the members one by one is out of the race, whatever its speed.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sigexp import machine
from sigexp.population.moments import Moments
from sigexp.population.optimizers import LARGE
from sigexp.population.plan import Plan, Wanted
from sigexp.population.population import Population
from sigexp.population.rules import LINEAR_WAYS
from sigexp.population.state import take
from sigexp.population.timing import least_seconds, quickest
from sigexp.problem import Batch

log = logging.getLogger("sigexp")
SHARE, LEAST_SECONDS = 0.03, 0.5  # of the expected seconds of training, and besides, that the race may cost
PROCESS_SECONDS = 2.0  # that it takes to start the processes
PROCESS_EFFICIENCY = 0.92  # of processes side by side, against each alone
SLICES = (16, 32, 10**6, 64, 4, 8)  # examples a pass that are tried, in this order; a million is the whole minibatch
MANY_ROWS = 1000  # of a product, above which their number changes its speed little
LEAST = 32  # examples of the minibatches that are timed: after a few, the update would count for more than it is
FEW = 4  # members of a large model that are timed together
EQUAL = 0.95  # of the best rate, above which candidates are equal
NOT_LOST = 0.25  # of the best rate, above which a slow second may have made the difference
CLOSE, ROUNDS = 0.8, 3  # of the best rate, above which candidates run that many times again, in turns
PADDING_SHARE = 0.1  # of the race's seconds, below which members of different batch sizes are timed in any case
LAPS = 4  # minibatches of the members of different batch sizes that are timed
CLEARLY = 0.8  # of the time by examples, below which statistics are clearly quicker
FAR = 20  # times the speed of members one by one, above which no way to compute with examples is expected
SHORT = 1.0  # seconds of training, of which a race would cost more than it can save
SURE = 4  # times that of members together, above which other passes and processes will not be as quick
MOST_MOMENTS = 8  # times as many numbers as an example has, above which statistics do not pay
AGREEMENT = 2e-3  # relative difference of losses between two ways of computing in float32


class Race:
    """One race; `rates` collects what was measured."""

    def __init__(self, population: Population, batch: Batch, wanted: Wanted) -> None:
        self.population, self.batch, self.wanted = population, batch, wanted
        self.rates: dict[str, float] = {}
        self.timed: list[Plan] = []
        self.moments_seconds = math.inf  # of the whole run from second-order statistics, the statistics included
        self.best: tuple[float, Plan] = (0.0, Plan())
        self.began = time.perf_counter()
        self.state = population.view()
        self.size = self.most = len(batch.inputs)  # examples of a minibatch, and that fit into memory at once

    def run(self) -> Plan:
        """The plan with which the run ends first."""
        plan = self._among_examples()
        quicker = self._statistics_lead(1 / CLEARLY)
        return Plan(way="moments", threads=self.wanted.threads) if quicker else plan

    def _among_examples(self) -> Plan:
        """The quickest of those that compute with examples, or any where statistics are far ahead of all."""
        threads = torch.get_num_threads()
        apart = self._may_divide()
        members = max(1, self.wanted.members // apart)
        try:
            torch.set_num_threads(1 if apart > 1 else self.wanted.threads)
            if math.isfinite(self.moments_seconds):
                self._enter(Plan(threads=torch.get_num_threads()), members)
                short = self.moments_seconds < SHORT and self._statistics_lead(max(apart, 1 / CLEARLY))
                if short or self._statistics_lead(FAR * apart):
                    return self.best[1]
            for plan in self._candidates(members, torch.get_num_threads()):
                if plan not in self.timed:
                    self._enter(plan, members)
                if plan.way == "together" and self._statistics_lead(SURE * apart):
                    return self.best[1]
            self._time_together_again(members)
            self._decide_between_near_equals(members)
            self._decide_on_padding(members)
            if apart > 1:
                self._decide_on_processes(apart)
        finally:
            torch.set_num_threads(threads)
        return self.best[1]

    def _statistics_lead(self, times: float) -> bool:
        """Whether with statistics the run takes so many times less than with the best way by examples so far."""
        return times * self.moments_seconds < self.wanted.samples / self.best[0]

    def _may_divide(self) -> int:
        """Into how many parts the population could be divided."""
        if self.population.device.type != "cpu" or self.wanted.processes == 1:
            return 1
        return max(1, min(self.wanted.processes or self.wanted.threads, self.wanted.members))

    def _candidates(self, members: int, threads: int) -> Iterator[Plan]:
        """In the order in which they are likely to win, because the time may not do for all."""
        alone = Plan(threads=threads)
        images = self.batch.inputs.ndim == 4 and self.population.device.type == "cpu"
        in_turn = [replace(alone, channels_last=True)] * images + [alone]
        if not self._agrees():
            yield from in_turn
            return
        together = replace(alone, way="together", kernels=self._kernels())
        self.most = most = self._most_examples(together)
        apart = self.wanted.members
        if self.population.whole:
            divided = most * apart >= self.size > 1 and apart > 1
            if divided:
                yield replace(together, shards=apart)
            if self.wanted.execution == "auto" or not (divided or most >= self.size):
                yield from in_turn
            if most >= self.size:
                yield together
            return
        lengths = [*dict.fromkeys(min(length, most, self.size) for length in SLICES)]
        if self._large():  # activations are the lesser part
            lengths = [min(most, self.size)]
        for number, length in enumerate(lengths):
            yield replace(together, slice=length)
            if number == min(2, len(lengths) - 1) and self.wanted.execution == "auto":
                yield from in_turn

    def _agrees(self) -> bool:
        """Whether vmap takes the model, and what comes out is what the members give one by one."""
        some = Batch(*(part[: min(8, self.size)] for part in self.batch))
        count = min(2, len(self.population))
        try:
            alone, fused = (
                self._trial(Plan(way=way, slice=length), count, len(some.inputs))
                for way, length in (("one by one", None), ("together", None if self.population.whole else 4))
            )
            if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in self.population.template.modules()):
                fused.minibatch_losses(some)
                return True
            for _ in range(2):
                expected, got = (torch.cat(trial.minibatch_losses(some)) for trial in (alone, fused))
                if not torch.allclose(expected, got, rtol=AGREEMENT, atol=1e-6, equal_nan=True):
                    log.info("members train one by one: the model's examples are not independent of each other")
                    return False
            return True
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            log.info("members train one by one: %s", str(error).strip().partition("\n")[0])
            return False

    def _trial(self, plan: Plan, members: int, batch_size: int) -> Population:
        """A population of some members as they are now, that computes by `plan`."""
        rows = torch.arange(members) % len(self.population)
        trial = self.population.twin(plan)
        trial.load_state(self.state if members == len(self.population) else take(self.state, rows))
        trial.set_hparams({**trial.hparams, "batch_size": torch.full((members,), batch_size)})
        return trial

    def _kernels(self) -> dict[str, str]:
        """The quickest algorithm of every layer that has several, raced on a few members and examples."""
        count = min(4, self.size)
        trial = self._trial(Plan(way="together"), min(2 if self._large() else 4, self.wanted.members), count)
        kernels = trial.together.kernels
        kernels.choose = partial(self._quickest, self.size // count)
        trial.minibatch_losses(Batch(*(part[:count] for part in self.batch)))
        return dict(kernels.chosen)

    @staticmethod
    def _quickest(times: int, candidates: Mapping[str, Callable], arguments: tuple[Any, ...]) -> str:
        """The rows of a full layer are as many times as many, where they are few: its speed depends on their number."""
        if candidates is LINEAR_WAYS:
            x, *others = arguments
            times = min(times, max(1, MANY_ROWS // x.shape[-2]))
            arguments = (x.detach().repeat_interleave(times, -2).requires_grad_(x.requires_grad), *others)
        return quickest(candidates, arguments)

    def _most_examples(self, plan: Plan) -> int:
        """Examples whose activations fit into the memory limit for all members together."""
        count = min(2, self.size)
        trial = self._trial(plan, 1, count)
        saved: dict[int, int] = {}

        weights = {tensor.untyped_storage().data_ptr() for tensor in trial.store.values()}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trial.minibatch_losses(Batch(*(part[:count] for part in self.batch)))
        limit = self._memory_limit()
        # Twice what is saved, for what lives beside it.
        most = limit // max(1, 2 * self.wanted.members * sum(saved.values()) // count)
        if most < self.size:
            log.info("a pass takes %d examples: more would not fit into %.1f GB", max(1, most), limit / 1e9)
        return max(1, int(most))

    def _memory_limit(self) -> int:
        return self.wanted.memory_limit or machine.free_memory_bytes(str(self.population.device)) // 2

    def _extent(self, plan: Plan, members: int) -> tuple[int, int]:
        """Members and examples of the steps that are timed."""
        rows = members if plan.way == "together" and plan.shards == 1 else 1
        rows = min(rows, FEW) if self._large() else rows  # they are copies
        # With many parameters the update, once a minibatch, is a good part of a step.
        whole = self.population.whole or self._large()
        return rows, self.size if whole else min(self.size, max(plan.slice or 64, LEAST))

    def _large(self) -> bool:
        return sum(parameter.numel() for parameter in self.population.template.parameters()) >= LARGE

    def _enter(self, plan: Plan, members: int) -> None:
        """Time a candidate, if the race's share of the run leaves time for it."""
        rows, length = self._extent(plan, members)
        if self.best[0] and self._left() < 2 * rows * length / self.best[0]:
            return
        rate = self._time(plan, rows, length)
        self.rates[str(plan)] = rate
        self.timed.append(plan)
        if rate > self.best[0]:
            self.best = (rate, plan)

    def _left(self) -> float:
        """Seconds that the race may still take."""
        return self._share() - (time.perf_counter() - self.began)

    def _share(self) -> float:
        """Seconds that the race may take."""
        return LEAST_SECONDS + SHARE * min(self.moments_seconds, self.wanted.samples / self.best[0])

    def _time_together_again(self, members: int) -> None:
        """Where members one by one lead, which they seldom do, a slow second of the machine's may have decided."""
        together = [plan for plan in self.timed if plan.way == "together"]
        if not together or self.best[1].way == "together":
            return
        plan = max(together, key=lambda plan: self.rates[str(plan)])
        before, (rows, length) = self.rates[str(plan)], self._extent(plan, members)
        if before < NOT_LOST * self.best[0] or self._left() < 2 * rows * length / before:
            return
        self.rates[str(plan)] = rate = max(before, self._time(plan, rows, length))
        if rate > self.best[0]:
            self.best = (rate, plan)

    def _decide_between_near_equals(self, members: int) -> None:
        """Other work on the machine may have slowed one of them down, so they take turns."""
        near = [plan for plan in self.timed if self.rates[str(plan)] > CLOSE * self.best[0]]
        for plan in near * ROUNDS if len(near) > 1 else []:
            rows, length = self._extent(plan, members)
            if self._left() < 2 * rows * length / self.best[0]:
                break
            self.rates[str(plan)] = max(self.rates[str(plan)], self._time(plan, rows, length))
        best = max(self.rates[str(plan)] for plan in near)
        # Of those that are as good, the one with the least memory: large tensors cost more in a long run.
        equal = [plan for plan in near if self.rates[str(plan)] > EQUAL * best]
        plan = min(equal, key=lambda plan: (plan.slice or self.size) * self._extent(plan, members)[0])
        self.best = (self.rates[str(plan)], plan)

    def _decide_on_padding(self, members: int) -> None:
        """Whether members with different batch sizes had better have passes of their own minibatches; both rates are
        those of such members."""
        rate, plan = self.best
        if plan.way != "together" or self.population.whole or self._large() or members < 2 or self.size < 4:
            return
        own = replace(plan, padded=True, slice=plan.slice if plan.slice and plan.slice < self.size else None)
        ways = [plan, own, *[replace(own, slice=None)] * (bool(own.slice) and self.most >= self.size)]
        # What else was timed may have taken the race's share; here is more to gain than there.
        if len(ways) * LAPS * members * self.size / rate > PADDING_SHARE * self._share():
            return
        rates = [self._time_differing(way, members) for way in ways]
        self.rates |= {
            str(way) if way.padded else f"{way}, batch sizes differ": r for way, r in zip(ways, rates, strict=True)
        }
        if CLOSE * max(rates) > rates[0]:
            self.best = (max(rates), ways[rates.index(max(rates))])

    def _time_differing(self, plan: Plan, members: int) -> float:
        """Member-samples per second of members with different batch sizes."""
        trial = self._trial(plan, members, self.size)
        sizes = torch.tensor([self.size - self.size // 4 * (p % 3) for p in range(members)])
        trial.set_hparams({**trial.hparams, "batch_size": sizes})
        return LAPS * members * self.size / least_seconds(partial(self._laps, trial), self.population.device, most=2)

    def _laps(self, trial: Population) -> None:
        for _ in range(LAPS):
            trial.minibatch_losses(self.batch)

    def _time(self, plan: Plan, rows: int, length: int) -> float:
        """Member-samples per second of training steps."""
        trial = self._trial(plan, rows, length)
        batch = Batch(*(part[:length] for part in self.batch))
        return rows * length / least_seconds(lambda: trial.minibatch_losses(batch), self.population.device)

    def _decide_on_processes(self, apart: int) -> None:
        """Parts on a thread each, or all members on all threads: by the time to the end of the run."""
        alone, plan = self.best
        divided = replace(plan, shards=max(plan.shards, apart), processes=apart)
        whole = replace(plan, threads=self.wanted.threads)
        rate = PROCESS_EFFICIENCY * apart * alone
        self.best = (rate, divided)
        if self.wanted.processes:
            return
        if self.wanted.samples * (1 / alone - 1 / rate) > PROCESS_SECONDS:
            if plan.way == "one by one":  # small operations divide badly among threads, and not at all on a busy core
                return
            torch.set_num_threads(self.wanted.threads)
            members = self.wanted.members
            if plan.padded:  # `alone` is of members with different batch sizes
                together = self._time_differing(whole, members)
            else:
                together = self._time(whole, *self._extent(plan, members))
            self.rates[str(whole)] = together
            if self.wanted.samples * (1 / together - 1 / rate) > PROCESS_SECONDS:
                return
        self.best = (alone, whole)

    def time_moments(self, moments: Moments, size: int) -> None:
        """Let second-order statistics of a training set take part, if they fit into memory."""
        limit = self._memory_limit()
        numbers = sum(part[0].numel() for part in self.batch)
        if moments.values * size * 8 > limit or moments.values > MOST_MOMENTS * numbers:
            return
        began = time.perf_counter()
        table = moments.compute(self.batch)  # which fits the centre besides
        once = time.perf_counter() - began
        rows = least_seconds(lambda: moments.rows(*self.batch), self.population.device)
        statistics = rows * size / self.size + max(0.0, once - rows)
        plan = Plan(way="moments", threads=self.wanted.threads)
        trial = self._trial(plan, self.wanted.members, self.size)
        trial.moments, trial.table = moments, table
        index = torch.arange(self.size, device=table.device) % len(table)
        seconds = least_seconds(lambda: trial.minibatch_losses(Batch(index, index)), self.population.device, most=5)
        rate = self.wanted.members * self.size / seconds
        self.rates[str(plan)] = rate
        self.moments_seconds = statistics + self.wanted.samples / rate
