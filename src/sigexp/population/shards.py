"""A population in parts that are computed apart from each other.

How a population is divided is the plan's (`shards`), and a part's results do not depend on the others; so the number of
processes that carry them (crew.py) changes no result.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sigexp.population.actors import Actor
from sigexp.population.crew import Crew, Shared, Worker
from sigexp.population.feed import Feed
from sigexp.population.optimizers import Schedule
from sigexp.population.population import Population
from sigexp.population.state import HPARAMS, Snapshot, State, join, take
from sigexp.problem import Batch

if TYPE_CHECKING:
    from sigexp.population.cluster import Cluster


class Shards:
    """A population that is carried in parts; used like the `Population` it is made of.

    processes: with 1 this process carries all parts, one after the other; more divide them among themselves.
    seed: of what draws while it trains, such as dropout. tune_allocator: of the processes, as `machine` has it.
    cluster: has as many actors of Ray instead of processes.
    """

    def __init__(
        self,
        whole: Population,
        processes: int = 1,
        *,
        seed: int = 0,
        tune_allocator: bool = False,
        cluster: "Cluster | None" = None,
    ) -> None:
        self.whole, self.plan, self.template = whole, whole.plan, whole.template
        self.device = whole.device if cluster is None else torch.device("cpu")  # of what comes out
        self._hparams: dict[str, Tensor] = {}
        self.schedule = Schedule()
        self.peak_memory_bytes = 0
        self.remote, self._processes = processes > 1 or cluster is not None, min(processes, self.plan.shards)
        self._seed, self._tune, self._cluster = seed, tune_allocator, cluster
        self._attached = False  # whether the crews have what they learn from
        self._crews: list[Crew | Worker | Actor] = []
        self._threads = torch.get_num_threads()
        try:
            self._start()
            self.load_state(whole.view())
            whole.load_state(take(whole.view(), torch.tensor([0])))  # the parts have the members now
        except BaseException:
            self.close(at_once=True)
            raise

    def _packages(self, count: int) -> list[dict[str, Any]]:
        """What each of so many processes carries."""
        seeds = [self._seed * 1000 + number for number in range(self.plan.shards)]
        return [{**self.whole.settings(), "seeds": seeds[first::count]} for first in range(count)]

    def _start(self) -> None:
        self._attached = False
        if self._cluster is not None:
            before = [crew for crew in self._crews if isinstance(crew, Actor)]
            self._crews = [*self._cluster.crews(self._packages, self._processes, before, self._tune)]
            return
        for package in self._packages(self._processes):
            self._crews.append(Worker(package, self._tune) if self.remote else Crew(package))
        if not self.remote:
            torch.set_num_threads(self.plan.threads)

    def restart(self) -> None:
        """New processes, in a cluster of those that are lost, without members: `restore` gives them some."""
        if self._cluster is None:
            self.close(at_once=True)
        self._start()

    def __len__(self) -> int:
        return len(self._hparams["lr"])

    @property
    def hparams(self) -> dict[str, Tensor]:
        return self._hparams

    def _rows(self) -> list[Tensor]:
        """The members of every part that has any."""
        return list(torch.arange(len(self)).chunk(self.plan.shards))

    def _ask(self, method: str, arguments: Callable[[Tensor], Sequence[Any]] = lambda rows: ()) -> list[Any]:
        """Call a method of every part, with what `arguments` makes of its members' rows; their answers in order."""
        return self._ask_all(method, [arguments(own) for own in self._rows()])

    def _ask_all(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """The same with the arguments of the first parts, or of all."""
        count = len(arguments)
        crews = self._crews[:count]
        for i, crew in enumerate(crews):
            crew.send([(method, own) for own in arguments[i :: len(self._crews)]])
        answers: list[Any] = [None] * count
        for i, crew in enumerate(crews):
            answers[i :: len(self._crews)] = crew.receive()
        return answers

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._hparams = {name: state[f"hparams/{name}"].clone() for name in HPARAMS}
        self._ask("load_state", lambda rows: [take(state, rows)])

    def set_hparams(self, hparams: Mapping[str, Tensor]) -> None:
        self._hparams = {name: hparams[name].to(self._hparams[name].dtype) for name in HPARAMS}
        self._ask("set_hparams", lambda rows: [take(hparams, rows)])

    def state(self) -> State:
        return join(*self._ask("state"))

    def snapshot(self) -> Snapshot:
        parts = self._ask_all("unfinished", [()] * self.plan.shards)
        return Snapshot(self.state(), [state for state, _ in parts], [plan for _, plan in parts])

    def restore(self, snapshot: Snapshot) -> None:
        self.load_state(snapshot.members)
        self._ask_all("go_on", list(zip(snapshot.unfinished, snapshot.plans, strict=True)))

    def copy(self, parents: Tensor) -> None:
        self.load_state(take(self.state(), parents))

    def drop_pending(self) -> None:
        self._ask("drop_pending")

    def _attach(self, feed: Feed) -> None:
        """Let the crews have what they learn from."""
        data = self.whole.statistics(feed) if self.plan.way == "moments" else feed.data()
        shared = Shared(data) if self.remote and self._cluster is None else None
        for crew in self._crews:
            crew.send([("attach", (shared.description if shared else data,))])
        for crew in self._crews:
            crew.receive()
        if shared:
            shared.unlink()
        self._attached = True

    def advance(self, feed: Feed, position: int, count: int) -> list[Tensor]:
        if feed.size is not None and (self.remote or self.plan.way == "moments"):
            if not self._attached:
                self._attach(feed)
            examples: Tensor | Batch = feed.indices(position, count)
        else:
            examples = feed.take(position, count)
        answers = self._ask("advance", lambda _: [examples, self.schedule])
        return [losses for part in answers for losses in part]

    def evaluate(self, batch: Batch, metrics: Collection[str] | None = None) -> dict[str, Tensor]:
        return join(*self._ask("evaluate", lambda _: [batch, metrics]))

    def least_squares(self) -> tuple[Tensor, Tensor] | None:
        return self.whole.least_squares()

    def member(self, p: int) -> nn.Module:
        self.whole.load_state(self.state())
        return self.whole.member(p)

    def close(self, *, at_once: bool = False) -> None:
        """End the processes; their members are gone with them. at_once: also those in the middle of a step."""
        for crew in self._crews:
            if not isinstance(crew, Crew):
                self.peak_memory_bytes += crew.close(at_once)
        torch.set_num_threads(self._threads)
        self._crews = []
