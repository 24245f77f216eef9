"""Members of several runs that advance as one population: each run has a `FusedPopulation`, `Joint` carries them.

Minibatches are a function of the dataset's seed and the position, and learning rates of the examples alone, so a
member's course does not depend on those beside it, up to rounding. Runs ask; when all have asked, those that ask the
same are served at once. A run's members move in with others when it first asks for the same as they, and out when it
is given other members, as at the beginning of a round.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sigexp.population.feed import Feed
from sigexp.population.optimizers import Schedule
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.shards import Shards
from sigexp.population.state import HPARAMS, Snapshot, State, join, take
from sigexp.population.unfinished import advanced, merge, split
from sigexp.problem import Batch


@dataclass
class Call:
    """What a run asks of its population; calls of one key are carried out together."""

    run: "FusedPopulation"
    key: Hashable
    do: Callable[[Population | Shards], Any]
    divide: Callable[[Any, slice], Any]  # the answer's part that is of some rows
    answer: Any = None
    error: Exception | None = None


class FusedPopulation:
    """Used like the `Population` it is made of."""

    def __init__(self, alone: Population, plan: Plan, ask: Callable[[Call], Any]) -> None:
        """plan: of a population alone. ask: returns when the call has been carried out."""
        self.template, self.device, self.plan, self.ask = alone.template, alone.device, plan, ask
        self.settings = {**alone.settings(), "plan": plan}
        self.schedule = Schedule()
        self.home: Home | None = None
        self.restore(Snapshot(alone.state(), [{"random": torch.get_rng_state()}], [plan]))

    def __len__(self) -> int:
        return len(self._hparams["lr"])

    @property
    def hparams(self) -> dict[str, Tensor]:
        return self._hparams

    def restore(self, snapshot: Snapshot) -> None:
        self._hparams = {name: snapshot.members[f"hparams/{name}"] for name in HPARAMS}
        self.members, self.pieces = snapshot.members, split(snapshot.unfinished[0], len(self))
        self.seen = advanced(snapshot.unfinished[0])
        torch.set_rng_state(snapshot.unfinished[0]["random"])
        self.home = None

    def snapshot(self) -> Snapshot:
        members, pieces = self.home.of(self) if self.home else (self.members, self.pieces)
        waits = merge(pieces) if self.seen else {}
        own = {name: tensor.clone() for name, tensor in members.items()}
        return Snapshot(own, [{**waits, "random": torch.get_rng_state()}], [self.plan])

    def move_out(self) -> None:
        """Have the members here, and not among others'."""
        if self.home is not None:
            self.members, self.pieces = self.home.of(self)
            self.home = None

    def drop_pending(self) -> None:
        self.seen = 0

    def advance(self, feed: Feed, position: int, count: int) -> list[Tensor]:
        schedule = self.schedule

        def do(population: Population | Shards) -> list[Tensor]:
            population.schedule = schedule
            return population.advance(feed, position, count)

        key = ("advance", self.plan_key(), position, count, schedule, self.seen)
        answer: list[Tensor] = self.ask(Call(self, key, do, lambda losses, rows: losses[rows]))
        self.seen += count
        return answer

    def evaluate(self, batch: Batch, metrics: Collection[str] | None = None) -> dict[str, Tensor]:
        where = batch.inputs.data_ptr(), tuple(batch.inputs.shape)
        key = ("evaluate", self.plan_key(), where, None if metrics is None else tuple(metrics), self.seen)

        def divide(answer: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
            return {name: values[rows] for name, values in answer.items()}

        answer: dict[str, Tensor] = self.ask(Call(self, key, lambda p: p.evaluate(batch, metrics), divide))
        return answer

    def least_squares(self) -> tuple[Tensor, Tensor] | None:
        return self.home.population.least_squares() if self.home else None

    def plan_key(self) -> str:
        return repr(self.plan)


@dataclass(eq=False)
class Home:
    """A population with the members of several runs; a run has moved out where its `home` is another."""

    population: Population | Shards
    plans: list[Plan]
    runs: list[FusedPopulation] = field(default_factory=list)
    rows: dict[int, slice] = field(default_factory=dict)  # of a run, by its id
    found: tuple[State, list[State]] | None = None  # all members, and what waits of each, until they advance

    def of(self, run: FusedPopulation) -> tuple[State, list[State]]:
        """A run's members, as copies, and what waits of each."""
        if self.found is None:
            snapshot = self.population.snapshot()
            self.plans = snapshot.plans
            parts = torch.arange(len(self.population)).chunk(len(self.plans))
            pairs = zip(parts, snapshot.unfinished, strict=False)
            self.found = snapshot.members, [one for part, waits in pairs for one in split(waits, len(part))]
        rows = self.rows[id(run)]
        return take(self.found[0], torch.arange(rows.start, rows.stop)), self.found[1][rows]

    def houses(self, runs: Sequence[FusedPopulation]) -> bool:
        """Whether these runs' members are here, and no others."""
        return self.runs == list(runs) and all(run.home is self for run in runs)

    def empty(self) -> bool:
        return all(run.home is not self for run in self.runs)

    def take_in(self, runs: Sequence[FusedPopulation]) -> None:
        """Become the population of some runs, which have moved out elsewhere."""
        first, self.rows = 0, {}
        for run in runs:
            self.rows[id(run)] = slice(first, first + len(run))
            first += len(run)
        pieces = [piece if run.seen else {} for run in runs for piece in run.pieces]
        random = {"random": torch.get_rng_state()}
        waits = [merge([pieces[i] for i in part]) | random for part in torch.arange(first).chunk(len(self.plans))]
        waits += [random] * (len(self.plans) - len(waits))
        self.population.restore(Snapshot(join(*(run.members for run in runs)), waits, self.plans))
        self.runs, self.found = list(runs), None
        for run in runs:
            run.home, run.members, run.pieces = self, {}, []


class Joint:
    """Carries out the calls of runs."""

    def __init__(self, carry: Callable[[Population], Population | Shards]) -> None:
        """carry: what carries a population by its plan."""
        self.carry = carry
        self.plans: dict[str, Plan] = {}  # how the runs' plans are carried out, by `plan_key`, where in parts
        self.homes: dict[str, list[Home]] = {}  # by plan
        self.members = 0  # the most that advanced at once

    def carry_out(self, calls: Sequence[Call]) -> None:
        """Answer all calls; what goes wrong is the error of those that it concerns."""
        by_key: dict[Hashable, list[Call]] = {}
        for call in calls:
            by_key.setdefault(call.key, []).append(call)
        for same in by_key.values():
            try:
                with torch.random.fork_rng(devices=[]):
                    self._carry_out(same)
            except Exception as error:
                for call in same:
                    call.error = error

    def _carry_out(self, same: Sequence[Call]) -> None:
        home = self.home([call.run for call in same])
        if same[0].run.seen == 0:
            home.population.drop_pending()
        home.found = None
        answer = same[0].do(home.population)
        self.members = max(self.members, len(home.population))
        for call in same:
            call.answer = call.divide(answer, home.rows[id(call.run)])

    def home(self, runs: Sequence[FusedPopulation]) -> Home:
        """The population that has the members of these runs alone."""
        homes = self.homes.setdefault(runs[0].plan_key(), [])
        for home in homes:
            if home.houses(runs):
                return home
        for run in runs:
            run.move_out()
        for home in homes:
            if home.empty():
                break
        else:
            home = self._build(runs[0], homes)
            homes.append(home)
        home.take_in(runs)
        return home

    def _build(self, run: FusedPopulation, homes: Sequence[Home]) -> Home:
        plan = self.plans.get(run.plan_key(), run.plan)
        population = Population.of_settings({**run.settings, "plan": plan})
        for home in homes:
            if isinstance(home.population, Population):  # statistics of the training set, which are large
                population.moments, population.table = home.population.moments, home.population.table
        carried = self.carry(population)
        return Home(carried, [replace(plan)] * plan.shards)

    def statistics(self) -> list[Tensor]:
        """Of the training set: what is learned from, and large."""
        homes = [home.population for homes in self.homes.values() for home in homes]
        found = [(home.whole if isinstance(home, Shards) else home).table for home in homes]
        return [table for table in found if table is not None]

    def close(self) -> None:
        for homes in self.homes.values():
            for home in homes:
                if isinstance(home.population, Shards):
                    home.population.close()
        self.homes = {}
