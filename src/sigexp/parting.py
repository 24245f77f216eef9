"""Work in forks of this process, so that the runs of a group end side by side.

A fork has all that this process has, at the cost of some milliseconds, but of the threads the one alone that forked. So
it computes in one thread, and is made only where that is safe: on Linux, with a torch that has no GPU to lose, and
while no thread is on its way out, which may hold a lock of MKL's that the fork would wait for without end. This process
keeps what forks are at, and can do itself what they did not.
"""

import gc
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import torch
from torch import Tensor

from sigexp import machine, sharing, stopping


def possible(config: Mapping[str, Any]) -> bool:
    """Whether forks of this process can compute beside each other. Not where dataset or model is the user's own: what
    it holds, such as an open file, forks would share."""
    here = sys.platform == "linux" and machine.cores() > 1 and not torch.cuda.is_available()
    return here and sharing.packaged(config)


@dataclass
class Done:
    """What the work gave."""

    value: Any


@dataclass
class Failed:
    """Why it gave nothing."""

    reason: str


@dataclass
class Fork:
    """Another process, which does what it is told by a number, one at a time."""

    pid: int
    connection: Connection
    at: int = -1  # the number that it was told
    until: float = 0.0  # when that takes too long
    lost: bool = False  # it answers no more

    def begin(self, number: int, longest: float) -> None:
        self.at, self.until = number, time.monotonic() + longest
        with suppress(BrokenPipeError):  # `answer` says that it has ended
            self.connection.send(number)

    def answer(self) -> Done | Failed | None:
        """None while it is at it."""
        try:
            if self.connection.poll():
                found: Done | Failed = self.connection.recv()
                return found
        except (EOFError, OSError):  # where it was killed in the middle of an answer too
            self.kill()
            return Failed("its process ended without a word")
        if time.monotonic() < self.until:
            return None
        self.kill()
        return Failed("it took too long")

    def kill(self) -> None:
        self.lost = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def side_by_side(
    work: Callable[[int], Any], count: int, at_once: int, longest: float, without: Sequence[Tensor] = ()
) -> Generator[tuple[int, Done | Failed], None, None]:
    """Every number below `count`, and what `work` gives for it in a fork, in the order in which they end.

    longest: seconds that one may take. without: what forks do not need, and cannot have. Forks that are lost are made
    again, as many as there were.
    """
    forks, busy, left, failed = list[Fork](), list[Fork](), deque(range(count)), Failed("its processes are lost")

    def one_more() -> None:
        nonlocal failed
        try:
            forks.append(fork(work, without))
        except OSError as error:
            failed = Failed(str(error.strerror))
            return
        busy.append(forks[-1])
        busy[-1].begin(left.popleft(), longest)

    try:
        for _ in range(min(at_once, count)):
            one_more()
        while busy:
            wait([one.connection for one in busy], max(0.0, min(one.until for one in busy) - time.monotonic()))
            for one in list(busy):
                if (answer := one.answer()) is None:
                    continue
                number = one.at
                if left and not one.lost:
                    one.begin(left.popleft(), longest)
                else:
                    busy.remove(one)
                if left and one.lost and len(forks) < 2 * at_once:
                    one_more()
                yield number, answer
        for number in left:
            yield number, failed
    finally:
        for one in forks:
            one.connection.close()
            one.kill()
        for one in forks:
            with suppress(ChildProcessError):  # where the system was told to forget them
                os.waitpid(one.pid, 0)


def fork(work: Callable[[int], Any], without: Sequence[Tensor] = ()) -> Fork:
    """A process that waits for numbers. Raises OSError where the system has no room for it."""
    parent = os.getpid()
    blocks = [(storage.data_ptr(), storage.nbytes()) for tensor in without if (storage := tensor.untyped_storage())]
    ours, theirs = Pipe()
    with theirs:
        try:
            with warnings.catch_warnings(), machine.without(blocks):
                # Python's, of threads that may hold locks: all of them wait.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
            ours.close()
            raise
        if pid:
            return Fork(pid, ours)
        try:
            ours.close()
            _settle(parent)
            _serve(theirs, work)
        finally:
            os._exit(0)  # Python's own end is the parent's


def _settle(parent: int) -> None:
    machine.end_with_parent(parent)
    for name in stopping.NAMES:  # which this process is told too, and it waits for the other one
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    gc.freeze()  # a search for garbage would write to all of the memory that both have
    torch.set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)  # no pool of threads


def _serve(connection: Connection, work: Callable[[int], Any]) -> None:
    while True:
        number = connection.recv()
        try:
            connection.send(Done(work(number)))
        except BaseException as error:
            connection.send(Failed(f"{type(error).__name__}: {error}"))
