"""The end of a run in a fork of this process, so that the runs of a group end side by side.

A fork has all that the run has, at the cost of some milliseconds, but of the threads the one alone that forked. So it
computes in one thread, and is made only where that is safe: on Linux, with a torch that has no GPU to lose. This
process keeps the run until the fork has ended it, and ends it itself where the fork did not.
"""

import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sigexp import machine, stopping

UNKNOWN = -1  # status of a process of which the system does not say how it ended


def possible(config: Mapping[str, Any]) -> bool:
    """Whether forks of this process can compute beside each other. Not where dataset or model is the user's own: what
    it holds, such as an open file, forks would share."""
    own = all(str(config[part]["_target_"]).startswith("sigexp.") for part in ("dataset", "model"))
    return own and sys.platform == "linux" and machine.cores() > 1 and not torch.cuda.is_available()


@dataclass
class Fork:
    """Another process, until it has ended; it is killed where that takes longer than `longest` seconds."""

    pid: int
    longest: float
    began: float = field(default_factory=time.monotonic)
    status: int | None = None

    def ended(self) -> bool:
        if self.status is None:
            try:
                found, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # where the system was told to forget them
                found, status = self.pid, UNKNOWN
            if found:
                self.status = status
            elif time.monotonic() - self.began > self.longest:
                self.kill()
        return self.status is not None

    def kill(self) -> None:
        if self.status is None:
            self.status = UNKNOWN
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                _, self.status = os.waitpid(self.pid, 0)


def wait_for_end(thread: threading.Thread) -> None:
    """Until the system has no more of a thread than its memory: on its way out it holds a lock of MKL's, which a fork
    made then would wait for without end."""
    thread.join()
    place, until = f"/proc/self/task/{thread.native_id}", time.monotonic() + 1
    while os.path.exists(place) and time.monotonic() < until:
        time.sleep(0.0002)


def fork(longest: float, without: Sequence[Tensor] = ()) -> Fork | None:
    """The other process in this one, None in the other one. Raises OSError where the system has no room for it.

    without: what the other one does not need, and cannot have.
    """
    parent = os.getpid()
    blocks = [(storage.data_ptr(), storage.nbytes()) for tensor in without if (storage := tensor.untyped_storage())]
    with warnings.catch_warnings(), machine.without(blocks):
        # Python's, of threads that may hold locks: all of them wait.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return Fork(pid, longest)
    machine.end_with_parent(parent)
    for name in stopping.NAMES:  # which this process is told too, and it waits for the other one
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    gc.disable()  # it would write to all of the memory that both have, and there is no time for garbage
    torch.set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)  # no pool of threads
    return None
