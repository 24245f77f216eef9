"""Commands of sigexp carried out inside this process, in folders of their own, and what came of them."""

import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sigexp import machine, problem
from sigexp.cli import main

FREE_BYTES = 2_000_000_000  # of memory, which sigexp is told there are
LIMIT_BYTES = 12_000_000_000  # of address space, so that what it does not foresee fails instead of filling the machine


class Unanswered(BaseException):
    """A command took longer than it may; no `except Exception` swallows it."""


@dataclass(frozen=True)
class Outcome:
    """A command's exit code (None: none in time, or an exception came through), standard error, and files left."""

    code: int | None
    err: str
    left: tuple[str, ...]

    def ran(self) -> bool:
        return self.code == 0 and any(name.endswith("result.json") for name in self.left)

    def refused(self) -> bool:
        """Exit code 2, one or two lines that are fit for a terminal, and nothing left behind."""
        lines = self.err.strip().splitlines()
        lines = lines[next((i for i, line in enumerate(lines) if line.startswith("sigexp: ")), 0) :]
        clear = bool(lines) and len(lines) <= 3 and "Traceback" not in self.err and all(map(str.isprintable, lines))
        return self.code == 2 and clear and not self.left and "not enough memory" not in self.err


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """The process prepared for many commands: little memory to be had, a cache of its own."""
    free, soft = machine.free_memory_bytes, resource.getrlimit(resource.RLIMIT_AS)
    little = lambda device: min(free(device), FREE_BYTES)  # noqa: E731
    before = os.environ.get("SIGEXP_DATA")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SIGEXP_DATA"] = before or cache
        machine.free_memory_bytes = problem.free_memory_bytes = little
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, soft[1]))
        try:
            yield
        finally:
            machine.free_memory_bytes = problem.free_memory_bytes = free
            resource.setrlimit(resource.RLIMIT_AS, soft)
            os.environ.pop("SIGEXP_DATA") if before is None else None


def command(words: Sequence[str], seconds: float = 60, files: Path | None = None) -> Outcome:
    """Carry out a command in an empty folder (`files`: in one that is there, of which only new files count)."""
    err, here = io.StringIO(), Path.cwd()

    def late(*_: object) -> None:
        raise Unanswered

    with tempfile.TemporaryDirectory() as folder:
        place = files or Path(folder, "empty", "here")  # what is above is empty too
        place.mkdir(parents=True, exist_ok=True)
        before = set(place.rglob("*"))
        os.chdir(place)
        previous = signal.signal(signal.SIGPROF, late)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process, however busy the machine is
        code: int | None = None
        try:
            with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
                code = main(list(words))
        except Unanswered:
            print(f"no answer in {seconds:.0f} s of computing", file=err)
        except BaseException:  # what `main` lets through is what is looked for
            print(traceback.format_exc(), file=err)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
            os.chdir(here)
        left = tuple(sorted(str(path.relative_to(place)) for path in set(place.rglob("*")) - before))
    return Outcome(code, err.getvalue(), left)


def show(words: Sequence[str], outcome: Outcome) -> None:
    """Say on standard error what failed, so that it can be tried by hand."""
    said = " // ".join(outcome.err.strip().splitlines()[-3:])[-600:]
    given = [word if len(word) < 100 else f"{word[:60]}... ({len(word):,} characters)" for word in words]
    print(f"failed ({outcome.code}): {given!a}\n  {said} {list(outcome.left[:3])}", file=sys.__stderr__, flush=True)
