"""NaN and infinities in one, half and all but one of the members: the others learn as if nothing had happened.

Members are poisoned in the middle of training, in every way a population is computed, and what the healthy ones lose
and become is compared bit for bit with a population in which nobody was poisoned. Whole runs then do the same with
learning rates that explode.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faults.config_fuzz import SMALL, TINY
from benchmarks.faults.inprocess import bounded, command, show
from benchmarks.faults.table import Row
from sigexp.population.feed import Feed
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.shards import Shards
from sigexp.problem import Batch, Problem
from sigexp.signal.quality import mse

MEMBERS = 6
SICK = {"one": [2], "half": [0, 2, 5], "all but one": [0, 1, 2, 4, 5]}
WAYS = {
    "together": Plan(way="together"),
    "together, 3 examples a pass": Plan(way="together", slice=3),
    "one by one": Plan(way="one by one"),
    "moments": Plan(way="moments"),
    "two shards": Plan(way="together", shards=2),
    "two shards, one by one": Plan(way="one by one", shards=2),
}
POISONS: dict[str, Callable[[dict[str, Tensor], list[int]], None]] = {}


def poison(change: Callable[[dict[str, Tensor], list[int]], None]) -> Callable[[dict[str, Tensor], list[int]], None]:
    POISONS[change.__name__.replace("_", " ")] = change
    return change


@poison
def NaN_in_the_weights(state: dict[str, Tensor], sick: list[int]) -> None:
    for name in state:
        if name.startswith("params/"):
            state[name][sick] = torch.nan


@poison
def infinite_weights(state: dict[str, Tensor], sick: list[int]) -> None:
    for name in state:
        if name.startswith("params/"):
            state[name][sick] = torch.inf


@poison
def a_learning_rate_of_1e30(state: dict[str, Tensor], sick: list[int]) -> None:
    state["hparams/lr"][sick] = 1e30


def problem() -> Problem:
    noise = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Problem(
        kind="image",
        sample=lambda split, index: Batch(noise[index % 60], noise[index % 60].roll(1, 3)),
        sizes={"train": 60, "valid": 10, "test": 10},
        loss=mse,
        metrics={"mse": mse},
    )


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))


MODELS = {"convolution": partial(nn.Conv2d, 1, 1, 3, padding=1), "two layers": plain, "BatchNorm": normalised}


def trained(
    model: str, plan: Plan, optimizer: str, clip_norm: float | None, harm: Any, sick: list[int]
) -> list[Tensor]:
    """What every member lost in training and validation, and its state afterwards; `harm` comes in the middle."""
    torch.manual_seed(0)
    whole = Population(
        [MODELS[model]() for _ in range(MEMBERS)],
        loss=mse,
        metrics={"mse": mse},
        optimizer=optimizer,
        hparams={
            "lr": torch.logspace(-3, -2, MEMBERS),
            "momentum": torch.full((MEMBERS,), 0.9),
            "weight_decay": torch.full((MEMBERS,), 1e-4),
            "batch_size": torch.full((MEMBERS,), 6) if model == "BatchNorm" else torch.tensor([4, 6, 8] * 2),
        },
        clip_norm=clip_norm,
        plan=plan,
    )
    population = Shards(whole, 1) if plan.shards > 1 else whole
    feed = Feed(problem(), seed=0, device=torch.device("cpu"))
    threads = torch.get_num_threads()
    try:
        population.advance(feed, 0, 24)
        state = population.state()
        if harm:
            harm(state, sick)
        population.load_state(state)
        losses = [population.advance(feed, 24 + 24 * i, 24) for i in range(4)]
        valid = population.evaluate(feed.problem.examples("valid"), ["mse"])["mse"]
        after = population.state()
    finally:
        if isinstance(population, Shards):
            population.close()
        torch.set_num_threads(threads)
    rows = [torch.cat([part[p].double().flatten() for part in (*losses, valid)]) for p in range(MEMBERS)]
    states = [torch.cat([t[p].double().flatten() for t in after.values()]) for p in range(MEMBERS)]
    return [torch.cat([row, state]) for row, state in zip(rows, states, strict=True)]


def in_the_engine(short: bool) -> list[Row]:
    """Every way of computing x model x optimizer x poison x how many members have it."""
    found = {many: [0, 0] for many in SICK}
    optimizers: Sequence[tuple[str, float | None]] = [("sgd", None), ("adam", 1.0), ("nesterov", None), ("adamw", None)]
    for name, plan in WAYS.items():
        models = ["convolution"] if plan.way == "moments" else list(MODELS)
        models = [m for m in models if not (m == "BatchNorm" and plan.slice)]
        for model in models[:1] if short else models:
            for optimizer, clip_norm in optimizers[:2] if short else optimizers:
                healthy = trained(model, plan, optimizer, clip_norm, None, [])
                for harm_name, harm in POISONS.items():
                    for many, sick in SICK.items():
                        got = trained(model, plan, optimizer, clip_norm, harm, sick)
                        same = all(torch.equal(got[p], healthy[p]) for p in range(MEMBERS) if p not in sick)
                        ill = all(not got[p].isfinite().all() for p in sick)
                        found[many] = [found[many][0] + 1, found[many][1] + (same and ill)]
                        if not (same and ill):
                            print(f"{name}, {model}, {optimizer}, {harm_name} in {many}: {same=} {ill=}")
    note = "losses, validation and states of the healthy members bit for bit; by " + ", ".join(WAYS)
    return [
        Row(f"poisoned: {many} of {MEMBERS} members", count, passed, note if many == "one" else "")
        for many, (count, passed) in found.items()
    ]


def run(words: Sequence[str], folder: Path) -> tuple[dict[int, dict[str, Any]], str]:
    """A run's record of its members by id, without what a clock says, and its log."""
    outcome = command([*words, f"outputs={folder}"], files=folder)
    if outcome.code != 0:
        show(words, outcome)
        return {}, ""
    (record,) = folder.rglob("rounds.jsonl")
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    kept = {line["id"]: {k: v for k, v in line.items() if k != "seconds"} for line in lines}
    return kept, (record.parent / "run.log").read_text(encoding="utf-8")


def in_runs(short: bool) -> list[Row]:
    """`search=random` with rates that explode, against the same with these rates cut; and the other searches' logs."""
    base = ["experiment=gaussian", *TINY, *SMALL["gaussian"], "search.max_samples=240", "trainer.optimizer.lr=0.5"]
    wide = [*base, "search=random", "search.members=6", "search.lr_decades=20", "search.round_samples=20"]
    passed, count, half = 0, 0, 0
    for execution in ("together", "sequential", "moments")[: 1 if short else 3]:
        for seed in range(1 if short else 4):
            words = [*wide, f"trainer.execution={execution}", f"seed={seed}"]
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                exploding, log = run([*words, "search.lr_max=1e30"], Path(one))
                cut, _ = run([*words, "search.lr_max=0.6"], Path(other))
            sick = {m for m, line in exploding.items() if line["diverged"]}
            alike = {m for m, line in exploding.items() if m not in sick and line["hparams"]["lr"] <= 0.6}
            half = max(half, len({m % 6 for m in sick}))
            fine = bool(sick and alike) and all(exploding[m] == cut[m] for m in alike)
            fine = fine and "diverged, and rank last: members" in log
            count, passed = count + 1, passed + fine
    return [Row("runs with rates that explode", count, passed, f"search=random; up to {half} of 6 members")]


def rows(short: bool) -> list[Row]:
    found = in_the_engine(short)
    with bounded():
        return [*found, *in_runs(short), *selection()]


def selection() -> list[Row]:
    """AutoMLP seeds diverged survivors anew and logs it; where all members diverge the exit code is 3, with advice."""
    base = ["experiment=gaussian", *TINY, *SMALL["gaussian"], "search.max_samples=400", "search.members=6"]
    wild = [*base, "search.survivors=6", "search.lr_decades=25", "search.lr_max=1e30"]
    with tempfile.TemporaryDirectory() as folder:
        record, log = run(wild, Path(folder))
    anew = bool(record) and "diverged, and rank last: members" in log and "seeded anew from members" in log
    all_wild = [*base, "search=fixed", "search.members=3", "trainer.optimizer.lr=1e30", "search.lr_max=1e30"]
    outcome = command(all_wild)
    advised = outcome.code == 3 and "lower trainer.optimizer.lr" in outcome.err and "Traceback" not in outcome.err
    return [
        Row(
            "AutoMLP with most members diverged",
            1,
            int(anew),
            "logged: who diverged, and who takes their place",
        ),
        Row("all members diverged", 1, int(advised), "exit code 3, with advice"),
    ]
