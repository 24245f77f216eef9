"""Processes beside this one: fresh interpreters, not forks, in which torch's threads would be missing (parting.py says
where a fork will do).

They are talked to by a pipe, and end with this process, in whatever way it ends. `side_by_side` has several jobs done
at once, each with its share of the cores.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from sigexp import machine, stopping

# Before torch is loaded, which takes seconds, the process is bound to this one, and the allocator is set.
COMMAND = """\
from sigexp import garbage, machine
garbage.later()
machine.end_with_parent({parent})
{tune} and machine.tune_allocator()
import {module} as m
m.serve({descriptor})"""
SECONDS_TO_SAVE = stopping.PATIENCE_S + 5


def search_path() -> str:
    """Where this process finds its modules, the user's own too, as PYTHONPATH."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def started(
    module: str, *, tune_allocator: bool = False, environment: Mapping[str, str] | None = None
) -> tuple[Connection, subprocess.Popen[bytes]]:
    """A process in which `module.serve` is called with the number of its end of the pipe, and our end."""
    ours, theirs = Pipe()
    command = COMMAND.format(parent=os.getpid(), tune=tune_allocator, module=module, descriptor=theirs.fileno())
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": search_path(), **(environment or {})},
    )
    theirs.close()
    return ours, process


class Lost(RuntimeError):
    """A process ended by itself, and with it what it was at."""


class Helper:
    """A process that calls one function again and again."""

    def __init__(self, function: Callable[[Any], Any], environment: Mapping[str, str]) -> None:
        self.connection, self.process = started(__name__, environment=environment)
        self.job: Any = None
        self.connection.send_bytes(pickle.dumps(function))

    def begin(self, job: Any) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # `answer` says that it has ended
            self.connection.send(job)

    def answer(self) -> Any:
        """What the function returned; or `Lost`."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return Lost(f"its process ended without a word (status {self.process.wait()}); killed, or out of memory")

    def ask_to_end(self) -> None:
        """At once where it waits for a job; where it is at one, that may save what it has."""
        self.connection.close()
        if self.job is not None:
            self.process.terminate()

    def ended(self) -> None:
        """Wait for its end, or see to it."""
        try:
            self.process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.process.kill()
            self.process.wait()


def side_by_side(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    at_once: int,
    choose: Callable[[Sequence[Any]], Any],
    begins: Callable[[Any], None],
) -> Generator[tuple[Any, Any], None, None]:
    """Every job with what `function(job)` returns, in the order in which they end; `Lost` where its process did.

    at_once: how many are under way at a time. choose: which of those that are left is next. begins: is told.
    """
    share = machine.share(at_once)
    left, helpers = list(jobs), list[Helper]()
    try:
        while left or any(helper.job is not None for helper in helpers):
            while left and sum(helper.job is not None for helper in helpers) < at_once:
                job = choose(left)
                left.remove(job)
                helper = next((one for one in helpers if one.job is None), None)
                if helper is None:
                    helper = Helper(function, share)
                    helpers.append(helper)
                begins(job)
                helper.begin(job)
            ready = wait([helper.connection for helper in helpers if helper.job is not None])
            for helper in [one for one in helpers if one.connection in ready]:
                answer, job = helper.answer(), helper.job
                helper.job = None
                if isinstance(answer, Lost):
                    helpers.remove(helper)
                yield job, answer
    finally:
        for helper in helpers:
            helper.ask_to_end()
        for helper in helpers:
            helper.ended()


def serve(descriptor: int) -> None:
    """The main function of a `Helper`. Of signals it hears SIGTERM alone: others can reach the whole group, and the
    main process decides."""
    stopping.install()
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    connection = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        function = pickle.loads(connection.recv_bytes())
        while True:
            connection.send(function(connection.recv()))
            machine.release_memory()  # the next job follows in this process
