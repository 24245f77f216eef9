"""A cluster of Ray: one that runs, named by `RAY_ADDRESS`, or one of this process alone, that ends with it.

Ray reports no usage, shows no dashboard, prints nothing, and leaves the signals to sigexp.
"""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sigexp import machine
from sigexp.population.actors import Actor, Carrier, Package, travelling
from sigexp.population.crew import WorkerLost
from sigexp.problem import Batch
from sigexp.processes import search_path

log = logging.getLogger("sigexp")
TIMEOUT = "SIGEXP_RAY_TIMEOUT"  # in the environment: seconds to wait for cores or GPUs, as where a cluster grows
WAIT_S, START_S, REACH_S = 60.0, 2.0, 5.0  # for those; besides, for each actor to start; for an address to answer
STORE_BYTES, STORE_SHARE = 200_000_000, 0.3  # least size of the object store of our own; most, of the free memory
COPIES = 10  # of the training set that it has room for: statistics of a linear model are up to eight times as large
LONGEST_FOLDER = 40  # characters; Ray adds some 60 to it for its sockets, whose names end at 107
SETTLE_S = 1.0  # after a loss: the actors of a node that is lost answer for a moment
RECENT = 2  # batches that are kept in the store beside what is learned from
OWN = "Ray on this machine"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class Cluster:
    """Where actors are had from; `opened` makes one."""

    def __init__(self, device: torch.device, name: str) -> None:
        """device: of the members. name: of the cluster, for messages."""
        self.kind, self.name = ("GPU" if device.type == "cuda" else "CPU"), name
        self.stored: dict[int, tuple[Batch, list[Any], bool]] = {}  # what lies in the object store, by its id

    def slots(self) -> int:
        """Actors of one core or GPU that could be had now, at least 1."""
        import ray

        return max(1, int(ray.available_resources().get(self.kind, 0)))

    def put(self, batch: Batch, keep: bool) -> list[Any]:
        """References to a batch in the object store. keep: as long as the cluster; others make room for the next."""
        import ray

        if id(batch) not in self.stored:
            others = [key for key, (_, _, kept) in self.stored.items() if not kept]
            for key in others[: len(others) + 1 - RECENT]:
                del self.stored[key]
            refs = [ray.put(part.detach().cpu().contiguous().numpy()) for part in batch]
            self.stored[id(batch)] = batch, refs, keep
        return self.stored[id(batch)][1]

    def crews(
        self, packages: Callable[[int], Sequence[Package]], most: int, before: Sequence[Actor], tune_allocator: bool
    ) -> list[Actor]:
        """Actors that carry a population: those of `before` that live, and new ones up to `most`.

        packages: what every one of so many carries. At a beginning all have to come; in place of lost ones, as many as
        there are. Raises ValueError, or WorkerLost, where they do not.
        """
        if before:
            time.sleep(SETTLE_S)
        living = [actor for actor in before if actor.alive()]
        for actor in before:
            if actor not in living:
                actor.close(at_once=True)
        new = self._hired(most, len(living), packages(1)[0]["plan"].threads, again=bool(before))
        actors = living + new
        if not actors:
            raise WorkerLost("every actor of Ray was lost, and none could be started in their place")
        log.info("%s: %d actors of %d, %d of them new", self.name, len(actors), most, len(new))
        for actor, package in zip(actors, packages(len(actors)), strict=True):
            actor.begin(travelling(package, tune_allocator=tune_allocator))
        for actor in actors:
            actor.begun()
        return actors

    def _hired(self, most: int, there: int, cores: int, *, again: bool) -> list[Actor]:
        """New actors up to `most`. again: in place of lost ones, where fewer will do; else all or a ValueError."""
        import ray

        gpus = {"num_gpus": 1} if self.kind == "GPU" else {}
        kind: Any = ray.remote(Carrier).options(
            num_cpus=cores, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **gpus
        )
        short = self._short(most, cores)  # as it is before there are any
        handles = [kind.remote() for _ in range(most - there)]
        try:
            started = {handle.__ray_ready__.remote(): handle for handle in handles}
            ready = self._wait(list(started), None if again else short, most * (cores if self.kind == "CPU" else 1))
            if len(ready) < len(handles) and not again:
                raise ValueError(short)
        except BaseException:
            for handle in handles:
                ray.kill(handle)
            raise
        for ref in started.keys() - set(ready):
            ray.kill(started[ref])
        return [Actor(started[ref], self.put) for ref in ready]

    def _wait(self, starting: Sequence[Any], short: str | None, needed: int) -> list[Any]:
        """Those of the starting actors that are there in time.

        short: that the cluster has less than is needed; None in place of lost ones, where fewer will do. needed: cores
        or GPUs, of all actors together. Raises ValueError for an actor that cannot start.
        """
        import ray
        from ray.exceptions import RayError

        began, told = time.monotonic(), False
        limit = seconds_to_wait() + START_S * len(starting)
        waiting, ready = list(starting), []
        while waiting and (left := limit - (time.monotonic() - began)) > 0:
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=min(left, 2.0))
            for ref in done:
                try:
                    ray.get(ref)
                    ready.append(ref)
                except RayError as error:
                    if short is not None:
                        raise ValueError(f"trainer.engine=ray: an actor cannot start: {reason(error)}") from error
            if waiting and not told and self._total() < needed:
                if short is None or self.name == OWN:  # no more will come
                    break
                told = True
                log.warning("%s; waiting %.0f s for more", short.partition(";")[0], limit)
        return ready

    def _total(self) -> float:
        import ray

        return float(ray.cluster_resources().get(self.kind, 0))

    def _short(self, most: int, cores: int) -> str:
        """That the cluster has less than was asked for; and what to do."""
        import ray

        unit = "GPU" if self.kind == "GPU" else "core" if cores == 1 else f"{cores} cores"
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        free = ray.available_resources().get(self.kind, 0)
        return (
            f"trainer.processes={most}: an actor each with a {unit}, and {self.name} has {self._total():.0f} "
            f"{'GPUs' if self.kind == 'GPU' else 'cores'}, {free:.0f} of them free, on {nodes} node(s); ask for fewer, "
            f"or trainer.processes=auto ({TIMEOUT} is how many seconds are waited)"
        )


def reason(error: BaseException) -> str:
    """The end of what Ray says, in a line: its messages are long, and the cause comes last."""
    return " ".join(str(error).split())[-200:]


def seconds_to_wait() -> float:
    try:
        return max(0.0, float(os.environ[TIMEOUT]))
    except (KeyError, ValueError):
        return WAIT_S


@contextmanager
def opened(engine: str, device: torch.device, data_bytes: int) -> Iterator[Cluster | None]:
    """The cluster that a run trains on, or None with `trainer.engine=local`.

    device: of the members. data_bytes: of what they learn from. Raises ValueError where Ray is not installed, or no
    cluster answers.
    """
    if engine != "ray":
        yield None
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"trainer.engine=ray: an actor has a core or a CUDA GPU, not device={device}")
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    import ray

    if ray.is_initialized():  # in a notebook, say; it is not ours to end
        yield Cluster(device, "the Ray that is connected to")
        return
    address = os.environ.get("RAY_ADDRESS", "")
    folder, mode = None, os.environ.get("RAY_AUTH_MODE")
    try:
        silence()
        with handlers_kept():
            if address and address != "local":
                connect(address)
            else:
                folder = tempfile.mkdtemp(prefix="sigexp-ray-", dir=None if len(tempfile.gettempdir()) < 20 else "/tmp")
                start(device, data_bytes, folder)
        yield Cluster(device, f"the Ray cluster {address}" if folder is None else OWN)
    finally:
        ray.shutdown()
        if mode is None:
            os.environ.pop("RAY_AUTH_MODE", None)  # that Ray sets for a cluster of its own
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def connect(address: str) -> None:
    """To a cluster that runs; raises ValueError where none answers."""
    import ray

    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
        ray.init(address=address, configure_logging=False, log_to_driver=False)
    except Exception as error:  # of many kinds: no cluster, another version, a wrong token
        raise ValueError(f"RAY_ADDRESS={address}: cannot connect to a Ray cluster: {reason(error)}") from error


def start(device: torch.device, data_bytes: int, folder: str) -> None:
    """A cluster of this machine, for this process alone. folder: of Ray's sockets and logs."""
    import ray

    most = int(STORE_SHARE * machine.free_memory_bytes("cpu"))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = search_path()  # of the actors
    try:
        ray.init(
            address="local",
            num_cpus=machine.cores(),
            num_gpus=torch.cuda.device_count() if device.type == "cuda" else 0,
            object_store_memory=max(STORE_BYTES, min(STORE_BYTES + COPIES * data_bytes, most)),
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
    except Exception as error:
        raise ValueError(f"trainer.engine=ray: Ray cannot start on this machine: {reason(error)}") from error
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def silence() -> None:
    """Nothing of Ray's on the terminal; for what its daemons say of a lost actor it has no switch."""
    from ray._private import worker

    logging.getLogger("ray").setLevel(logging.ERROR)
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, **_: log.debug("Ray: %s", data)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Signals' handlers stay what they were; Ray would end the process at SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
