"""What a person sees of a sweep: a header, a line for every job as it ends, and the table over all of them."""

import json
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sigexp.report import compare_tables
from sigexp.report.compare import compare
from sigexp.report.series import headline, remaining
from sigexp.report.terminal import duration
from sigexp.report.wording import counted
from sigexp.track import folder as folders
from sigexp.track.record import Record, Unreadable, printable, read
from sigexp.track.sweep import Job, Ledger

PAGE = "report.html"
POLL_S = 0.3  # between two looks at what other processes have come to


class Watch:
    """Tells what the jobs of a sweep come to."""

    def __init__(self, ledger: Ledger, names: Mapping[int, str], at_once: int) -> None:
        """names: what to call the jobs. at_once: how many run at the same time."""
        self.ledger, self.names, self.at_once = ledger, names, at_once
        self.told = {job.number for job in ledger.jobs() if job.ended}
        self.seconds: dict[str, float] = {}

    def header(self) -> None:
        jobs = self.ledger.jobs()
        begun = sum(job.status == "interrupted" for job in jobs)
        parts = [f"sweep {self.ledger.sweep}: {counted(len(jobs), 'job')}"]
        parts += [f"{self.at_once} at once"] if self.at_once > 1 else []
        parts += [f"{len(self.told)} finished before and skipped (sweep.rerun=all runs them anew)"] if self.told else []
        parts += [f"{begun} interrupted before"] if begun else []
        say(", ".join(parts))

    def fused(self, numbers: Sequence[int]) -> None:
        """Before jobs are carried out as one population."""
        names = [self.names[number] for number in numbers]
        say(f"{len(names)} jobs at once, as one population: {names[0]} ... {names[-1]}")

    def show(self) -> None:
        """A line for every job that has ended since."""
        jobs = self.ledger.jobs()
        for job in jobs:
            if not job.ended or job.number in self.told:
                continue
            self.told.add(job.number)
            if job.seconds is not None and not job.reused and job.status == "finished":
                self.seconds[kind(self.names[job.number])] = job.seconds
            left = [kind(self.names[other.number]) for other in jobs if other.number not in self.told]
            time_left = f"; {remaining(left, self.seconds, self.at_once)}" if left else ""
            say(f"{len(self.told)} of {len(jobs)}: {self.names[job.number]}: {outcome(self.ledger, job)}{time_left}")

    @contextmanager
    def following(self, meanwhile: bool) -> Iterator[None]:
        """Show what ends within, `meanwhile` or afterwards; meanwhile in a terminal also what is running."""
        if not meanwhile:
            yield
            self.show()
            return
        over, console = threading.Event(), Console(stderr=True, highlight=False)
        live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

        def look() -> None:
            while not over.wait(POLL_S):
                self.show()
                if live:
                    live.update(Text(self.running(), style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)

        thread = threading.Thread(target=look, daemon=True)
        with live or nullcontext():
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
        self.show()

    def running(self) -> str:
        """The jobs under way, by name."""
        names = [printable(self.names[job.number]) for job in self.ledger.jobs() if job.status == "running"]
        return f"running: {', '.join(names)}" if names else "starting"

    def interrupted(self) -> None:
        jobs = self.ledger.jobs()
        done = sum(job.status == "finished" for job in jobs)
        say(
            f"{done} of {counted(len(jobs), 'job')} finished; the same command again skips them and goes on with the "
            "others"
        )


def say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def kind(name: str) -> str:
    """A job's name without its seeds: jobs of a kind take about as long."""
    return re.sub(r"(^| )(dataset\.)?seed=\S+", "", name).strip()


def outcome(ledger: Ledger, job: Job) -> str:
    """What an ended job came to, in words."""
    took = f" after {duration(job.seconds)}" if job.seconds is not None else ""
    if job.status == "failed":
        return f"failed{took}: {job.error}"
    return f"{result_in_words(ledger.place(job))}, {'was there' if job.reused else duration(job.seconds or 0)}"


def result_in_words(folder: Path | None) -> str:
    """The headline of a run's result, or that there is none."""
    if folder is None:
        return "no result"
    try:
        return headline(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, StopIteration):
        return "no result"


def finish(ledger: Ledger, names: Mapping[int, str]) -> tuple[int, str] | None:
    """Show the table over the finished jobs, and write it as a page. The exit code and what to say where any failed."""
    jobs, where = ledger.jobs(), shlex.quote(str(ledger.sweep))
    found = compare(records(ledger))
    if found:
        compare_tables.show(found, Console(highlight=False))
        page = ledger.sweep / PAGE
        folders.write(page, compare_tables.as_page(found, page, f"sigexp compare {where}"))
        say(f"{page}; the same table again: sigexp compare {where}")
    failed = [job for job in jobs if job.status == "failed"]
    if not failed:
        return None
    left = sum(not job.ended for job in jobs)
    more = f"; {left} not begun (sweep.on_error=stop)" if left else ""
    lines = [f"  {names[job.number]}: {job.error}{log_of(ledger, job)}" for job in failed]
    first = f"{len(failed)} of {counted(len(jobs), 'job')} failed{more}; the same command again runs them once more"
    return next((job.code for job in failed if job.code), 1), "\n".join([first, *map(printable_line, lines)])


def printable_line(line: str) -> str:
    return f"  {printable(line)}"


def log_of(ledger: Ledger, job: Job) -> str:
    """Where the log of a failed job lies."""
    folder = ledger.place(job)
    path = folder / "run.log" if folder else ledger.sweep / f"job-{job.number}.log"
    return f" ({path})" if path.is_file() else ""


def records(ledger: Ledger) -> list[Record]:
    """The results of a sweep's finished jobs, each run once."""
    found: dict[Path, Record] = {}
    for job in ledger.jobs():
        folder = ledger.place(job)
        if job.status == "finished" and folder is not None and folder not in found:
            try:
                found[folder] = read(folder)
            except Unreadable as error:
                say(str(error))
    return list(found.values())
