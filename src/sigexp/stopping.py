"""Signals that ask a run to end: SIGINT, SIGTERM, SIGUSR1.

Where nothing is being trained they end it at once, as exceptions. In training they are noted, and the search ends
between two steps, after saving. Nothing is written by a signal's handler itself, which could interrupt the writing of
the same file.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
PATIENCE_S = 7.0  # for the step to finish
SHARED: ContextVar["Request | None"] = ContextVar("SHARED", default=None)  # of runs that take turns


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGUSR1, raised where the main thread is; SIGINT raises KeyboardInterrupt itself."""


def install() -> None:
    """Let SIGTERM and SIGUSR1 raise `Interrupted`; of the command line's process."""

    def terminate(*_: object) -> None:
        raise Interrupted

    for name in NAMES[1:]:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), terminate)


class Request:
    """Whether a signal came, `raise_noted` what it would have raised at once."""

    def __init__(self, patience: float = PATIENCE_S) -> None:
        self.patience = patience
        self.noted: tuple[int, FrameType | None] | None = None
        self.before: dict[int, signal._HANDLER] = {}

    def __bool__(self) -> bool:
        return self.noted is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is not None:
            if number == signal.SIGINT:
                say("\nsigexp: left at once; `sigexp resume` goes on from the last checkpoint\n")
                os._exit(130)
            return
        self.noted = number, frame
        say("\nsigexp: the step is finished and saved; Ctrl-C again leaves at once\n")
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: self.raise_noted())
            signal.setitimer(signal.ITIMER_REAL, self.patience)

    def raise_noted(self, said: str = "") -> None:
        """Raise what the signal would have raised, and what is `said` of it; nothing where none came."""
        if self.noted is None:
            return
        number, frame = self.noted
        handler = self.before[number]
        try:
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt  # a handler of the user's own that raises nothing
        except KeyboardInterrupt as stop:
            stop.args = (said,) if said else ()
            raise


def say(text: str) -> None:
    """By the system's call, because a handler may interrupt `print`."""
    with suppress(OSError):
        os.write(2, text.encode())


@contextmanager
def deferred(patience: float = PATIENCE_S) -> Iterator[Request]:
    """Note signals instead of raising, in the main thread; those that are ignored, or kill, stay as they are.

    patience: seconds for what ends after one was noted. In a run that takes turns with others the request is theirs.
    """
    if (shared := SHARED.get()) is not None:
        yield shared
        return
    request = Request(patience)
    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and callable(signal.getsignal(number)):
                request.before[number] = signal.signal(number, request.note)
    try:
        yield request
    finally:
        if request and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for number, handler in request.before.items():
            signal.signal(number, handler)
