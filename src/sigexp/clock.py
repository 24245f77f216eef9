"""The seconds that a run takes: the wall clock, or, of a run that shares its process with others, its own share.

A context variable, because runs that take turns have a thread each (fusing.py).
"""

import time
from collections.abc import Callable
from contextvars import ContextVar

CLOCK: ContextVar[Callable[[], float]] = ContextVar("CLOCK", default=time.perf_counter)


def seconds() -> float:
    """Of which differences mean something."""
    return CLOCK.get()()
