"""What runs that differ in hyperparameters or seeds alone have in common: computed once, and dropped with them.

A run that is alone computes everything itself. Keys name what a value depends on beside the dataset, the architecture
and the search, which are the same for all runs that share.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
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

T = TypeVar("T")
MOST_BYTES = 200_000_000  # of validation and test examples that are kept


@dataclass
class Shared:
    """What the runs of a group share. store: what was computed. joint: carries their populations. runs: how many there
    are. batch_size: the largest of theirs. part: called by a run that has trained, before it comes to its end."""

    joint: Joint
    runs: int
    batch_size: int
    ask: Callable[[Call], Any]
    part: Callable[[], None]
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


def part() -> None:
    """What is left of a run needs no other run: it may go on beside them, in another process (parting.py)."""
    if (shared := SHARED.get()) is not None:
        shared.part()


def remembering(problem: Problem) -> Problem:
    """The problem, whose examples are drawn once where runs share them; of the training set those that are judged on,
    the first ones in the order of their numbers."""
    if SHARED.get() is None:
        return problem
    kept: OrderedDict[tuple[Split, tuple[int, ...]], Batch] = OrderedDict()

    def sample(split: Split, index: Tensor) -> Batch:
        numbers = tuple(index.tolist())
        key = split, numbers
        in_order = bool(numbers) and numbers == tuple(range(numbers[0], numbers[0] + len(numbers)))
        if split == "train" and not (in_order and numbers[-1] < TRAIN_EXAMPLES):
            return problem.sample(split, index)
        if key not in kept:
            kept[key] = problem.sample(split, index)
            while len(kept) > 1 and sum(part.nbytes for batch in kept.values() for part in batch) > MOST_BYTES:
                kept.popitem(last=False)
        return Batch(*(part.clone() for part in kept[key]))  # models may work in place

    return replace(problem, sample=sample)
