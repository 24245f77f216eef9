"""Figures that processes of their own draw, while other runs of a group go on."""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import ModuleType

from sigexp import machine, sharing

log = logging.getLogger("sigexp")
Figures = Mapping[str, Callable[[], bytes]]  # name -> what draws it as PNG; pickled, so a partial of a function


class Artists:
    """Processes that draw. To be made in the main thread: they end with the thread that started them."""

    def __init__(self, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # torch's threads would not survive a fork
        self.pool = ProcessPoolExecutor(count, spawn, initializer=begin, initargs=(os.getpid(),))
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:  # spawn would run the main script again in each, for functions that are not there
            for _ in range(count):  # start them now: they load for two seconds
                self.pool.submit(int)
        finally:
            sys.modules["__main__"] = main

    def draw(self, figure: Callable[[], bytes]) -> "Future[bytes]":
        """Raises whatever `pickle` does."""
        return self.pool.submit(drawn_from, pickle.dumps(figure))

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def begin(parent: int) -> None:
    machine.end_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # they can reach the group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    machine.configure_torch(1, deterministic=True)


def drawn_from(package: bytes) -> bytes:
    png: bytes = pickle.loads(package)()
    return png


def drawn(figures: Figures) -> dict[str, bytes]:
    """Figures by name: here, or side by side with what other runs do, where there are processes for it."""
    shared = sharing.SHARED.get()
    if shared is None or shared.artists is None:
        return {name: figure() for name, figure in figures.items()}
    try:
        waited = {name: shared.artists.draw(figure) for name, figure in figures.items()}
        shared.wait(list(waited.values()))
        return {name: future.result() for name, future in waited.items()}
    except (BrokenProcessPool, pickle.PickleError, AttributeError, TypeError) as error:
        log.debug("figures are drawn here: %s", error)
        return {name: figure() for name, figure in figures.items()}
