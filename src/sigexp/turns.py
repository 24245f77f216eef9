"""A job of a group in a thread of its own, which runs while the main thread waits for it (fusing.py)."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar

import torch

from sigexp import machine, parting
from sigexp.population.fused import Call

T = TypeVar("T")
log = logging.getLogger("sigexp")


class Turn:
    """A job in a thread of its own, which runs while `take` waits."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.values: Mapping[ContextVar[Any], Any] = {}  # of context variables, within the thread
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.call: Call | None = None  # what it waits for
        self.ending: Callable[[], Any] | None = None  # what is left of it, once it has trained and waits
        self.ended: parting.Done | parting.Failed | None = None  # that, where it was to be done in another process
        self.error: BaseException | None = None
        self.running = self.waits = self.meets = self.complete = self.over = self.abandoned = False
        self.spent, self.since = 0.0, 0.0
        self.handlers: list[logging.Handler] = []
        self.random = torch.get_rng_state()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        for variable, value in self.values.items():
            variable.set(value)
        try:
            self.work()
        except BaseException as error:
            self.error = error
        self.over = True
        self.back.release()
        if not self.abandoned:
            self.go.acquire()  # no thread is on its way out when others are forked (parting.py)

    def take(self) -> None:
        """Let the job go on until it asks for something, or has ended."""
        with self.own():
            if self.thread.ident is None:
                self.thread.start()
            else:
                self.go.release()
            self.back.acquire()

    @contextmanager
    def own(self) -> Iterator[None]:
        """What is the process's own, the log's handlers and random numbers, is the job's within; its clock runs."""
        others, random = list(log.handlers), torch.get_rng_state()
        log.handlers[:] = self.handlers
        torch.set_rng_state(self.random)
        self.running, self.since = True, time.perf_counter()
        try:
            yield
        finally:
            self.running = False
            self.spent += time.perf_counter() - self.since
            self.handlers, self.random = list(log.handlers), torch.get_rng_state()
            log.handlers[:] = others
            torch.set_rng_state(random)

    def ask(self, call: Call) -> Any:
        """In the job's thread: wait until a call has been carried out."""
        self.call = call
        self._wait()
        self.call = None
        if call.error is not None:
            raise call.error
        return call.answer

    def meet(self) -> None:
        """In the job's thread: wait until all others have begun."""
        self.meets = True
        self._wait()
        self.meets = False

    def end(self, rest: Callable[[], T]) -> T:
        """In the job's thread: wait until what is left of it may be done, here, or was in another process."""
        self.ending = partial(copy_context().run, rest)
        self._wait()
        self.ending = None
        if isinstance(self.ended, parting.Done):
            found: T = self.ended.value
            return found
        if self.ended is not None:
            log.warning("the run was to end in a process beside the sweep's (%s); it ends here", self.ended.reason)
        value = rest()
        self.complete = True
        return value

    def end_apart(self) -> tuple[Any, float]:
        """In a fork: what is left of the job, and the seconds that it took."""
        assert self.ending is not None
        machine.reset_peak_memory()
        before = self.spent
        with self.own():
            value = self.ending()
        return value, self.spent - before

    def _wait(self) -> None:
        if self.abandoned:
            raise KeyboardInterrupt
        self.waits = True
        self.back.release()
        self.go.acquire()
        self.waits = False
        if self.abandoned:
            raise KeyboardInterrupt

    def let_go(self) -> None:
        """Have the thread end, where the job has ended or waits, and is given up. One that runs is left alone, as after
        an interrupt: it may be at something that takes long."""
        self.abandoned = True
        if self.waits:
            self.take()
        if self.over:
            self.go.release()
            self.thread.join()

    def seconds(self) -> float:
        """The job's own share of the time."""
        return self.spent + (time.perf_counter() - self.since if self.running else 0.0)
