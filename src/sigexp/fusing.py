"""Jobs of a sweep that differ in hyperparameters or seeds alone, carried out as one population.

Every job is the run that it is alone, in a thread of its own (turns.py); one runs at a time. A run goes on until it
asks something of its population, and when all have asked, this process's main thread carries it out for all of them
(population/fused.py). What is the same for all of them they compute once (sharing.py): the first run that has trained
comes to its end here, and the others, which find all that there, side by side (parting.py).
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sigexp import carrying, clock, machine, parting, sharing, stopping, training
from sigexp.names import Names
from sigexp.population.fused import Joint
from sigexp.population.population import Population
from sigexp.report import console
from sigexp.sweep_job import Task, do
from sigexp.track.sweep import Ledger
from sigexp.turns import Turn

log = logging.getLogger("sigexp")
CARRIED = ("lr", "momentum", "weight_decay")  # fields of trainer.optimizer that every member has for itself
MOST_MEMORY = 0.25  # of what is free, that the members of a group may take
COPIES = 12  # of a member's numbers that a run holds: optimizer's state, gradients, snapshots, the best so far
SAVING_S = 1.0  # for each job, when a signal asks them to end
LINGER_S = 1.0  # that jobs which have trained wait for others
LONGER, LEAST_S = 20.0, 10.0  # times what the first job's end took, and seconds, that one in a fork may take


def run(tasks: Sequence[Task], ledger: Ledger) -> None:
    """Carry out a group of jobs. Raises KeyboardInterrupt where a signal ended them, after all have saved."""
    trainer = tasks[0].config["trainer"]
    tuned = trainer["tune_allocator"] and machine.tune_allocator()
    machine.configure_torch(trainer["threads"], trainer["deterministic"])
    seed = tasks[0].config["seed"]

    def carry(population: Population) -> Any:
        return carrying.divided(population, trainer, seed, tuned)[0]

    joint = Joint(carry)
    store: dict[Any, Any] = {}
    largest = max(task.config["trainer"]["batch_size"] for task in tasks)
    with stopping.deferred(stopping.PATIENCE_S + SAVING_S * len(tasks)) as request:
        turns = []
        for task in tasks:
            turn = Turn(partial(do, task, ledger))
            turn.values = {
                clock.CLOCK: turn.seconds,
                sharing.SHARED: sharing.Shared(joint, len(tasks), largest, turn.ask, turn.meet, turn.end, store),
                stopping.SHARED: request,
                console.SILENT: True,
            }
            turns.append(turn)
        try:
            take_turns(turns, joint, request, Ends(parting.possible(tasks[0].config), joint.statistics))
        finally:
            for turn in turns:
                turn.abandoned = True
            for turn in turns:
                turn.let_go()
            joint.close()
    request.raise_noted()
    for turn in turns:
        if turn.error is not None:
            raise turn.error


def take_turns(turns: Sequence[Turn], joint: Joint, request: stopping.Request, ends: "Ends") -> None:
    """Until all jobs have ended, or all that had begun where a signal asks for the end."""
    for turn in turns:
        if not request:
            turn.take()
    for turn in turns:
        if turn.meets:
            turn.take()
    while True:
        trained = [turn for turn in turns if turn.ending is not None]
        asking = [turn for turn in turns if turn.call is not None]
        if trained and not (asking and ends.had_better_wait()):
            ends.come(trained)
        if not asking:
            return
        began = time.perf_counter()
        with heard_by(asking):
            joint.carry_out([turn.call for turn in asking if turn.call is not None])
        share = (time.perf_counter() - began) / len(asking)
        for turn in asking:
            turn.spent += share
            turn.take()
        ends.step = time.perf_counter() - began


class Ends:
    """Lets jobs that have trained come to their ends: the first one here, where what they share is computed, and the
    others in processes of their own, one a core."""

    def __init__(self, apart: bool, unneeded: Callable[[], Sequence[Tensor]]) -> None:
        """apart: whether there may be other processes. unneeded: what has no use at an end."""
        self.apart, self.unneeded = apart, unneeded
        self.longest: float | None = None  # seconds that an end may take, once one has been seen
        self.step = math.inf  # seconds that the latest step of the jobs took
        self.until: float | None = None  # when those that have trained wait no longer for others

    def had_better_wait(self) -> bool:
        """Whether jobs that have trained may soon have company: of few, not every core has one."""
        if self.until is None:
            self.until = time.perf_counter() + LINGER_S
        return self.apart and time.perf_counter() + self.step < self.until

    def come(self, waiting: Sequence[Turn]) -> None:
        left, self.until = list(waiting), None
        while left and self.longest is None:
            turn, began = left.pop(0), time.perf_counter()
            turn.take()
            if turn.complete:
                self.longest = LEAST_S + LONGER * (time.perf_counter() - began)
        if len(left) > 1 and (room := self.room()) > 1:
            self.side_by_side(left, room)
        else:
            for turn in left:
                turn.take()

    def side_by_side(self, turns: Sequence[Turn], room: int) -> None:
        """In processes beside this one; one that did not come to its end there does so here."""
        assert self.longest is not None
        lost = []
        with closing(
            parting.side_by_side(lambda n: turns[n].end_apart(), len(turns), room, self.longest, self.unneeded())
        ) as answers:
            for number, answer in answers:
                turn = turns[number]
                if isinstance(answer, parting.Failed):
                    turn.ended = answer
                    lost.append(turn)
                    continue
                value, seconds = answer.value
                turn.ended = parting.Done(value)
                turn.spent += seconds
                turn.take()
        for turn in lost:
            turn.take()

    def room(self) -> int:
        """How many may be at once; a process beside this one may come to hold as much memory as this one does."""
        if self.longest is None or not self.apart:
            return 1
        return max(1, min(machine.cores(), machine.free_memory_bytes("cpu") // machine.peak_memory_bytes()))


@contextmanager
def heard_by(turns: Sequence[Turn]) -> Iterator[None]:
    """What is logged within goes to the logs of all these jobs."""
    others = list(log.handlers)
    log.handlers[:] = [handler for turn in turns for handler in turn.handlers]
    try:
        yield
    finally:
        log.handlers[:] = others


def key(config: Mapping[str, Any], names: Names) -> str:
    """Equal for jobs that differ in what every member of a population has for itself."""
    trainer = config["trainer"]
    optimizer = {name: value for name, value in trainer["optimizer"].items() if name not in CARRIED}
    rest = {name: value for name, value in trainer.items() if name not in ("optimizer", "batch_size")}
    common = {name: value for name, value in config.items() if name not in ("seed", "trainer")}
    return json.dumps([common, rest, optimizer, names.chosen()], sort_keys=True, default=str)


def most_jobs(config: Mapping[str, Any], names: Names) -> int:
    """How many jobs of a kind can be one population; 1 where they cannot, or where nothing would be gained."""
    trainer = config["trainer"]
    if trainer["compile"] or trainer["execution"] == "sequential" or trainer["engine"] != "local":
        return 1
    problem = training.build_problem(config)
    settings = training.build_search(config)
    member = training.first_member(config, names, problem, settings)
    if draws(member, problem) or any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in member.modules()):
        return 1
    bytes_ = 4 * COPIES * config["search"]["members"] * sum(p.numel() for p in member.parameters())
    free = machine.free_memory_bytes(machine.pick_device(config["device"]))
    return max(1, int(MOST_MEMORY * free / bytes_))


def draws(member: torch.nn.Module, problem: Any) -> bool:
    """Whether a model draws random numbers while it trains, as dropout does."""
    inputs = problem.examples("train", 0, 2).inputs
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        member.train()(inputs.clone())
        return not torch.equal(before, torch.get_rng_state())
