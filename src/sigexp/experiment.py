"""One run, from a resolved config to its result. Read it from top to bottom."""

import logging
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

import sigexp
from sigexp import catalog, evaluation, fitting, kernels, machine, starts
from sigexp import config as configuration
from sigexp.bounds import excess, linear_bounds, passing
from sigexp.config import ConfigError
from sigexp.names import Names
from sigexp.population.calibrate import Calibration, Wanted, calibrate
from sigexp.population.feed import Feed
from sigexp.population.population import Population
from sigexp.population.shards import Shards
from sigexp.problem import Batch, Problem, Reference, expected
from sigexp.report import cases, claims, claims_file, page, response, verdicts
from sigexp.report.board import Board
from sigexp.report.pictures import pictures
from sigexp.report.terminal import Terminal, best_reference
from sigexp.saved import save_model
from sigexp.search.base import HParams
from sigexp.search.rounds import Outcome, RoundRecord, SearchLoop
from sigexp.signal.response import Response
from sigexp.track import folder as folders

log = logging.getLogger("sigexp")
SCHEMA_VERSION = 1
TRAIN_EXAMPLES = 1000  # that the best member is judged on beside the test data, to tell over-fitting from inability


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what result.json holds, and the best member."""

    folder: Path
    result: dict[str, Any]
    model: nn.Module


@dataclass(frozen=True)
class Ready:
    """What a run needs, built and checked: the problem, its shapes, the search, the initial members, the device."""

    problem: Problem
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    settings: Any  # a search of sigexp.search, which is its own settings
    members: list[nn.Module]
    device: torch.device


def run(
    config: Mapping[str, Any],
    names: Names,
    overrides: Sequence[str] = (),
    command: str = "",
    *,
    allocator_tuned: bool = False,
) -> Run:
    """Train a population on a problem and judge its best member. Everything is checked before the folder is made.

    `allocator_tuned` only says, for the record, what the process did before.
    """
    began = time.perf_counter()
    machine.reset_peak_memory()
    ready = prepare(config, names)
    problem = ready.problem
    stated = claims.matching(claims_file.load(names.experiment), overrides, names.chosen())
    sign = folders.signature(config, problem.source, sigexp.__version__)
    folder = folders.create(Path(config["outputs"]), names.experiment, names.model, sign)
    board = Board(folder, problem, names, ready.members[0], ready.device, ready.settings.max_samples)
    with folders.logging_to(folder, command), closing(board):
        log.info("allocator tuned: %s; threads: %d; device: %s", allocator_tuned, torch.get_num_threads(), ready.device)
        write_config(folder, config, names, overrides)
        board.begin(config)
        trained = train(config, ready, folder, board, allocator_tuned)
        best, feed = trained.best, trained.feed
        save_model(folder, best, described(config, names, ready))
        looks = response.measured(best, problem)
        sight = looks.field if looks else None
        judged = {**problem.references, **linear_bounds(best, problem, feed, config["footprint"], sight)}
        seen = cases.Cases(problem)
        test, references = judge(best, problem, judged, ready.device, [seen, board.watch])
        result = {
            **summary(config, names, ready, trained, test, references, command, began),
            "excess": excess(best, problem, test, references),
            "learning_curve": passing(best, problem, feed, references),
            "response": looks.numbers() if looks else None,
        }
        show(folder, board, best, problem, judged, ready.device, looks)
        folders.write(folder / "cases.json", folders.dumps(cases.as_dict(seen, judged, references)))
        result["best"]["train"] = evaluation.evaluate({"": best}, problem, "train", ready.device, TRAIN_EXAMPLES)[""]
        result["kernels"] = kernels.measure(best)
        result["claims"] = verdicts.of_result(stated, result)
        board.end(result)
        folders.write(folder / "result.json", folders.dumps(result, indent=2) + "\n")
        try:
            page.write(folder)
        except OSError:
            raise
        except Exception as error:  # the result is there, and `sigexp report` can write the page later
            log.warning("no report.html: %s", " ".join(str(error).split())[:200])
        log.info("done: %s", folders.dumps(test))
    return Run(folder, result, best)


def prepare(config: Mapping[str, Any], names: Names) -> Ready:
    """Check everything and build what a run needs; raises `ConfigError` (a ValueError) for what cannot work."""
    configuration.check(config)
    device = torch.device(machine.pick_device(config["device"]))
    problem = expected(configuration.build(config["dataset"], what="dataset"), config["dataset"]["_target_"])
    shapes = problem.shapes()
    settings = configuration.build(config["search"], what="search")
    try:
        first = initial_model(config, shapes, config["seed"], settings.origin(0))
        fitting.check(first, problem, names.model)
        others = map(settings.origin, range(1, settings.members))
        members = [first, *(initial_model(config, shapes, config["seed"], member) for member in others)]
    except ValueError as error:
        fit = ", ".join(fitting.fitting(problem, config["footprint"]))
        raise ConfigError(f"{error}\nmodels that fit {names.dataset}: {fit or 'none'}") from error
    if config["trainer"]["start"] == "least_squares":
        starts.two_layers(first)  # a ValueError says why not
    return Ready(problem, shapes, settings, members, device)


@dataclass(frozen=True)
class Trained:
    """What the search came to, and how it was computed."""

    outcome: Outcome
    best: nn.Module
    feed: Feed
    calibration: Calibration
    processes: int
    peak_memory_bytes: int  # of the processes beside this one
    references: Mapping[str, Mapping[str, float]]  # on validation data


def train(config: Mapping[str, Any], ready: Ready, folder: Path, board: Board, allocator_tuned: bool) -> Trained:
    """The search, from drawing the data to its outcome."""
    problem, settings, trainer = ready.problem, ready.settings, config["trainer"]
    began = time.perf_counter()
    valid = evaluation.references(problem, "valid", settings.valid_samples)
    board.references(valid)
    feed = Feed(problem, seed=config["dataset"].get("seed", 0), device=ready.device, shuffle=trainer["shuffle"])
    if feed.size is not None:
        feed.data()
    log.info("data ready after %.1f s: %s", time.perf_counter() - began, dict(problem.source))
    if trainer["start"] == "least_squares":
        begin_linear(ready, feed, config["seed"])
    population, hparams = populate(ready.members, problem, trainer, ready.device)
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])  # for what draws while it trains, such as dropout
        calibration = calibrate(population, feed, wanted(config), machine.cache_dir() / "plans")
        log.info("plan: %s (%s)", calibration.plan, described_calibration(calibration))
        population.use(calibration.plan)
        carried, processes = carry(population, trainer, config["seed"], allocator_tuned)
        title = f"{folder}: {len(ready.members)} members on {ready.device}, {calibration.plan}"
        reference = best_reference(valid, problem.headline)
        try:
            with Terminal(title, problem.headline, reference, settings.max_samples) as terminal:
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
                ).run()
        finally:
            if isinstance(carried, Shards):
                carried.close()
    population.load_state(outcome.state)
    peak = carried.peak_memory_bytes if isinstance(carried, Shards) else 0
    return Trained(outcome, population.member(0), feed, calibration, processes, peak, valid)


def wanted(config: Mapping[str, Any]) -> Wanted:
    """What is known of a run before its plan is chosen."""
    trainer, search = config["trainer"], config["search"]
    limit = trainer["memory_limit"]
    return Wanted(
        execution=trainer["execution"],
        processes=None if trainer["processes"] == "auto" else trainer["processes"],
        threads=torch.get_num_threads(),
        memory_limit=None if limit is None else int(limit * 1e9),
        samples=search["max_samples"],
        members=search["members"],
    )


def described_calibration(calibration: Calibration) -> str:
    rates = ", ".join(f"{name}: {rate:,.0f}" for name, rate in calibration.rates.items())
    origin = "known from an earlier run" if calibration.cached else f"measured in {calibration.seconds:.1f} s"
    return f"{origin}; member-samples/s: {rates}" if rates else origin


def carry(
    population: Population, trainer: Mapping[str, Any], seed: int, allocator_tuned: bool
) -> tuple[Population | Shards, int]:
    """The population as its plan divides it, carried by processes where there is more than one part."""
    plan = population.plan
    if plan.shards == 1:
        return population, 1
    processes = plan.processes if trainer["processes"] == "auto" else min(trainer["processes"], plan.shards)
    try:
        return Shards(population, processes, seed=seed, tune_allocator=allocator_tuned), processes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        log.info("training stays in one process: %s", error)
        return Shards(population, 1, seed=seed), 1


def initial_model(config: Mapping[str, Any], shapes: tuple, seed: int, member: int) -> nn.Module:
    """Fresh weights of one member: a pure function of seed and member, whatever else was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng([seed, 0, member]).integers(2**63)))
        return configuration.build(config["model"], *shapes, what="model")


def begin_linear(ready: Ready, feed: Feed, seed: int) -> None:
    """Let every member begin as the best linear filter of what it sees, each with other random filters beside it."""
    batch = feed.data() if feed.size is not None else ready.problem.examples("train", 0, starts.EXAMPLES)
    some = Batch(*(part[: starts.EXAMPLES].cpu() for part in batch))
    kernel, bias = starts.least_squares_filter(ready.members[0], some)
    for number, member in enumerate(ready.members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([seed, 2, ready.settings.origin(number)]).integers(2**63)))
            starts.begin(member, kernel, bias, some.inputs[:200])


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


def recorder(folder: Path, board: Board, terminal: Terminal) -> Callable[[RoundRecord, Population | Shards], None]:
    """What happens after every round: the record on disk, TensorBoard, the terminal."""

    def record(done: RoundRecord, population: Population | Shards) -> None:
        with open(folder / "rounds.jsonl", "a", encoding="utf-8") as file:
            for member in done.members:
                line = {**asdict(member), "total_samples": done.total_samples, "seconds": done.seconds}
                file.write(folders.dumps(line) + "\n")
        board.round(done)
        terminal.round(done)

    return record


def judge(
    model: nn.Module,
    problem: Problem,
    references: Mapping[str, Reference],
    device: torch.device,
    watches: Sequence[evaluation.Watch],
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics of the model and of every reference on the test sets, each split passed over once.

    `watches` are shown what the model makes of the test data.
    """

    def watch(index: Tensor, batch: Batch, outputs: Tensor) -> None:
        for one in watches:
            one(index, batch, outputs)

    known = {name: r.predict for name, r in references.items() if r.predict is not None}
    on_cpu = {name: (lambda f: lambda x: f(x.cpu()).to(device))(predict) for name, predict in known.items()}
    results = evaluation.evaluate_all({"": model, **on_cpu}, problem, device, {"": watch})
    test = results.pop("")
    return test, {name: {**results.get(name, {}), **r.values} for name, r in references.items()}


def summary(
    config: Mapping[str, Any],
    names: Names,
    ready: Ready,
    trained: Trained,
    test: Mapping[str, float],
    references: Mapping[str, Mapping[str, float]],
    command: str,
    began: float,
) -> dict[str, Any]:
    """What result.json holds."""
    problem, device, outcome = ready.problem, ready.device, trained.outcome
    dataset = {key: value for key, value in config["dataset"].items() if key != "_target_"}
    model_fields = {key: value for key, value in config["model"].items() if key != "_target_"}
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": names.experiment,
        "dataset": {"name": names.dataset, "source": dict(problem.source), **dataset},
        "model": {"name": names.model, **model_fields},
        "search": names.search,
        "parameters": sum(p.numel() for p in trained.best.parameters()),
        "seeds": {"seed": config["seed"], "dataset": config["dataset"].get("seed")},
        "device": machine.describe_device(str(device)),
        "plan": {
            **trained.calibration.plan.as_dict(),
            "processes": trained.processes,
            "measured": trained.calibration.rates,
            "calibration_seconds": trained.calibration.seconds,
            "known_before": trained.calibration.cached,
        },
        "samples": outcome.total_samples,
        "budget": {
            "max_samples": config["search"]["max_samples"],
            "lecture_max_samples": config["lecture"]["max_samples"] if of_the_lecture(names) else None,
        },
        "rounds": outcome.rounds,
        "stopped": outcome.stopped,
        "seconds": time.perf_counter() - began,
        "train_seconds": outcome.train_seconds,
        "member_samples_per_second": outcome.total_samples
        / max(outcome.train_seconds + trained.calibration.seconds, 1e-9),
        "peak_memory_bytes": machine.peak_memory_bytes() + trained.peak_memory_bytes,
        "best": {
            "id": outcome.best.id,
            "round": outcome.best.round,
            "samples": outcome.best.samples,
            "hyperparameters": outcome.best.hparams,
            "valid": {"loss": outcome.best.valid_loss, problem.headline: outcome.best.valid},
            "test": dict(test),
        },
        "references": {name: dict(values) for name, values in references.items()},
        "references_valid": {name: dict(values) for name, values in trained.references.items()},
        "claims": [],
        "versions": machine.versions(),
        "command": command,
    }


def of_the_lecture(names: Names) -> bool:
    """Whether the experiment is a packaged one, whose `lecture` settings mean something."""
    return any(choice.name == names.experiment and not choice.own for choice in catalog.choices("experiment"))


def write_config(folder: Path, config: Mapping[str, Any], names: Names, overrides: Sequence[str]) -> None:
    folders.write(folder / "config.yaml", yaml.safe_dump({**config, "names": names.chosen()}, sort_keys=False))
    composed = {
        "choices": names.chosen(),
        "overrides": list(overrides),
        "version": sigexp.__version__,
        "conf": dict(names.conf),
    }
    folders.write(folder / "composed.yaml", yaml.safe_dump(composed, sort_keys=False))


def described(config: Mapping[str, Any], names: Names, ready: Ready) -> dict[str, Any]:
    """What model.json says of the best member: enough to rebuild it, and to say what it is for."""
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": names.experiment,
        "kind": ready.problem.kind,
        "labels": list(ready.problem.labels),
        "input_shape": list(ready.shapes[0]),
        "target_shape": list(ready.shapes[1]),
        "name": names.model,
        "model": dict(config["model"]),
        "version": sigexp.__version__,
    }


def show(
    folder: Path,
    board: Board,
    model: nn.Module,
    problem: Problem,
    references: Mapping[str, Reference],
    device: torch.device,
    looks: Response | None,
) -> None:
    """Pictures, in the folder and for TensorBoard: input, output, target, references; the learned kernels; what the
    model looks at."""
    found = pictures(model, problem, references, device) | ({"response": response.picture(looks)} if looks else {})
    for name, png in found.items():
        folders.write(folder / f"{name}.png", png)
    board.result(model, found, looks)
