"""Checkpoint files that are cut short or have a bit turned over."""

import random
import shutil
from pathlib import Path

from benchmarks.faults import runs
from benchmarks.faults.table import Row
from sigexp.track.checkpoint import Checkpoints

COUNT = 100


def rows(short: bool) -> list[Row]:
    with runs.folder_for_work() as folder:
        work = Path(folder)
        run = runs.whole(runs.WORDS, work, "whole")
        known = runs.fingerprint(run)
        count = 10 if short else COUNT
        found = [
            row(run, f"{kind} of a checkpoint's files: seen, and the one before is used", count, kind)
            for kind in ("truncation", "bit flip")
        ]
        return [*found, taken_up(work, run, known, 1 if short else 6)]


def row(run: Path, what: str, count: int, kind: str) -> Row:
    rng = random.Random(kind)
    newest, before = sorted((run / "checkpoints").glob("*.json"))[::-1]
    expected = Checkpoints(run)._read(before).data
    seen = 0
    for i in range(count):
        path = newest if i % 2 else newest.with_suffix(".safetensors")
        good = path.read_bytes()
        path.write_bytes(damaged(good, kind, rng))
        told: list[str] = []
        found = Checkpoints(run).latest(told.append)
        seen += bool(told) and found is not None and found.data == expected
        path.write_bytes(good)
    return Row(what, count, seen, "half in the JSON, half in the tensors")


def damaged(good: bytes, kind: str, rng: random.Random) -> bytes:
    if kind == "truncation":
        return good[: rng.randrange(len(good))]
    bad = bytearray(good)
    bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    return bytes(bad)


def taken_up(work: Path, run: Path, known: dict, count: int) -> Row:
    """Runs that are resumed from a folder whose newest checkpoint is damaged."""
    equal = 0
    for i in range(count):
        rng = random.Random(i)
        copy = work / "again" / str(i) / run.parent.name / run.name
        shutil.copytree(run, copy)
        (copy / "result.json").unlink()
        newest = max((copy / "checkpoints").glob("*.json")).with_suffix([".json", ".safetensors"][i % 2])
        newest.write_bytes(damaged(newest.read_bytes(), ["truncation", "bit flip"][i // 2 % 2], rng))
        code = runs.start(["resume", str(copy.relative_to(work))], work, f"again{i}").process.wait()
        told = "is damaged" in (copy / "run.log").read_text()
        equal += code == 0 and told and runs.fingerprint(copy) == known
    return Row("resumed beside a damaged checkpoint: the same result, and the log says so", count, equal, "")
