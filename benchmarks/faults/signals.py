"""Signals that ask a run to end, and training processes that are killed under it."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.faults import runs
from benchmarks.faults.table import Row

COUNT, LOST = 50, 20
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
LIMIT_S = 10.0


def rows(short: bool) -> list[Row]:
    with runs.folder_for_work() as folder:
        work = Path(folder)
        words = [*runs.WORDS, "trainer.processes=2"]
        known = runs.fingerprint(runs.whole(words, work, "whole"))
        return [*asked(work, words, known, 1 if short else COUNT), *lost(work, words, known, 1 if short else LOST)]


def asked(work: Path, words: list[str], known: dict, count: int) -> list[Row]:
    numbers = list(CODES) * (1 if count < 2 else 2)
    each = len(numbers) // len(CODES)

    def job(i: int) -> Callable[[], runs.Chain]:
        return partial(runs.chain, words, work, f"run{i}", random.Random(i).sample(numbers, len(numbers)), seed=100 + i)

    def missing(found: Sequence[runs.Chain]) -> int:
        got = [one.number for chain in found for one in chain.hits]
        return max(0, -(-(count - min(got.count(number) for number in CODES)) // each))

    chains = runs.until_enough(job, missing, "signals")
    hits: list[runs.Hit] = []
    exact, equal, told = 0, 0, ""
    for done in chains:
        hits += done.hits
        same = not done.problem and runs.fingerprint(done.folder) == known
        equal, exact, told = equal + same, exact + len(done.hits) * same, told or done.problem
    found = []
    for number, code in CODES.items():
        mine = [one for one in hits if one.number == number]
        good = [
            one
            for one in mine
            if one.code == code and one.seconds < LIMIT_S and "sigexp resume" in one.said and not one.orphans
            and "Traceback" not in one.said
        ]  # fmt: skip
        slowest = max((one.seconds for one in mine), default=0.0)
        what = f"{number.name}: exit {code} within {LIMIT_S:.0f} s, says how to go on, no orphan"
        bad = next((f"; exit {one.code}: {one.said[-200:]}" for one in mine if one not in good), "")
        found.append(Row(what, len(mine), len(good), f"slowest {slowest:.1f} s{bad}"))
    note = f"{equal} of {len(chains)} runs {told}"
    return [*found, Row("signals: resumed to the same weights, states and records", len(hits), exact, note)]


def lost(work: Path, words: list[str], known: dict, count: int) -> list[Row]:
    jobs = [partial(_lost, work, words, i) for i in range(count)]
    found = list(runs.side_by_side(jobs, "lost processes"))
    good = [one for one in found if one[0] == 0 and one[1] and runs.fingerprint(one[1]) == known and one[2]]
    note = "" if len(good) == count else str(next(one for one in found if one not in good))[:300]
    return [Row("one of two training processes killed: the run goes on to the same result", count, len(good), note)]


def _lost(work: Path, words: list[str], i: int) -> tuple[int, Path | None, bool]:
    """Exit code, folder, and whether the log tells of it."""
    run = runs.start([*words, f"outputs=lost{i}"], work, f"lost{i}")
    outputs = work / f"lost{i}"
    rng = random.Random(i)
    runs.until(lambda: any(outputs.glob("*/*/*/checkpoints/*.json")), run.process, 60, 0.01)
    time.sleep(rng.uniform(0, 1.5))
    workers = runs.children(run.process.pid)
    if workers:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
    code = run.process.wait()
    folder = runs.folder_of(outputs)
    told = "begins again in new processes" in (folder / "run.log").read_text()
    return code, folder if code == 0 else None, told
