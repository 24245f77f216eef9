"""Kills without warning: at random instants, and inside the writing of a checkpoint."""

import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.faults import runs
from benchmarks.faults.table import Row

KILLS, EACH = 200, 5


def rows(short: bool) -> list[Row]:
    found = []
    for processes in (2,) if short else (1, 2):
        with runs.folder_for_work() as work:
            found += killed(Path(work), processes, 2 if short else KILLS // 2, 2 if short else EACH)
    return found


def killed(work: Path, processes: int, count: int, each: int) -> list[Row]:
    words = [*runs.WORDS, f"trainer.processes={processes}"]
    known = runs.fingerprint(runs.whole(words, work, "whole"))
    numbers = [int(signal.SIGKILL)] * each

    def job(i: int) -> Callable[[], runs.Chain]:
        return partial(runs.chain, words, work, f"run{i}", numbers, seed=i, in_saves=0.65)

    def missing(found: Sequence[runs.Chain]) -> int:
        return max(0, -(-(count - sum(len(one.hits) for one in found)) // each))

    hits, equal, ended, told = 0, 0, 0, ""
    inside = unreadable = orphans = 0
    chains = runs.until_enough(job, missing, f"kills, {processes} process(es)")
    for done in chains:
        hits += len(done.hits)
        inside += sum(one.saving for one in done.hits)
        unreadable += sum(one.damaged for one in done.hits)
        orphans += sum(one.orphans for one in done.hits)
        same = not done.problem and runs.fingerprint(done.folder) == known
        told = told or done.problem
        ended += len(done.hits) if same else 0
        equal += same
    where = f"{processes} process" + "es" * (processes > 1)
    note = f"{equal} of {len(chains)} runs equal to the undisturbed one; {inside} kills inside a save {told}"
    return [
        Row(f"SIGKILL, {where}: resumed to the same weights, states and records", hits, ended, note),
        Row(f"SIGKILL, {where}: a whole checkpoint was left", hits, hits - unreadable, ""),
        Row(f"SIGKILL, {where}: no process outlived it by 5 s", hits, hits - min(hits, orphans), ""),
    ]
