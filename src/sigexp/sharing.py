"""What runs that differ in hyperparameters or seeds alone have in common: computed once, and dropped with them.

A run that is alone computes everything itself. Keys name what a value depends on beside the dataset, the architecture
and the search, which are the same for all runs that share.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from sigexp.evaluation import TRAIN_EXAMPLES
from sigexp.population.calibrate import Calibration
from sigexp.population.fused import Call, FusedPopulation, Joint
from sigexp.population.plan import Plan, Wanted
from sigexp.population.population import Population
from sigexp.problem import Batch, Problem, Split
from sigexp.trust import targets

T = TypeVar("T")
MOST_BYTES = 200_000_000  # of validation and test examples that are kept


@dataclass
class Shared:
    """What the runs of a group share.

    store: what was computed. joint: carries their populations. runs: how many there are. batch_size: the largest of
    theirs. meet: waits until all have come as far. end: does what is left of a run that has trained, maybe in another
    process.
    """

    joint: Joint
    runs: int
    batch_size: int
    ask: Callable[[Call], Any]
    meet: Callable[[], None]
    end: Callable[[Callable[[], Any]], Any]
    store: dict[Hashable, Any] = field(default_factory=dict)

    def wanted(self, alone: Wanted) -> Wanted:
        """What is known of all runs together before their plan is chosen."""
        return replace(alone, samples=alone.samples * self.runs, members=alone.members * self.runs)

    def for_one(self, found: Calibration) -> Calibration:
        """The plan of all as each run records it: in one part, so that a run can go on alone."""
        plan = replace(found.plan, shards=1, processes=1)
        self.joint.plans[repr(plan)] = found.plan
        return replace(found, plan=plan)

    def join(self, population: Population) -> FusedPopulation:
        return FusedPopulation(population, population.plan, self.ask)

    def described(self, plan: Plan) -> dict[str, Any]:
        """What the result of a run with that plan says of those beside it."""
        together = self.joint.plans.get(repr(plan), plan)
        return {"jobs": self.runs, "members": self.joint.members, "plan": str(together)}


SHARED: ContextVar[Shared | None] = ContextVar("SHARED", default=None)


def once(key: Hashable, compute: Callable[[], T]) -> T:
    """What `compute` gives, or what it gave a run that shares."""
    shared = SHARED.get()
    if shared is None:
        return compute()
    if key not in shared.store:
        shared.store[key] = compute()
    found: T = shared.store[key]
    return found


def end(rest: Callable[[], T]) -> T:
    """What `rest` gives, the end of a run that needs no other run: it may be done beside theirs, in another process
    (parting.py), and has to leave on the disk what is to stay."""
    shared = SHARED.get()
    if shared is None:
        return rest()
    found: T = shared.end(rest)
    return found


def packaged(config: Mapping[str, Any], *parts: str) -> bool:
    """Whether parts of a config, by default dataset and model, are sigexp's, and not the user's own, of which nothing
    is known."""
    return all(name.startswith("sigexp.") for part in parts or ("dataset", "model") for name in targets(config[part]))


def remembering(problem: Problem, *, known: bool) -> Problem:
    """The problem, whose examples are drawn once where runs share them; of the training set those that are judged on,
    the first ones in the order of their numbers.

    known: whether what uses them writes to them by torch alone, if at all: then they are drawn anew, else each use has
    a copy.
    """
    if SHARED.get() is None:
        return problem
    kept: OrderedDict[tuple[Split, tuple[int, ...]], Kept] = OrderedDict()

    def sample(split: Split, index: Tensor) -> Batch:
        numbers = tuple(index.tolist())
        key = split, numbers
        in_order = bool(numbers) and numbers == tuple(range(numbers[0], numbers[0] + len(numbers)))
        if split == "train" and not (in_order and numbers[-1] < TRAIN_EXAMPLES):
            return problem.sample(split, index)
        if key not in kept or not kept[key].untouched():
            kept[key] = Kept(problem.sample(split, index))
            while len(kept) > 1 and sum(one.nbytes for one in kept.values()) > MOST_BYTES:
                kept.popitem(last=False)
        return kept[key].batch if known else Batch(*(part.clone() for part in kept[key].batch))

    return replace(problem, sample=sample)


class Kept:
    """Examples, and whether they are as they were drawn."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.versions = batch, [part._version for part in batch]
        self.nbytes = sum(part.nbytes for part in batch)

    def untouched(self) -> bool:
        """By torch's count of what writes to a tensor or to a view of it."""
        return self.versions == [part._version for part in self.batch]
