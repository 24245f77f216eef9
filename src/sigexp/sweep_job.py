"""One job of a sweep, in whatever process its launcher started: run, or gone on with, or found finished."""

import functools
import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sigexp import cli, clock, machine, resuming
from sigexp import config as configuration
from sigexp.names import Names
from sigexp.report.series import quiet
from sigexp.track import find
from sigexp.track import folder as folders
from sigexp.track.sweep import Job, Ledger, claim

SWEEPER = "SIGEXP_SWEEPER"  # in the environment: the process id of the sweep
OURS = ("sweep.", "hydra.", "hydra/")  # overrides that are no part of a job


@dataclass(frozen=True)
class Task:
    """What a job's process knows of it: its config, and how the sweep is run."""

    config: Mapping[str, Any]
    names: Names
    overrides: list[str]
    home: Path  # outputs/EXPERIMENT/MODEL
    anew: bool = False  # run it even where a run of its signature is there
    stop: bool = False  # do not begin when another job has failed


def own_overrides(words: Sequence[str]) -> list[str]:
    """A job's overrides without those of the sweep and of Hydra."""
    return [str(word) for word in words if not str(word).startswith(OURS)]


def told_apart(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What tells every job from the others: the overrides that not all of them have; '' where all have the same."""
    shared = set(jobs[0]).intersection(*jobs)
    return [" ".join(word for word in own_overrides(job) if word not in shared) for job in jobs]


def caption(ledger: Ledger, overrides: list[str]) -> str:
    """Which job of how many is being done."""
    jobs = [job.overrides for job in ledger.jobs()]
    name = told_apart(jobs)[jobs.index(overrides)]
    return f"job {jobs.index(overrides) + 1} of {len(jobs)}{name and f': {name}'}"


def home_of(config: Mapping[str, Any], names: Names) -> Path:
    """The folder of all runs of a model on an experiment."""
    return Path(config["outputs"]) / names.experiment / names.model


def run_job(cfg: DictConfig) -> None:
    """Hydra's task function of a sweep. What the job comes to is noted in the sweep's folder, failures too."""
    cli.prepare()
    info = HydraConfig.get()
    config, names = configuration.plain(cfg), cli.names_of(dict(info.runtime.choices))
    overrides, ledger = own_overrides(info.overrides.task), Ledger(Path(info.sweep.dir))
    if not ledger.path.is_file():  # a sweeper of another's, which looks at the jobs itself
        cli.one_run(config, names, overrides)
        return
    rules = cfg.sweep
    task = Task(config, names, overrides, home_of(config, names), rules.rerun == "all", rules.on_error == "stop")
    here = str(info.launcher.get("_target_", "")).endswith(("BasicLauncher", "FusedLauncher"))
    if os.environ.get(SWEEPER) != str(os.getpid()):
        behave()
    with quiet(caption(ledger, overrides), live=here):
        do(task, ledger)
    machine.release_memory()  # the sweep's next job may follow in this process


@functools.cache
def behave() -> None:
    """Leave signals to the sweep's process, and end soon after it was killed; joblib's would else wait for ever."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if callable(signal.getsignal(signal.SIGTERM)):  # submitit's, which waits for another signal to queue again
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def do(task: Task, ledger: Ledger) -> None:
    """Carry a job out, unless it has ended meanwhile: a launcher may have started it twice."""
    with claim(task.home, ledger.find(task.overrides).signature):
        job = ledger.find(task.overrides)
        if job.ended or (task.stop and ledger.failed()):
            return
        began = clock.seconds()
        job = ledger.note(job, status="running")
        try:
            folder, reused = carry_out(task, job.signature)
        except Exception as error:
            fail(task, ledger, job, error, clock.seconds() - began)
        except BaseException:  # interrupted, or taken from the machine by its queue
            begun = find.unfinished(task.home, job.signature)
            ledger.note(job, status="interrupted", folder=ledger.relative(begun) if begun else "")
            raise
        else:
            seconds = clock.seconds() - began
            ledger.note(job, status="finished", folder=ledger.relative(folder), reused=reused, seconds=seconds)


def carry_out(task: Task, signature: str) -> tuple[Path, bool]:
    """Run a job, go on with it, or find it finished: its folder, and whether it was there."""
    if not task.anew and (done := find.finished(task.home, signature)):
        return done, True
    begun = None if task.anew else find.unfinished(task.home, signature)
    if begun:
        resuming.check(begun)
    return cli.start(dict(task.config), task.names, task.overrides, again=begun).folder, False


def fail(task: Task, ledger: Ledger, job: Job, error: Exception, seconds: float) -> None:
    """Note a failure; run.log has the traceback, or job-NUMBER.log of the sweep's folder where no run had begun."""
    code, message = cli.explain(error)
    begun = find.unfinished(task.home, job.signature)
    if begun is None:
        folders.write(ledger.sweep / f"job-{job.number}.log", "".join(traceback.format_exception(error)))
    where = ledger.relative(begun) if begun else ""
    said = message.splitlines()[:1] if code == 1 else message.splitlines()  # the second is how to see a traceback
    ledger.note(job, status="failed", folder=where, seconds=seconds, error="; ".join(said), code=code)
