"""`sigexp -m`: every job is checked before the first one runs, and each runs once however often the sweep is started.

A job is known by the signature of its run: where a finished run of it lies in the outputs it is skipped, an interrupted
one goes on. Any launcher of Hydra's may carry the jobs (basic: one after another in this process; joblib, submitit: at
once in others). They meet in sweep.jsonl of the sweep's folder and in a lock for every signature, so that a job that is
launched twice still runs once.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

import sigexp
from sigexp import cli, fusing, machine, sweep_report
from sigexp import config as configuration
from sigexp.composing import Composer
from sigexp.config import Sweep
from sigexp.names import Names
from sigexp.report.wording import counted
from sigexp.sweep_checks import Checks, key
from sigexp.sweep_job import SWEEPER, Task, home_of, own_overrides, told_apart
from sigexp.sweep_report import Watch, say
from sigexp.track import find
from sigexp.track import folder as folders
from sigexp.track.sweep import Job, Ledger, claimed

STAMP_TRIES = 1000


class SweepFailed(Exception):
    """A sweep that was refused, or of which jobs failed; `code` is its exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Planned:
    """A job that was composed and checked, and where its run will lie."""

    overrides: list[str]  # as the launcher is given them
    config: dict[str, Any]
    names: Names
    job: Job
    name: str  # what tells it from the others
    home: Path  # outputs/EXPERIMENT/MODEL


def sweep(sweeper: Any, jobs: Sequence[list[str]]) -> None:
    """Check all jobs, run those that have no result yet, and show the table over all of them.

    sweeper: Hydra's, set up, with its launcher. Raises `SweepFailed` where a job cannot run or has failed.
    """
    settings = configuration.check_sweep(sweeper.config.sweep)
    planned = plan(sweeper, jobs)
    if len(planned) < len(jobs):
        say(f"{counted(len(jobs) - len(planned), 'job')} left out: the same as another one")
    ledger = Ledger(create(sweeper.config))
    ledger.begin([stand(one, ledger, settings) for one in planned])
    at_once = jobs_at_once(sweeper.config.hydra.launcher, len(planned))
    watch = Watch(ledger, {one.job.number: one.name for one in planned}, at_once)
    watch.header()
    try:
        with share_of_cores(at_once):
            launch(sweeper, ledger, planned, watch, stop=settings.on_error == "stop")
    except KeyboardInterrupt as stop:
        watch.interrupted()
        stop.args = ()  # the folder of one run, which alone is not what goes on
        raise
    ledger.close()
    failed = sweep_report.finish(ledger, watch.names)
    if failed:
        raise SweepFailed(*failed)


def plan(sweeper: Any, jobs: Sequence[list[str]]) -> list[Planned]:
    """All jobs, composed and checked, those that would be the same run once.

    Raises `SweepFailed` with a line for what is wrong with any of them.
    """
    composer, checks, found, wrong = (
        Composer(sweeper),
        Checks(),
        dict[tuple[Path, str], Planned](),
        dict[str, list[str]](),
    )
    code = 0
    for overrides, name in zip(jobs, told_apart(jobs), strict=True):
        try:
            composed = composer.compose(overrides)
            config, run = composed.config, cli.names_of(composed.choices)
            sign = folders.signature(config, checks.source(config, run), sigexp.__version__)
        except Exception as error:
            code_of_this, message = cli.explain(error)
            code = code or code_of_this
            wrong.setdefault(message.replace("\n", "; "), []).append(name)
            continue
        job, home = Job(len(found), own_overrides(composed.task), sign), home_of(config, run)
        said = name or f"{run.experiment} {run.model}"
        found.setdefault((home, sign), Planned(list(overrides), config, run, job, said, home))
    if wrong:
        raise SweepFailed(code, refusal(wrong, len(jobs)))
    return list(found.values())


def refusal(wrong: Mapping[str, Sequence[str]], count: int) -> str:
    """What is said where jobs cannot run: a line for each thing that is wrong. wrong: message -> names of jobs."""
    if count == 1:
        return next(iter(wrong))
    bad = sum(map(len, wrong.values()))
    lines = [f"  {who[0]}{f' and {len(who) - 1} more' * bool(who[1:])}: {what}" for what, who in wrong.items()]
    return "\n".join([f"{bad} of {count} jobs cannot run; none was begun", *lines])


def create(config: DictConfig) -> Path:
    """Make the sweep's folder, a new one with -2, -3, ... behind its name where there is one, and tell Hydra."""
    named = Path(config.hydra.sweep.dir)
    named.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, STAMP_TRIES):
        folder = named if number == 1 else named.with_name(f"{named.name}-{number}")
        try:
            folder.mkdir()
            break
        except FileExistsError:
            continue
    else:
        raise FileExistsError(f"{named}: {STAMP_TRIES} folders of that name; choose another hydra.sweep.dir")
    quoted = str(folder).replace("'", "\\'")
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(folder)
        # every job's config is composed anew, from these alone
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
    OmegaConf.save(config, folder / find.SWEEP)
    return folder


def stand(one: Planned, ledger: Ledger, settings: Sweep) -> Job:
    """A job as it stands before the sweep: finished, interrupted, or waiting."""
    if settings.rerun == "all":
        return one.job
    if done := find.finished(one.home, one.job.signature):
        return replace(one.job, status="finished", folder=ledger.relative(done), reused=True)
    if begun := find.unfinished(one.home, one.job.signature):
        return replace(one.job, status="interrupted", folder=ledger.relative(begun))
    return one.job


def jobs_at_once(launcher: DictConfig, jobs: int) -> int:
    """How many jobs a launcher runs on this machine at the same time."""
    target, wanted = str(launcher.get("_target_", "")), launcher.get("n_jobs")
    if isinstance(wanted, int):  # joblib's: -1 for all cores, -2 for all but one
        return max(1, min(jobs, wanted if wanted > 0 else machine.cores() + 1 + wanted))
    return jobs if target.endswith("LocalLauncher") else 1


@contextmanager
def share_of_cores(at_once: int) -> Iterator[None]:
    """Processes that are started within take their share of the cores and no more, and know that they are not this."""
    before = os.environ.get(machine.CORES_SHARE)
    if at_once > 1:
        os.environ |= machine.share(at_once)
    os.environ[SWEEPER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[SWEEPER]
        os.environ.pop(machine.CORES_SHARE, None)
        if before is not None:
            os.environ[machine.CORES_SHARE] = before


def grouped(planned: Sequence[Planned]) -> list[list[Planned]]:
    """Jobs that are one population, in groups of two or more; every other by itself. In the order of the first of each.

    One that another process is at stays by itself, because it will be waited for.
    """
    kinds: dict[str, list[Planned]] = {}
    for one in planned:
        kinds.setdefault(fusing.key(one.config, one.names) if not held(one) else key(one.job.number), []).append(one)
    found: list[list[Planned]] = []
    for jobs in kinds.values():
        most = fusing.most_jobs(jobs[0].config, jobs[0].names) if len(jobs) > 1 else 1
        count = -(-len(jobs) // most)
        found += [jobs[number::count] for number in range(count)]
    return sorted(found, key=lambda jobs: jobs[0].job.number)


def launch(sweeper: Any, ledger: Ledger, planned: Sequence[Planned], watch: Watch, *, stop: bool) -> None:
    """Hand the jobs that have not ended to Hydra's launcher. One whose process dies leaves the others; where several
    may have died of one, each is launched alone once more."""
    suspects = set[int]()
    here, fused = isinstance(sweeper.launcher, BasicLauncher), fuses(sweeper)
    while left := to_do(ledger, planned, suspects):
        alone = [[one] for one in left]
        batches = grouped(left) if fused else alone if here or suspects else [left]
        for number, batch in enumerate(batches):
            if stop and ledger.failed():
                return
            if number and fused:
                machine.release_memory()  # what the batch before has left
            if len(batch) > 1 and fused:
                watch.fused([one.job.number for one in batch])
            with watch.following(not here or len(batch) > 1):
                died = attempt(sweeper, ledger, batch)
                if here and died:
                    raise died
                if died:
                    suspects = bury(ledger, batch, died)
            if died:
                break
            if not (stop and ledger.failed()):
                not_begun(ledger, batch)
        else:
            suspects = set()


def fuses(sweeper: Any) -> bool:
    """Whether the launcher is `FusedLauncher`, whose module Hydra loads anew when it scans for plugins."""
    return getattr(sweeper.launcher, "fuses", False) is True


def attempt(sweeper: Any, ledger: Ledger, batch: Sequence[Planned]) -> Exception | None:
    """Launch jobs and wait for them; the launcher's own failure, if any."""
    try:
        if fuses(sweeper) and len(batch) > 1:
            rules = sweeper.config.sweep
            anew, stop = rules.rerun == "all", rules.on_error == "stop"
            fusing.run([Task(one.config, one.names, one.job.overrides, one.home, anew, stop) for one in batch], ledger)
        else:
            sweeper.launcher.launch([one.overrides for one in batch], initial_job_idx=batch[0].job.number)
    except Exception as error:
        return error
    return None


def to_do(ledger: Ledger, planned: Sequence[Planned], suspects: set[int]) -> list[Planned]:
    """The jobs that have not ended; where there are suspects, they alone."""
    left = {job.number for job in ledger.jobs() if not job.ended}
    return [one for one in planned if one.job.number in (left & suspects or left)]


def bury(ledger: Ledger, batch: Sequence[Planned], error: Exception) -> set[int]:
    """After the launcher has failed: the job that died, if it is known, has failed. Returns those that may have.

    Raises the launcher's error where no job had begun.
    """
    time.sleep(1.0)  # processes that are being ended let go of their locks
    of_batch = {one.job.number: one for one in batch}
    jobs = [job for job in ledger.jobs() if job.number in of_batch]
    dead = [job for job in jobs if job.status == "running" and not held(of_batch[job.number])]
    if len(dead) > 1:
        return {job.number for job in dead}
    reason = f"its process ended without a word ({type(error).__name__}); killed, or out of memory"
    if not dead and not any(job.ended for job in jobs):
        raise error
    for job in dead:
        begun = find.unfinished(of_batch[job.number].home, job.signature)
        ledger.note(job, status="failed", folder=ledger.relative(begun) if begun else "", error=reason, code=1)
    return set()


def held(one: Planned) -> bool:
    """Whether a process is at a job."""
    return claimed(one.home, one.job.signature)


def not_begun(ledger: Ledger, batch: Sequence[Planned]) -> None:
    """A job that its launcher gave back without having begun it has failed, else it would be launched for ever."""
    for job in ledger.jobs():
        if job.number in {one.job.number for one in batch} and not job.ended:
            ledger.note(job, status="failed", error="its launcher did not run it", code=1)
