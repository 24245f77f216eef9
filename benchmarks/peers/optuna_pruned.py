"""Optuna with the successive-halving pruner: trials that begin anew, in processes that share a journal."""

import multiprocessing
from collections.abc import Mapping
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.peers import task
from benchmarks.peers.plain import Found, Learner, hparams_of
from benchmarks.peers.task import Arrays, Spec
from sigexp import machine, training

MOST_ROUNDS = 13  # of a trial: what the last member of search=halving learns from


def search(spec: Spec, config: Mapping[str, Any], arrays: Arrays, folder: Path) -> Found:
    """The search, with one process or more. Raises RuntimeError where one of them fails."""
    count = spec.arrangement.workers
    context = multiprocessing.get_context("spawn")
    left = context.Value("q", spec.samples)
    if count == 1:
        return optimize(spec, config, arrays, InMemoryStorage(), left, 0)
    task.save(arrays, folder)
    queue = context.Queue()
    workers = [context.Process(target=work, args=(spec, config, folder, left, i, queue)) for i in range(count)]
    for worker in workers:
        worker.start()
    found = Found()
    for answer in (queue.get() for _ in workers):
        if isinstance(answer, str):
            raise RuntimeError(f"Optuna: {answer}")
        state = torch.load(folder / answer["state"], weights_only=True)
        found.add(answer["segments"], answer["valid"], state)
        found.trials += answer["trials"]
    for worker in workers:
        worker.join()
    return found


def work(spec: Spec, config: Mapping[str, Any], folder: Path, left: Any, number: int, answers: Queue) -> None:
    """The main function of a process: what it found, or the error in words."""
    machine.tune_allocator()
    try:
        storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        found = optimize(spec, config, task.mapped(folder), storage, left, number)
        name = f"best-{number}.pt"
        torch.save(found.state, folder / name)
        answers.put({"segments": found.segments, "valid": found.valid, "trials": found.trials, "state": name})
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")


def optimize(
    spec: Spec, config: Mapping[str, Any], arrays: Arrays, storage: BaseStorage, left: Any, number: int
) -> Found:
    """Trials until no samples are `left`, a number that all processes count down."""
    torch.set_num_threads(spec.arrangement.threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found, samples, ranges = Found(), spec.round_samples(), ranges_of(config)

    def objective(trial: optuna.Trial) -> float:
        learner = Learner(spec, config, arrays, trial.number, samples * MOST_ROUNDS)
        learner.lr = trial.suggest_float("lr", *ranges["lr"], log=True)
        learner.batch_size = trial.suggest_int("batch_size", *map(int, ranges["batch_size"]), log=True)
        found.trials += 1
        for round_ in range(1, MOST_ROUNDS + 1):
            here = taken(left, samples)
            if not here:
                trial.study.stop()
                raise optuna.TrialPruned
            valid, segment = learner.round(here)
            found.add([segment], learner.best, learner.best_model)
            trial.report(valid, round_)
            if trial.should_prune():
                raise optuna.TrialPruned
        return learner.best

    study = optuna.create_study(
        storage=storage,
        study_name="peers",
        load_if_exists=True,
        sampler=TPESampler(seed=1000 * spec.seed + number),
        pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    )
    study.optimize(objective, callbacks=[lambda study, trial: None if left.value else study.stop()])
    return found


def taken(left: Any, samples: int) -> int:
    """So many of the samples that are left, or what there is."""
    with left.get_lock():
        here = min(samples, left.value)
        left.value -= here
    return int(here)


def ranges_of(config: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Where learning rate and batch size lie in the searches of sigexp."""
    settings = training.build_search(config)
    start = settings.start(hparams_of(config))
    low, high = (settings.drawn(start, np.full(2, share)) for share in (0.0, 1.0))
    return {name: (low[name], high[name]) for name in ("lr", "batch_size")}
