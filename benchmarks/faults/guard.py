"""A child process in which nothing may happen but reading: what it tries is seen by Python's audit events, and stopped.

A child is forked for a list of calls, so that it has everything imported that they need; the hook is installed in it
and ends with it. See https://docs.python.org/3/library/audit_events.html.
"""

import contextlib
import io
import json
import math
import os
import resource
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

FORBIDDEN = (
    "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "os.forkpty", "os.startfile", "pty.spawn",
    "subprocess.Popen", "socket.", "pickle.find_class", "webbrowser.open", "ftplib.", "urllib.", "smtplib.",
)  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "os.chown", "os.utime", "shutil.")  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SECONDS = 60  # of processor time that a child may take
STILL_S = 120  # of the clock, without an outcome
BYTES = 3 * 2**30  # of memory


class Outcome(NamedTuple):
    """What came of a call: its exit code (None: it did not end), what it printed, what it tried, memory it grew by."""

    code: int | None
    out: str
    err: str
    tried: list[str]
    grown_bytes: int


class Task(NamedTuple):
    """A call that gives an exit code, the folder it is carried out in, where it may write, what it may not read."""

    call: Callable[[], int]
    where: Path
    writable: Sequence[Path]
    secret: Path


class Guard:
    """An audit hook: `tried` are the forbidden things that were attempted, each of which is stopped."""

    def __init__(self) -> None:
        self.writable, self.secret, self.tried, self.busy = list[str](), os.devnull, list[str](), False
        places = (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), Path(__file__).parents[2], "/usr/lib")
        self.code = [os.path.realpath(place) for place in places]

    def begin(self, task: Task) -> None:
        self.busy = True
        self.writable = [os.path.realpath(path) for path in task.writable]
        self.secret, self.tried, self.busy = os.path.realpath(task.secret), [], False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy:
            return
        self.busy = True
        try:
            wrong = self.wrong(event, args)
        finally:
            self.busy = False
        if wrong:
            self.tried.append(wrong)
            raise PermissionError(f"stopped: {wrong}")

    def wrong(self, event: str, args: tuple[Any, ...]) -> str:
        """What is forbidden about an event, '' for nothing."""
        if event.startswith(FORBIDDEN) and event != "socket.gethostname":
            return f"{event} {str(args)[:100]}"
        if event == "open" and isinstance(args[0], str | bytes):
            path, flags = os.path.realpath(os.fsdecode(args[0])), args[2] or 0
            if path.startswith(self.secret) and not flags & os.O_NOFOLLOW:
                return f"read {path}"
            own = (os.devnull, f"/proc/{os.getpid()}/clear_refs")  # the latter starts the count of peak memory anew
            if flags & WRITING and path not in own and not inside(path, self.writable):
                return f"write {path}"
        if event.startswith(CHANGES):
            whole = event.startswith(("os.truncate", "os.ch", "os.utime"))  # others act on a link itself
            paths = [resolved(os.fsdecode(arg), whole) for arg in args[:2] if isinstance(arg, str | bytes)]
            return next((f"{event} {path}" for path in paths if not inside(path, self.writable)), "")
        if event == "ctypes.dlopen" and args[0] and os.path.isabs(str(args[0])):
            return "" if inside(os.path.realpath(str(args[0])), self.code) else f"{event} {args[0]}"
        if event == "exec":
            name = getattr(args[0], "co_filename", "")
            strange = os.path.isfile(name) and not inside(os.path.realpath(name), self.code)
            return f"run {name}" if strange else ""
        return ""


def resolved(path: str, whole: bool) -> str:
    """A path without links, its last part left as it is unless `whole`."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.realpath(path) if whole else os.path.join(os.path.realpath(folder), name)


def inside(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(f"{place}{os.sep}") for place in places)


def watched(tasks: Sequence[Task], *, trusted: bool = False) -> list[Outcome]:
    """Carry out tasks in a child, one after the other. Where one ends the child, others go on in another.

    trusted: nothing is watched.
    """
    found: list[Outcome] = []
    while len(found) < len(tasks):
        left = tasks[len(found) :]
        with tempfile.TemporaryFile() as file:
            child = os.fork()
            if child == 0:
                in_child(left, file, trusted)
            wait(child, file)
            file.seek(0)
            done = [Outcome(*json.loads(line)) for line in file.read().splitlines()]
        found += done if len(done) == len(left) else [*done, Outcome(None, "", "the process ended", [], 0)]
    return found


def wait(child: int, file: IO[bytes]) -> None:
    """Until a child has ended; one that says nothing for a long time is ended."""
    size, since = 0, time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
        if os.fstat(file.fileno()).st_size != size:
            size, since = os.fstat(file.fileno()).st_size, time.monotonic()
        if time.monotonic() - since > STILL_S:
            os.kill(child, signal.SIGKILL)
            since = math.inf


def in_child(tasks: Sequence[Task], file: IO[bytes], trusted: bool) -> NoReturn:
    """The child's part: a line of JSON for each outcome."""
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
        guard = Guard()
        if not trusted:
            sys.addaudithook(guard)
        for task in tasks:
            spent = resource.getrusage(resource.RUSAGE_SELF)
            most = int(spent.ru_utime + spent.ru_stime) + SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
            guard.begin(task)
            os.chdir(task.where)
            file.write(json.dumps(one(task.call, guard)).encode() + b"\n")
            file.flush()
    finally:
        os._exit(0)


def one(call: Callable[[], int], guard: Guard) -> Outcome:
    """A call's outcome; an exception is told as the code -1."""
    out, err = io.StringIO(), io.StringIO()
    before = peak()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: int = call()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = -1
    return Outcome(code, out.getvalue(), err.getvalue(), guard.tried, peak() - before)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
