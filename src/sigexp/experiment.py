"""One run, from a resolved config to its result. Read it from top to bottom."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sigexp
from sigexp import catalog, clock, evaluation, kernels, machine, sharing
from sigexp.bounds import excess, linear_bounds, passing
from sigexp.keeping import Keeper
from sigexp.names import Names
from sigexp.population import building
from sigexp.problem import Batch, Problem, Reference
from sigexp.report import cases, claims, claims_file, page, response, verdicts
from sigexp.report.board import Board
from sigexp.report.phases import Phases
from sigexp.report.pictures import pictures
from sigexp.saved import save_model
from sigexp.signal.response import Response
from sigexp.track import folder as folders
from sigexp.track.documents import dump_yaml
from sigexp.training import Ready, Trained, prepare, train

log = logging.getLogger("sigexp")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, what result.json holds, and the best member."""

    folder: Path
    result: dict[str, Any]
    model: nn.Module


def run(
    config: Mapping[str, Any],
    names: Names,
    overrides: Sequence[str] = (),
    command: str = "",
    *,
    allocator_tuned: bool = False,
    again: Path | None = None,
) -> Run:
    """Train a population on a problem and judge its best member. Everything is checked before the folder is made.

    `allocator_tuned` only says, for the record, what the process did before. again: the folder of a run of this config
    that did not come to its end, which is taken up from its last checkpoint. Raises KeyboardInterrupt where a signal
    asks the run to end, with the folder as its first argument.
    """
    with Phases() as phases:
        return _run(config, names, overrides, command, allocator_tuned, phases, again)


def _run(
    config: Mapping[str, Any],
    names: Names,
    overrides: Sequence[str],
    command: str,
    allocator_tuned: bool,
    phases: Phases,
    again: Path | None,
) -> Run:
    """`run`, which tells `phases` what it is at."""
    began = clock.seconds()
    machine.reset_peak_memory()
    phases.at("data", checked=False)
    building.begin()
    ready = prepare(config, names)
    problem = ready.problem
    known = sharing.once("claims", lambda: claims_file.load(names.experiment))
    stated = claims.matching(known, overrides, names.chosen())
    sign = folders.signature(config, problem.source, sigexp.__version__)
    folder = again or folders.create(Path(config["outputs"]), names.experiment, names.model, sign)
    with folders.logging_to(folder, command), ExitStack() as stack:
        log.info("allocator tuned: %s; threads: %d; device: %s", allocator_tuned, torch.get_num_threads(), ready.device)
        if again is None:
            write_config(folder, config, names, overrides)
        kept = Keeper.of(folder, sign, phases, again=again is not None)
        before, pictured = kept.rounds(), kept.pictured
        board = Board(
            folder, problem, names, ready.members[0], ready.device, ready.settings.max_samples, before, pictured
        )
        stack.enter_context(closing(board))
        board.begin(config)
        trained = train(config, ready, folder, board, allocator_tuned, phases, kept)

        recorded = board.events.file.length()

        def end() -> dict[str, Any]:
            board.events.file.cut(recorded)  # what an end in another process that came to nothing has written
            best, feed = trained.best, trained.feed
            save_model(folder, best, described(config, names, ready))
            phases.at("bounds")
            looks = response.measured(best, problem)
            sight = looks.field if looks else None
            bounds = linear_bounds(best, problem, feed, config["footprint"], sight, trained.fitted)
            judged = {**problem.references, **bounds}
            seen = cases.Cases(problem)
            phases.at("testing")
            test, references = judge(trained.outputs, problem, judged, ready.device, [seen, board.watch])
            result = {
                **summary(config, names, ready, trained, test, references, command),
                "excess": excess(best, problem, test, references),
                "learning_curve": passing(best, problem, feed, references),
                "response": looks.numbers() if looks else None,
            }
            on_train = evaluation.evaluate(
                {"": trained.outputs}, problem, "train", ready.device, evaluation.TRAIN_EXAMPLES
            )
            result["best"]["train"] = on_train[""]
            phases.at("report")
            show(folder, board, best, problem, judged, ready.device, looks)
            folders.write(folder / "cases.json", folders.dumps(cases.as_dict(seen, judged, references)))
            result["kernels"] = kernels.measure(best)
            seconds = kept.seconds_before + clock.seconds() - began
            result |= {"phases": phases.finished(), "seconds": seconds}
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
            return result

        return Run(folder, sharing.end(end), trained.best)


def judge(
    outputs: evaluation.Predict,
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
    met = sharing.once("references", dict[Any, dict[str, float]])  # predictor -> its metrics
    new = {name: predict for name, predict in known.items() if predict not in met}
    on_cpu = {name: (lambda f: lambda x: f(x.cpu()).to(device))(predict) for name, predict in new.items()}
    results = evaluation.evaluate_all({"": outputs, **on_cpu}, problem, device, {"": watch})
    met |= {predict: results[name] for name, predict in new.items()}
    found = {name: met[predict] for name, predict in known.items()}
    return results[""], {name: {**found.get(name, {}), **r.values} for name, r in references.items()}


def summary(
    config: Mapping[str, Any],
    names: Names,
    ready: Ready,
    trained: Trained,
    test: Mapping[str, float],
    references: Mapping[str, Mapping[str, float]],
    command: str,
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
        "fused": trained.fused,
        "samples": outcome.total_samples,
        "budget": {
            "max_samples": config["search"]["max_samples"],
            "lecture_max_samples": config["lecture"]["max_samples"] if of_the_lecture(names) else None,
        },
        "rounds": outcome.rounds,
        "stopped": outcome.stopped,
        "train_seconds": outcome.train_seconds,
        "member_samples_per_second": outcome.total_samples
        / max(outcome.train_seconds + trained.calibration.seconds, 1e-9),
        "peak_memory_bytes": max(machine.peak_memory_bytes(), trained.here_bytes) + trained.beside_bytes,
        "peak_device_memory_bytes": machine.peak_device_memory_bytes(str(device)),
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
    packaged = sharing.once("packaged", lambda: {one.name for one in catalog.choices("experiment") if not one.own})
    return names.experiment in packaged


def write_config(folder: Path, config: Mapping[str, Any], names: Names, overrides: Sequence[str]) -> None:
    folders.write(folder / "config.yaml", dump_yaml({**config, "names": names.chosen()}))
    composed = {
        "choices": names.chosen(),
        "overrides": list(overrides),
        "version": sigexp.__version__,
        "conf": dict(names.conf),
    }
    folders.write(folder / "composed.yaml", dump_yaml(composed))


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
    figures = pictures(model, problem, references, device)
    figures |= {"response": partial(response.picture, looks)} if looks else {}
    found = {name: draw() for name, draw in figures.items()}
    for name, png in found.items():
        folders.write(folder / f"{name}.png", png)
    board.result(model, found, looks)
