"""A sweep's folder: sweep.jsonl lists its jobs with their overrides, signatures, folders and how they stand.

Jobs run in several processes, perhaps on several machines. Each appends a line when it begins and when it ends, and of
a job's lines the last one counts; when the sweep ends, the file is written anew with one line for every job. A folder
may come from anybody: what is read is checked, and paths that lead out of it are left out. Imports no torch.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sigexp.track.folder import dumps, write
from sigexp.track.record import Unreadable, finite, mapping

FILE = "sweep.jsonl"
ENDED = ("finished", "failed")
STATES = ("waiting", "running", *ENDED, "interrupted")
MOST_BYTES = 50_000_000


@dataclass(frozen=True)
class Job:
    """One job: a line of sweep.jsonl."""

    number: int
    overrides: list[str]
    signature: str = ""
    status: str = "waiting"  # one of STATES
    folder: str = ""  # the run's, as it is reached from the sweep's; '' where there is none yet
    reused: bool = False  # finished before the sweep came to it
    seconds: float | None = None
    error: str = ""
    code: int = 0  # the exit code of its failure

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class Ledger:
    """sweep.jsonl of one sweep, written by the sweep and by the processes of its jobs."""

    def __init__(self, sweep: Path) -> None:
        self.sweep, self.path = sweep, sweep / FILE

    def begin(self, jobs: Sequence[Job]) -> None:
        """A line for every job, written at once."""
        write(self.path, "".join(dumps(asdict(job)) + "\n" for job in jobs))

    def note(self, job: Job, **changes: Any) -> Job:
        """Append what a job has come to, by one write, so that lines of several processes do not mix."""
        changed = replace(job, **changes)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, (dumps(asdict(changed)) + "\n").encode())
        finally:
            os.close(handle)
        return changed

    def jobs(self) -> list[Job]:
        """Every job as it stands, by number. Raises `Unreadable` where the file is missing or none of sigexp's."""
        return read(self.sweep)

    def failed(self) -> bool:
        """Whether any job has failed."""
        return any(job.status == "failed" for job in self.jobs())

    def find(self, overrides: Sequence[str]) -> Job:
        """The job of these overrides. Raises KeyError."""
        for job in self.jobs():
            if job.overrides == list(overrides):
                return job
        raise KeyError(" ".join(overrides))

    def close(self) -> None:
        """One line for every job."""
        self.begin(self.jobs())

    def relative(self, folder: Path) -> str:
        """A run's folder as the file names it."""
        return os.path.relpath(folder.resolve(), self.sweep.resolve())

    def place(self, job: Job) -> Path | None:
        """The folder of a job's run, in the form in which the sweep's folder was given."""
        return Path(os.path.normpath(self.sweep / job.folder)) if job.folder else None


@contextmanager
def claim(home: Path, signature: str) -> Iterator[None]:
    """Hold the lock of a signature in a model's folder, waiting for who holds it. The system lets go of it however the
    process ends; a file system without locks grants it to everybody."""
    path = home / f".{signature}.lock"
    with ExitStack() as stack:
        while True:
            home.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a", encoding="ascii"))
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.is_file() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # else who held it has removed the file meanwhile
        stack.callback(path.unlink, missing_ok=True)
        yield


def claimed(home: Path, signature: str) -> bool:
    """Whether a process holds the lock of a signature."""
    try:
        with open(home / f".{signature}.lock", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read(sweep: Path) -> list[Job]:
    """The jobs of a sweep's folder; damaged lines, as the last one of a killed process may be, are left out."""
    path = sweep / FILE
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise Unreadable(f"{sweep}: {FILE} cannot be read ({size:,} bytes, more than {MOST_BYTES:,})")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise Unreadable(f"{sweep}: {FILE} cannot be read ({error.strerror})") from error
    found = {job.number: job for job in map(_job, lines) if job is not None}
    if not found:
        raise Unreadable(f"{sweep}: {FILE} is damaged or none of sigexp's (no jobs)")
    return [found[number] for number in sorted(found)]


def _job(line: str) -> Job | None:
    try:
        found = mapping(json.loads(line))
    except (ValueError, RecursionError):
        return None
    number, overrides, status = found.get("number"), found.get("overrides"), found.get("status")
    if not isinstance(number, int) or not isinstance(overrides, list) or status not in STATES:
        return None
    code = found.get("code")
    return Job(
        number=number,
        overrides=[str(word) for word in overrides],
        signature=str(found.get("signature", "")),
        status=str(status),
        folder=str(found.get("folder", "")),
        reused=found.get("reused") is True,
        seconds=finite(found.get("seconds")),
        error=str(found.get("error", "")),
        code=code if isinstance(code, int) else 1,
    )


def runs(sweep: Path) -> list[Path]:
    """The folders of a sweep's runs, each once, those that lie in its own outputs or below the working directory."""
    ledger, found = Ledger(sweep), dict[Path, None]()
    homes = [sweep.resolve().parent.parent, Path.cwd()]
    for job in ledger.jobs():
        folder = ledger.place(job)
        if folder is not None and any(folder.resolve().is_relative_to(home) for home in homes):
            found[folder] = None
    return list(found)
