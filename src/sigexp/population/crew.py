"""The processes that carry parts of a population, and how they are talked to.

A process (processes.py) gets the module, the loss and the state of its members by a pipe, and reads a fixed training
set from memory that all share. It ends when the pipe closes.
"""

import os
import pickle
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigexp import garbage, machine
from sigexp.population.population import Population
from sigexp.problem import Batch
from sigexp.processes import started


class Shared:
    """A batch in memory that other processes can map: a file in /dev/shm, where there is one, without a name soon."""

    def __init__(self, batch: Batch) -> None:
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.description = []
        for part in batch:
            handle, path = tempfile.mkstemp(prefix="sigexp-", dir=folder)
            os.close(handle)
            self.description.append((path, tuple(part.shape), part.dtype))
            mapped(self.description[-1]).copy_(part)

    def unlink(self) -> None:
        for path, _, _ in self.description:
            Path(path).unlink(missing_ok=True)


def mapped(description: tuple[str, tuple[int, ...], torch.dtype]) -> Tensor:
    path, shape, dtype = description
    return torch.from_file(path, shared=True, size=torch.Size(shape).numel(), dtype=dtype).view(shape)


class WorkerLost(RuntimeError):
    """A training process ended by itself; its members are gone."""


class Worker:
    """A process with a `Crew`; used like one."""

    def __init__(self, settings: Mapping[str, Any], tune_allocator: bool) -> None:
        deterministic = torch.are_deterministic_algorithms_enabled()
        package = pickle.dumps({**settings, "deterministic": deterministic})  # what cannot travel is refused here
        self.connection, self.process = started(__name__, tune_allocator=tune_allocator)
        self.connection.send_bytes(package)

    def send(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> None:
        try:
            self.connection.send_bytes(pickle.dumps(packed(list(calls)), protocol=pickle.HIGHEST_PROTOCOL))
        except (BrokenPipeError, ConnectionResetError):
            self._died()

    def receive(self) -> Any:
        try:
            kind, answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._died()
        if kind == "error":
            raise answer
        return unpacked(answer)

    def _died(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        raise WorkerLost(
            f"a training process ended with status {self.process.poll()}, perhaps for want of memory; "
            "trainer.processes=1 trains in one process"
        )

    def close(self, at_once: bool = False) -> int:
        """Its peak memory in bytes."""
        peak: Any = 0
        if at_once:
            self.process.kill()
        with suppress(Exception):
            self.send([("peak_memory_bytes", ())])
            peak = self.receive()[0]  # after an interrupt it may be the answer to an earlier call
        self.connection.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return peak if isinstance(peak, int) else 0


def packed(value: Any) -> Any:
    """Tensors as arrays, because torch pickles a tensor ten times as slowly."""
    if isinstance(value, Tensor):
        return ("tensor", value.detach().cpu().contiguous().numpy())
    if isinstance(value, dict):
        return {key: packed(part) for key, part in value.items()}
    if isinstance(value, Batch):
        return ("batch", [packed(part) for part in value])
    if isinstance(value, list | tuple):
        return ("list", [packed(part) for part in value])
    return ("value", value)


def unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unpacked(part) for key, part in value.items()}
    kind, content = value
    if kind == "tensor":  # Ray's are read-only
        return torch.from_numpy(content if content.flags.writeable else content.copy())
    if kind == "batch":
        return Batch(*(unpacked(part) for part in content))
    return [unpacked(part) for part in content] if kind == "list" else content


class Part:
    """Some members, with random numbers of their own."""

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        self.population = Population.of_settings(settings)
        self.random = torch.Generator().manual_seed(seed).get_state()

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            answer = getattr(self.population, method)(*arguments)
            self.random = torch.get_rng_state()
        return answer


class Crew:
    """The parts that one process carries, and the training set that it reads."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        others = {name: value for name, value in settings.items() if name != "seeds"}
        self.parts = [Part(others, seed) for seed in settings["seeds"]]
        self.data: Batch | None = None
        self.answers: list[Any] = []

    def send(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """The first call is for the first part, and so on; `attach` and `peak_memory_bytes` are for the crew."""
        self.answers = [self._call(part, *call) for part, call in zip(self.parts, calls, strict=False)]

    def receive(self) -> list[Any]:
        return self.answers

    def _call(self, part: Part, method: str, arguments: Sequence[Any]) -> Any:
        if method in ("attach", "peak_memory_bytes"):
            return getattr(self, method)(*arguments)
        if method == "advance":
            examples, part.population.schedule = arguments
            if isinstance(examples, Tensor):
                examples = self._learned_from(part.population, examples)
            return part.call("minibatch_losses", [examples])
        return part.call(method, arguments)

    def _learned_from(self, population: Population, index: Tensor) -> Batch:
        """What a part learns from, by the numbers of the examples."""
        assert self.data is not None
        index = index.to(population.device)
        if population.plan.way != "moments":
            return Batch(*(kept.index_select(0, index) for kept in self.data))
        if population.table is not self.data.inputs:
            population.learn_from(self.data)
        return Batch(index, index)

    def attach(self, data: Batch | Sequence[Any]) -> None:
        """What the parts learn from, or where it lies."""
        self.data = data if isinstance(data, Batch) else Batch(*(mapped(tuple(one)) for one in data))

    def peak_memory_bytes(self) -> int:
        return machine.peak_memory_bytes()


def serve(descriptor: int) -> None:
    """The main function of a process: answer calls until the pipe closes."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # they can reach the whole group; the main process decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    connection = Connection(descriptor)
    settings = pickle.loads(connection.recv_bytes())
    machine.configure_torch(settings["plan"].threads, deterministic=settings.pop("deterministic"))
    crew = Crew(settings)
    garbage.now()
    while True:
        try:
            calls = unpacked(pickle.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            return
        try:
            crew.send(calls)
            answer = ("answer", packed(crew.receive()))
        except Exception as error:
            error.add_note(f"in a training process: {traceback.format_exc()}")
            answer = ("error", error)
        with suppress(BrokenPipeError):
            connection.send_bytes(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
