"""`sigexp reproduce`: run what the claims need, over several seeds, and say which of them hold.

A run is done once however many claims look at it, and not again where a finished one with the same signature lies in
the output folder; one that was interrupted goes on from its checkpoint. A run that fails is told and the next one goes
on; its claims fail. Runs that no claim times are done side by side, each in a process with its share of the cores:
drawing data, testing and reports take one core each, and leave the others idle where a run has the machine to itself.
"""

import itertools
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import sigexp
from sigexp import cli, evaluation, machine, saved
from sigexp import config as configuration
from sigexp.fields import did_you_mean
from sigexp.problem import Problem
from sigexp.processes import Lost, side_by_side
from sigexp.report import verdicts
from sigexp.report.claims import Claim, Planned, plan, words
from sigexp.report.claims_file import ClaimError
from sigexp.report.series import headline, quiet, remaining
from sigexp.report.verdicts import Verdict
from sigexp.sweep_job import Task, carry_out
from sigexp.track import folder as folders
from sigexp.track import sweep

SCHEMA_VERSION = 1
MEMORY_BYTES = 6_000_000_000  # that a run takes at most, as measured over all claims of ours
BOUNDS = r"least_squares_(train|test)(_\d+x\d+|_\d+)?"  # references that a run adds to its problem's own


@dataclass(frozen=True)
class Job:
    """One run: a configuration and a seed."""

    planned: Planned
    seed: int
    overrides: list[str]
    source: Mapping[str, str]  # of the data, which the run's signature needs
    output: Path
    number: int  # from 1

    @property
    def timed(self) -> bool:
        """Whether a claim is about its seconds, which others beside it would change."""
        return any("seconds" in condition.metric for claim in self.planned.claims for condition in claim.conditions)


@dataclass
class Done:
    """A job's outcome: its folder and the documents its claims look at, or why there are none."""

    job: Job
    seconds: float = 0.0
    folder: Path | None = None
    error: str = ""
    reused: bool = False
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)  # claim id -> what it looks at


def reproduce(
    claims: Sequence[Claim], *, seeds: int, quick: bool, output: Path, command: str, at_once: int | None = None
) -> int:
    """Run everything, print the table, write claims.json. 0 where every claim holds, 1 where one does not.

    at_once: runs side by side; by default as many as there are cores and memory, or one where there is a GPU.
    Raises `ClaimError` (a ValueError) before the first run where a claim cannot be judged, OSError where `output`
    cannot be written.
    """
    began = time.perf_counter()
    jobs = prepare(plan(claims), seeds, output)
    output.mkdir(parents=True, exist_ok=True)
    done = run_all(jobs, at_once or usual_at_once())
    verdicts_ = [verdict(claim, [one for one in done if claim in one.job.planned.claims]) for claim in claims]
    verdicts.show(verdicts_, Console(highlight=False))
    whole = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "quick": quick,
        "seeds": list(range(seeds)),
        "seconds": time.perf_counter() - began,
        "machine": machine.describe_device(machine.pick_device("auto")),
        "versions": machine.versions(),
        "claims": [as_dict(one, done) for one in verdicts_],
        "runs": [run_as_dict(one) for one in done],
    }
    folders.write(output / "claims.json", folders.dumps(whole, indent=2) + "\n")
    failed = sum(one.holds is False for one in verdicts_)
    bounded = sum(one.holds is not None for one in verdicts_)
    if quick:
        print("--quick: small budgets and looser bounds; what a claim means is shown by its full budget alone")
    reused = sum(one.reused for one in done)
    before = f", {reused} of them from before (-o DIR starts afresh)" if reused else ""
    print(f"{bounded - failed} of {bounded} claims hold; {len(done)} runs{before}; {output / 'claims.json'}")
    return 1 if failed else 0


def prepare(planned: Sequence[Planned], seeds: int, output: Path) -> list[Job]:
    """All jobs, seed by seed; every configuration is composed and its claims are checked before anything runs."""
    checked = [check(run) for run in planned]
    numbers = itertools.count(1)
    return [
        Job(run, seed, run.overrides(seed, seeded), source, output, next(numbers))
        for seed in range(seeds)
        for run, (seeded, source) in zip(planned, checked, strict=True)
    ]


def check(run: Planned) -> tuple[bool, Mapping[str, str]]:
    """Whether a configuration's data have a seed, and their source; raises `ClaimError` for what cannot be judged."""
    try:
        config, _ = cli.compose(run.overrides())
        configuration.check(config)
        problem: Problem = configuration.build(config["dataset"], what="dataset")
        for claim in run.claims:
            check_claim(claim, problem_elsewhere(run, claim) if claim.tested_on else problem)
    except ClaimError:
        raise
    except Exception as error:
        code, message = cli.explain(error)
        if code != 2:
            raise
        raise ClaimError(f"claim {run.claims[0].name}: {message}") from None
    return "seed" in config["dataset"], problem.source


def problem_elsewhere(run: Planned, claim: Claim, seed: int | None = None) -> Problem:
    """The problem whose test data a claim's `tested_on` names, with a seed where one is given."""
    config, _ = cli.compose([*run.overrides(), *words(claim.tested_on)])
    if seed is not None and "seed" in config["dataset"]:
        config["dataset"]["seed"] = seed
    problem: Problem = configuration.build(config["dataset"], what="dataset")
    return problem


def check_claim(claim: Claim, problem: Problem) -> None:
    """Refuse metrics and references that the claim's problem does not have."""
    metrics = {*problem.metrics, *(f"{s}/{m}" for s in problem.test_splits if s != "test" for m in problem.metrics)}
    paths = [condition.metric for condition in claim.conditions]
    paths += [c.threshold.path for c in claim.conditions if c.threshold is not None and c.threshold.path]
    for path in paths:
        root, *rest = path.split(".")
        added = root == "references" and not claim.tested_on and re.fullmatch(BOUNDS, rest[0])
        if root == "references" and rest[0] not in problem.references and not added:
            hint = did_you_mean(rest[0], problem.references)
            raise ClaimError(f"claim {claim.name}: {path}: no such reference{hint}")
        known = set(problem.metrics) if root == "train" else metrics
        if root in ("test", "train", "references") and rest[-1] not in known:
            raise ClaimError(f"claim {claim.name}: {path}: no such metric{did_you_mean(rest[-1], known)}")


def usual_at_once() -> int:
    """How many runs are done side by side."""
    if machine.pick_device("auto") != "cpu":
        return 1
    return max(1, min(machine.cores(), machine.free_memory_bytes("cpu") // MEMORY_BYTES))


def run_all(jobs: Sequence[Job], at_once: int) -> list[Done]:
    """Every job, with a line before and after it on standard error; in their order."""
    alone = [job for job in jobs if job.timed or at_once == 1]
    others = [job for job in jobs if job not in alone]
    left = {job.number: str(job.planned) for job in jobs}
    began: dict[int, float] = {}
    seconds: dict[str, float] = {}  # that a configuration took

    def begins(job: Job) -> None:
        began[job.number] = time.perf_counter()
        say(f"run {job.number} of {len(jobs)}: {job.planned}, seed {job.seed}")

    def longest(waiting: Sequence[Job]) -> Job:
        """The next of those that wait: what is known to take longest, so that none is left to be done alone."""
        return max(waiting, key=lambda job: seconds.get(str(job.planned), math.inf))

    def ended(done: Done) -> Done:
        if not done.reused:
            seconds[left[done.job.number]] = done.seconds
        del left[done.job.number]
        which = f"run {done.job.number}: " if done.job in others else ""
        say(f"  {which}{outcome(done)}; {remaining([*left.values()], seconds, at_once if done.job in others else 1)}")
        return done

    found = []
    for job in alone:
        begins(job)
        found.append(ended(run_one(job)))
        machine.release_memory()
    with closing(side_by_side(run_quietly, others, at_once, longest, begins)) as answers:
        for job, answer in answers:
            took = time.perf_counter() - began[job.number]
            lost = isinstance(answer, Lost)
            found.append(ended(Done(job, took, error=str(answer)) if lost else replace(answer, job=job)))
    return sorted(found, key=lambda done: done.job.number)


def run_quietly(job: Job) -> Done:
    """`run_one` beside others, into whose lines on the terminal it would write."""
    return run_one(job, live=False)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def outcome(done: Done) -> str:
    """A job's outcome in words."""
    if done.error:
        return f"failed after {done.seconds:.0f} s: {done.error}"
    took = f"reused from {done.folder}" if done.reused else f"{done.seconds:.0f} s"
    return f"{took}, {headline(next(iter(done.documents.values())))}"


def run_one(job: Job, live: bool = True) -> Done:
    """Run a job, or find it finished, and judge its model wherever its claims want it judged."""
    began = time.perf_counter()
    done = Done(job)
    try:
        config, names = cli.compose([*job.overrides, *words({"outputs": str(job.output)})])
        sign = folders.signature(config, job.source, sigexp.__version__)
        home = job.output / names.experiment / names.model
        with quiet(f"{job.planned}, seed {job.seed}", live=live), sweep.claim(home, sign):
            done.folder, done.reused = carry_out(Task(config, names, job.overrides, home), sign)
        result = json.loads((done.folder / "result.json").read_text(encoding="utf-8"))
        found = verdicts.document(result)
        for claim in job.planned.claims:
            done.documents[claim.id] = elsewhere(job, claim, done.folder, found) if claim.tested_on else found
    except Exception as error:
        done.error = cli.explain(error)[1].replace("\n", "; ")
    done.seconds = time.perf_counter() - began
    return done


def elsewhere(job: Job, claim: Claim, folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a claim whose model is judged on other test data than its run; kept in the run's folder."""
    slug = "-".join(f"{name}-{value}" for name, value in claim.tested_on.items())
    path = folder / f"tested-{''.join(c if c.isalnum() or c in '._-' else '_' for c in slug)}.json"
    if not path.is_file():
        problem = problem_elsewhere(job.planned, claim, job.seed)
        predictors = {name: r.predict for name, r in problem.references.items() if r.predict is not None}
        values = evaluation.evaluate_all({"": saved.load_model(folder), **predictors}, problem)
        test = values.pop("")
        references = {name: {**values.get(name, {}), **r.values} for name, r in problem.references.items()}
        folders.write(path, folders.dumps({"test": test, "references": references}, indent=2) + "\n")
    return {**found, **json.loads(path.read_text(encoding="utf-8"))}


def verdict(claim: Claim, done: Sequence[Done]) -> Verdict:
    """A claim judged over the runs that it looks at."""
    return verdicts.judge(claim, [one.error or one.documents[claim.id] for one in done])


def as_dict(judged: Verdict, done: Sequence[Done]) -> dict[str, Any]:
    """A verdict as claims.json has it, with the folders of its runs in the order of the seeds."""
    runs = [one for one in done if judged.claim in one.job.planned.claims]
    return {**verdicts.as_dict(judged), "runs": [str(one.folder) if one.folder else None for one in runs]}


def run_as_dict(done: Done) -> dict[str, Any]:
    """A run as claims.json has it."""
    return {
        "command": f"sigexp {shlex.join(done.job.overrides)}",
        "seed": done.job.seed,
        "folder": str(done.folder) if done.folder else None,
        "seconds": done.seconds,
        "reused": done.reused,
        "error": done.error or None,
    }
