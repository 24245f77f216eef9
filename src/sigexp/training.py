"""The part of a run that learns: what it needs, checked and built, and the search, from the data to its outcome."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.random import fork_rng

from sigexp import clock, evaluation, fitting, machine, sharing, starts, stopping, weighing
from sigexp import config as configuration
from sigexp.carrying import carry, described, planned
from sigexp.config import ConfigError
from sigexp.keeping import Keeper
from sigexp.names import Names
from sigexp.population import building, compiling
from sigexp.population.calibrate import Calibration
from sigexp.population.cluster import opened
from sigexp.population.feed import Feed
from sigexp.population.fused import FusedPopulation
from sigexp.population.population import Population
from sigexp.population.shards import Shards
from sigexp.problem import Batch, Problem, expected
from sigexp.report.board import Board
from sigexp.report.phases import Phases
from sigexp.report.terminal import Terminal, best_reference
from sigexp.report.wording import counted
from sigexp.search.base import HParams, Search
from sigexp.search.records import Outcome, RoundRecord
from sigexp.search.rounds import Carried, SearchLoop, at_once
from sigexp.track import folder as folders

log = logging.getLogger("sigexp")


@dataclass(frozen=True)
class Ready:
    """What a run needs, built and checked: the problem, its shapes, the search, the initial members, the device."""

    problem: Problem
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    settings: Any  # a search of sigexp.search, which is its own settings
    members: list[nn.Module]
    device: torch.device


def prepare(config: Mapping[str, Any], names: Names) -> Ready:
    """Check everything and build what a run needs; raises `ConfigError` (a ValueError) for what cannot work."""
    configuration.check(config)
    device = torch.device(machine.pick_device(config["device"]))
    problem = build_problem(config)
    shapes = problem.shapes()
    weighing.check_examples(config, problem, shapes)
    settings = build_search(config)
    first = first_member(config, names, problem, settings)
    for part in compiling.parts_of(first, math.prod(shapes[0][1:])):
        building.begin(part)
    weighing.check_members(config, first, shapes, names.model, str(device))
    others = map(settings.origin, range(1, settings.members))
    members = [first, *(initial_model(config, shapes, config["seed"], member) for member in others)]
    if fitting.needs_two(first, problem):
        settings = with_pairs(config, settings, names.model)
    return Ready(problem, shapes, settings, members, device)


def build_problem(config: Mapping[str, Any]) -> Problem:
    """The dataset of a config. Raises ValueError for what cannot work."""

    def build() -> Problem:
        return expected(configuration.build(config["dataset"], what="dataset"), config["dataset"]["_target_"])

    return sharing.once("problem", lambda: sharing.remembering(build(), known=sharing.packaged(config)))


def build_search(config: Mapping[str, Any]) -> Search:
    """The search of a config. Raises ValueError for what is none."""

    def build() -> Any:
        return configuration.build(config["search"], what="search")

    # Ours keep nothing from one round to the next.
    settings = sharing.once("search", build) if sharing.packaged(config, "search") else build()
    if not isinstance(settings, Search):
        raise ConfigError(f"search: {config['search']['_target_']} is no search of sigexp.search.base")
    return settings


def first_member(config: Mapping[str, Any], names: Names, problem: Problem, settings: Search) -> nn.Module:
    """The first member, tried on two examples; raises `ConfigError` (a ValueError) for a model that does not fit."""
    try:
        with weighing.building(names.model):
            first = initial_model(config, problem.shapes(), config["seed"], settings.origin(0))
        sharing.once("fits", lambda: fitting.check(first, problem, names.model))
    except weighing.TooHeavy:
        raise
    except ValueError as error:
        fit = ", ".join(fitting.fitting(problem, config["footprint"]))
        raise ConfigError(f"{error}\nmodels that fit {names.dataset}: {fit or 'none'}") from error
    if config["trainer"]["start"] == "least_squares":
        starts.two_layers(first)  # a ValueError says why not
    return first


def with_pairs(config: Mapping[str, Any], settings: Search, model: str) -> Search:
    """The search for a model that cannot learn from one example alone; raises `ConfigError` where it would have to."""
    batch, first = config["trainer"]["batch_size"], "initial_samples" not in settings.unused
    for name, value, samples in (
        ("trainer.batch_size", batch, batch),
        ("search.round_samples", settings.round_samples, settings.round_samples),
        ("search.initial_samples", settings.initial_samples, settings.initial_samples if first else 2),
        ("search.max_samples", settings.max_samples, settings.max_samples // settings.members),
        ("search.max_samples", settings.max_samples, settings.first_samples() if first else 2),
    ):
        if samples < 2:
            raise ConfigError(
                f"{name}={value}: model={model} normalises over minibatches, of two examples at least; give more"
            )
    return replace(settings, batch_min=max(2, settings.batch_min))


def initial_model(config: Mapping[str, Any], shapes: tuple, seed: int, member: int) -> nn.Module:
    """Fresh weights of one member: a pure function of seed and member, whatever else was drawn before."""
    with fork_rng(devices=[]):
        # Ours draw by the CPU's generator alone, and `torch.manual_seed` takes a millisecond for those of devices.
        generator = torch.default_generator if sharing.packaged(config) else torch
        generator.manual_seed(int(np.random.default_rng([seed, 0, member]).integers(2**63)))
        return configuration.build(config["model"], *shapes, what="model")


@dataclass(frozen=True)
class Trained:
    """What the search came to, and how it was computed."""

    outcome: Outcome
    best: nn.Module
    outputs: evaluation.Predict  # of the best member
    feed: Feed
    calibration: Calibration
    processes: int
    here_bytes: int  # the most memory that this process has held until then; a fork of it has not all of that
    beside_bytes: int  # the same of the processes beside this one
    references: Mapping[str, Mapping[str, float]]  # on validation data
    fused: Mapping[str, Any] | None  # the runs that it shared a population with
    fitted: tuple[Tensor, Tensor] | None  # weight and bias of least error on the training set, where they are known


def train(
    config: Mapping[str, Any],
    ready: Ready,
    folder: Path,
    board: Board,
    allocator_tuned: bool,
    phases: Phases,
    kept: Keeper,
) -> Trained:
    """The search, from drawing the data to its outcome. Signals that ask it to end are heard between two steps, after
    saving; raises KeyboardInterrupt then."""
    phases.at("data")
    problem, settings, trainer = ready.problem, ready.settings, config["trainer"]
    began = clock.seconds()
    valid = sharing.once("valid", lambda: evaluation.references(problem, "valid", settings.valid_samples))
    board.references(valid)
    seed = config["dataset"].get("seed", 0)
    feed = sharing.once("feed", lambda: Feed(problem, seed=seed, device=ready.device, shuffle=trainer["shuffle"]))
    if feed.size is not None:
        feed.data()
    log.info("data ready after %.1f s: %s", clock.seconds() - began, dict(problem.source))
    if trainer["start"] == "least_squares" and kept.resumed is None:
        begin_linear(ready, feed, config["seed"])
    phases.at("plan")
    population, hparams = populate(ready.members, problem, trainer, ready.device)
    learned = feed.data() if feed.size is not None else ()
    with opened(trainer["engine"], ready.device, sum(part.nbytes for part in learned)) as cluster, fork_rng():
        torch.manual_seed(config["seed"])  # for what draws while it trains, such as dropout
        if kept.resumed is None:
            progress, calibration = None, planned(population, feed, config, cluster)
        else:
            progress, calibration = kept.progress(population)
        log.info("plan: %s (%s)", calibration.plan, described(calibration))
        population.use(calibration.plan)
        carried, processes = carry(population, trainer, config["seed"], allocator_tuned, cluster)
        title = f"{folder}: {counted(len(ready.members), 'member')} on {ready.device}"
        reference = best_reference(valid, problem.headline)
        decides, before = deciding_loss(problem, settings.selection), progress.seen() if progress else 0
        phases.at("training")
        shared = sharing.SHARED.get()
        try:
            with (
                Terminal(title, problem.headline, reference, settings.max_samples, decides, before) as terminal,
                stopping.deferred() as request,
            ):
                outcome = SearchLoop(
                    settings,
                    carried,
                    feed,
                    problem,
                    hparams=hparams,
                    seed=config["seed"],
                    lr_schedule=trainer["schedule"],
                    on_round=recorder(folder, board, terminal),
                    on_progress=terminal.step,
                    on_pause=lambda loop, begins: kept.pause(loop, begins, request, calibration, board),
                    step=at_once(calibration.plan, shared.batch_size) if shared else None,
                ).run(progress, kept.past(settings.selection))
        except BaseException as error:
            if isinstance(carried, Shards):
                carried.close(at_once=True)
            if isinstance(error, Exception):
                board.give_up()
            raise
        fitted = carried.least_squares()
        if isinstance(carried, Shards):
            carried.close()
    population.load_state(outcome.state)
    here, beside = machine.peak_memory_bytes(), carried.peak_memory_bytes if isinstance(carried, Shards) else 0
    fused = shared.described(calibration.plan) if shared and isinstance(carried, FusedPopulation) else None
    best = population.member(0)
    outputs = outputs_of(population, best, ready.shapes[0])
    return Trained(outcome, best, outputs, feed, calibration, processes, here, beside, valid, fused, fitted)


def outputs_of(population: Population, best: nn.Module, shape: tuple[int, ...]) -> evaluation.Predict:
    """What the best member, a population's first, makes of inputs. Those of the shape it has learned from it takes the
    way it has learned, often twice as quick as the module is."""
    module = evaluation.InPasses(best)
    if population.plan.way == "one by one" or population.precision != "fp32":
        return module
    return lambda inputs: population.predict(inputs)[0] if tuple(inputs.shape[1:]) == shape else module(inputs)


def deciding_loss(problem: Problem, selection: str) -> str | None:
    """The loss by which members are chosen, 'valid' or 'train'; None where the headline metric shows it."""
    shown = selection == "valid" and problem.metrics[problem.headline] is problem.loss
    return None if shown else selection


def populate(
    members: Sequence[nn.Module], problem: Problem, trainer: Mapping[str, Any], device: torch.device
) -> tuple[Population, HParams]:
    """The members as one population, with the trainer's hyperparameters."""
    optimizer = trainer["optimizer"]
    hparams = {name: float(optimizer[name]) for name in ("lr", "momentum", "weight_decay")}
    hparams["batch_size"] = trainer["batch_size"]
    columns = {name: torch.full((len(members),), value, dtype=torch.float64) for name, value in hparams.items()}
    population = Population(
        members,
        loss=problem.loss,
        metrics=problem.metrics,
        optimizer="nesterov" if optimizer["nesterov"] else optimizer["name"],
        hparams=columns,
        clip_norm=trainer["clip_norm"],
        precision=trainer["precision"],
        device=device,
        compiled=trainer["compile"],
    )
    return population, hparams


def begin_linear(ready: Ready, feed: Feed, seed: int) -> None:
    """Let every member begin as the best linear filter of what it sees, each with other random filters beside it."""
    batch = feed.data() if feed.size is not None else ready.problem.examples("train", 0, starts.EXAMPLES)
    some = Batch(*(part[: starts.EXAMPLES].cpu() for part in batch))
    kernel, bias = starts.least_squares_filter(ready.members[0], some)
    for number, member in enumerate(ready.members):
        with fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([seed, 2, ready.settings.origin(number)]).integers(2**63)))
            starts.begin(member, kernel, bias, some.inputs[:200])


def recorder(folder: Path, board: Board, terminal: Terminal) -> Callable[[RoundRecord, Carried], None]:
    """What happens after every round: the record on disk, TensorBoard, the terminal."""

    def record(done: RoundRecord, population: Carried) -> None:
        with open(folder / "rounds.jsonl", "a", encoding="utf-8") as file:
            for member in done.members:
                line = {**asdict(member), "total_samples": done.total_samples, "seconds": done.seconds}
                file.write(folders.dumps(line) + "\n")
        board.round(done)
        terminal.round(done)

    return record
