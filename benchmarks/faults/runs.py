"""Real runs that are hit, taken up and hit again, and how their folders are compared."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sigexp.track.checkpoint import Checkpoints

# Rounds of half a second or more on a machine of 2026. `trainer.processes` changes no result. The plan is measured
# once, by the undisturbed run, and kept in the cache that all share.
WORDS = (
    "experiment=iir", "model=lstm", "dataset.size=300", "dataset.test_size=4", "search=automlp", "search.members=4",
    "search.survivors=2", "search.initial_samples=12000", "search.round_samples=12000", "search.max_samples=300000",
    "search.valid_samples=20", "search.patience=null", "trainer.batch_size=25", "trainer.threads=1",
)  # fmt: skip
ENDED = 60.0  # seconds after which a run that should have ended is a failure


@dataclass
class Hit:
    """A signal that a run got."""

    number: int
    code: int  # with which it ended
    seconds: float  # after the signal
    saving: bool  # whether a file of a checkpoint was half written
    damaged: bool  # whether no whole checkpoint was left, although there had been one
    orphans: int  # processes that were there five seconds later
    said: str


@dataclass
class Chain:
    """One run from its beginning to its end, over all hits."""

    folder: Path
    hits: list[Hit] = field(default_factory=list)
    problem: str = ""


class Run(NamedTuple):
    process: subprocess.Popen
    log: Path


def environment(work: Path) -> dict[str, str]:
    return {**os.environ, "SIGEXP_DATA": str(work / "cache"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def start(words: Sequence[str], work: Path, name: str, extra: dict[str, str] | None = None) -> Run:
    log = work / f"{name}.log"
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "sigexp", *words], cwd=work, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env={**environment(work), **(extra or {})}, start_new_session=True,
        )  # fmt: skip
    return Run(process, log)


def whole(words: Sequence[str], work: Path, name: str) -> Path:
    """A run that nothing disturbs; its folder."""
    run = start([*words, f"outputs={name}"], work, name)
    if run.process.wait() != 0:
        raise RuntimeError(run.log.read_text(errors="replace")[-2000:])
    return folder_of(work / name)


def folder_of(outputs: Path) -> Path:
    (found,) = [path.parent for path in outputs.glob("*/*/*/config.yaml")]
    return found


def fingerprint(folder: Path) -> dict[str, Any]:
    """What two runs of the same config share: weights, records, the last state, what was measured."""
    result = json.loads((folder / "result.json").read_text())
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    last = Checkpoints(folder).latest(lambda line: None)
    timings = ("seconds", "phases", "calibration", "train_seconds", "round_seconds", "pictured")
    return {
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "rounds": [{key: value for key, value in line.items() if key != "seconds"} for line in rounds],
        "best": result["best"],
        "references": result["references"],
        "state": last and {key: value for key, value in last.data.items() if key not in timings},
        "tensors": last and {name: tensor.tolist() for name, tensor in last.tensors.items()},
    }


def children(pid: int) -> list[int]:
    """The processes below one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def half_written(folder: Path) -> bool:
    with suppress(OSError):
        return any(name.startswith(".") for name in os.listdir(folder / "checkpoints"))
    return False


def sessions(folder: Path) -> int:
    """How often a run was begun or taken up."""
    with suppress(OSError):
        return (folder / "run.log").read_text(errors="replace").count("command: ")
    return 0


def begins(folder: Path, before: int) -> bool:
    return sessions(folder) > before


def until(condition: Callable[[], bool], process: subprocess.Popen, seconds: float, pause: float) -> bool:
    """Wait until a condition holds; False where the process or the time ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        if pause:
            time.sleep(pause)
    return False


def hit(run: Run, folder: Path, number: int, below: Sequence[int]) -> Hit:
    """Send a signal, wait for the end, and look what is left. below: the processes below the run's."""
    had = any((folder / "checkpoints").glob("*.json"))
    before = run.log.stat().st_size
    began = time.monotonic()
    run.process.send_signal(number)
    try:
        code = run.process.wait(ENDED)
    except subprocess.TimeoutExpired:
        run.process.kill()
        code = run.process.wait()
    seconds = time.monotonic() - began
    saving = half_written(folder)
    damaged = had and Checkpoints(folder).latest(lambda line: None) is None
    end = time.monotonic() + 5
    while time.monotonic() < end and any(map(alive, below)):
        time.sleep(0.05)
    said = run.log.read_bytes()[before:].decode(errors="replace")
    return Hit(number, code, seconds, saving, damaged, sum(map(alive, below)), said)


def chain(
    words: Sequence[str], work: Path, name: str, numbers: Sequence[int], *, seed: int, in_saves: float = 0.0
) -> Chain:
    """Start a run, hit it with every signal in turn at random instants, take it up after each, and let it end.

    in_saves: share of the hits that wait for a checkpoint's half-written file.
    """
    rng = random.Random(seed)
    run = start([*words, f"outputs={name}"], work, name)
    outputs = work / name
    if not until(lambda: any(outputs.glob("*/*/*/composed.yaml")), run.process, 60, 0.01):
        return Chain(outputs, problem=f"no folder: {run.log.read_text(errors='replace')[-300:]}")
    done = Chain(folder_of(outputs))
    for number in numbers:
        if done.hits:
            begun = sessions(done.folder)
            run = start(["resume", str(done.folder.relative_to(work))], work, name)
            until(partial(begins, done.folder, begun), run.process, 60, 0.01)
        below: list[int] | None = None
        if rng.random() < in_saves:
            below = children(run.process.pid)  # now, because a save is over sooner than they are found
            until(partial(half_written, done.folder), run.process, 20, 0.0003)
        else:
            until(lambda: False, run.process, rng.uniform(0, 2.0), 0.005)
        if run.process.poll() is not None:
            break  # it has ended before
        done.hits.append(hit(run, done.folder, number, children(run.process.pid) if below is None else below))
    return _ended(done, run, work, name)


def _ended(done: Chain, run: Run, work: Path, name: str) -> Chain:
    """The run, taken up for the last time."""
    if run.process.poll() is not None and not (done.folder / "result.json").is_file():
        run = start(["resume", str(done.folder.relative_to(work))], work, name)
    try:
        code = run.process.wait(300)
    except subprocess.TimeoutExpired:
        run.process.kill()
        code = run.process.wait()
    if not (done.folder / "result.json").is_file():
        done.problem = f"exit code {code}: {run.log.read_text(errors='replace')[-400:]}"
    return done


def side_by_side(jobs: Sequence[Callable[[], Any]], tell: str) -> Iterator[Any]:
    """What the jobs come to, two at a time, with a line of progress."""
    with ThreadPoolExecutor(2) as pool:
        for i, found in enumerate(pool.map(lambda job: job(), jobs)):
            if sys.stderr.isatty() or i % 10 == 9:
                print(f"{tell}: {i + 1} of {len(jobs)}", file=sys.stderr)
            yield found


def until_enough(
    job: Callable[[int], Callable[[], Chain]], missing: Callable[[Sequence[Chain]], int], tell: str
) -> list[Chain]:
    """Runs until none is `missing`, which says how many more to begin: a run may end before it got all its hits."""
    found: list[Chain] = []
    while more := missing(found):
        new = list(side_by_side([job(i) for i in range(len(found), len(found) + more)], tell))
        found += new
        if not any(one.hits for one in new):
            break
    return found


def folder_for_work() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="sigexp-faults-")


def name_of(number: int) -> str:
    return signal.Signals(number).name
