"""A population in parts that are computed apart from each other, and the processes that carry them.

How a population is divided is the plan's (`shards`), and a part's results do not depend on the others; so the number of
processes changes no result. A process is a fresh interpreter, not a fork, which torch's threads would not survive. It
gets the module, the loss and the state of its members by a pipe, and reads a fixed training set from memory that all
share. It ends when the pipe closes, also when the main process dies.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigexp import machine
from sigexp.population.feed import Feed
from sigexp.population.population import Population, State, join, take
from sigexp.problem import Batch

# The allocator is set before torch is loaded.
COMMAND = "from sigexp import machine; {tune} and machine.tune_allocator(); import {module} as m; m.serve({descriptor})"


class Shards:
    """A population that is carried in parts; used like the `Population` it is made of.

    processes: at most one for every shard; with 1 this process carries all of them, one after the other.
    seed: of what draws while it trains, such as dropout. tune_allocator: of the processes, as `machine` has it.
    """

    def __init__(self, whole: Population, processes: int = 1, *, seed: int = 0, tune_allocator: bool = False) -> None:
        self.whole = whole  # its state is that of the last `load_state`, brought up to date where it is read
        self.plan, self.device, self.template = whole.plan, whole.device, whole.template
        self.lr_scale = 1.0
        self.peak_memory_bytes = 0
        self._remote = processes > 1
        self._shared: Shared | None = None
        self._parts: list[Carried | Worker] = []
        try:
            for number in range(whole.plan.shards):
                settings = {**whole.settings(), "seed": seed * 1000 + number}
                if self._remote:
                    settings["deterministic"] = torch.are_deterministic_algorithms_enabled()
                self._parts.append(Worker(settings, tune_allocator) if self._remote else Carried(settings))
            self._threads = torch.get_num_threads()
            if not self._remote:
                torch.set_num_threads(whole.plan.threads)
            self.load_state(whole.state())
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def hparams(self) -> dict[str, Tensor]:
        return self.whole.hparams

    def _active(self) -> list[tuple["Carried | Worker", Tensor]]:
        """Every part that has members, and which."""
        rows = torch.arange(len(self)).chunk(len(self._parts))
        return list(zip(self._parts, rows, strict=False))

    def _ask(self, method: str, *arguments: Sequence[Any]) -> list[Any]:
        """Call a method of every active part, with its own argument of each sequence; their answers."""
        parts = [part for part, _ in self._active()]
        rows = list(zip(*arguments, strict=True)) or [()] * len(parts)
        for part, row in zip(parts, rows, strict=True):
            part.send(method, *row)
        return [part.receive() for part in parts]

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.whole.load_state(state)
        self._ask("load_state", [take(state, rows) for _, rows in self._active()])

    def set_hparams(self, hparams: Mapping[str, Tensor]) -> None:
        self.whole.set_hparams(hparams)
        self._ask("set_hparams", [take(hparams, rows) for _, rows in self._active()])

    def state(self) -> State:
        return join(*self._ask("state"))

    def copy(self, parents: Tensor) -> None:
        self.load_state(take(self.state(), parents))

    def drop_pending(self) -> None:
        self._ask("drop_pending")

    def advance(self, feed: Feed, position: int, count: int) -> list[Tensor]:
        parts = self._active()
        self._ask("scale_lr", [self.lr_scale] * len(parts))
        if not self._remote or feed.size is None:
            examples = [self.whole.examples(feed, position, count)] * len(parts)
            return [losses for part in self._ask("minibatch_losses", examples) for losses in part]
        if self._shared is None:
            self._shared = Shared(feed.data())
            self._ask_all("attach", self._shared.description)
            self._shared.unlink()
        answers = self._ask("advance_by_index", [feed.indices(position, count)] * len(parts))
        return [losses for part in answers for losses in part]

    def _ask_all(self, method: str, argument: Any) -> None:
        for part in self._parts:
            part.send(method, argument)
        for part in self._parts:
            part.receive()

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        return join(*self._ask("evaluate", [batch] * len(self._active())))

    def member(self, p: int) -> nn.Module:
        self.whole.load_state(self.state())
        return self.whole.member(p)

    def close(self) -> None:
        """End the processes; their members are gone with them."""
        for part in self._parts:
            if isinstance(part, Worker):
                self.peak_memory_bytes += part.close()
        if not self._remote and self._parts:
            torch.set_num_threads(self._threads)
        self._parts = []


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


class Worker:
    """A process that carries one part; `send` and `receive` are calls of its population's methods."""

    def __init__(self, settings: Mapping[str, Any], tune_allocator: bool) -> None:
        package = pickle.dumps(settings)  # raises here, not in the process, what cannot travel
        self.connection, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                COMMAND.format(tune=tune_allocator, module=__name__, descriptor=theirs.fileno()),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self.connection.send_bytes(package)

    def send(self, method: str, *arguments: Any) -> None:
        try:
            self.connection.send_bytes(pickle.dumps((method, _packed(arguments)), protocol=pickle.HIGHEST_PROTOCOL))
        except (BrokenPipeError, ConnectionResetError):
            self._died()

    def receive(self) -> Any:
        try:
            kind, answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._died()
        if kind == "error":
            raise answer
        return _unpacked(answer)

    def _died(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        raise RuntimeError(
            f"a training process ended with status {self.process.poll()}, perhaps for want of memory; "
            "trainer.processes=1 trains in one process"
        )

    def close(self) -> int:
        """Its peak memory in bytes."""
        peak = 0
        with suppress(Exception):
            self.send("peak_memory_bytes")
            peak = self.receive()
        self.connection.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return peak


def _packed(value: Any) -> Any:
    """Tensors as arrays, because torch pickles a tensor ten times as slowly."""
    if isinstance(value, Tensor):
        return ("tensor", value.detach().cpu().contiguous().numpy())
    if isinstance(value, dict):
        return {key: _packed(part) for key, part in value.items()}
    if isinstance(value, Batch):
        return ("batch", [_packed(part) for part in value])
    if isinstance(value, list | tuple):
        return ("list", [_packed(part) for part in value])
    return ("value", value)


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unpacked(part) for key, part in value.items()}
    kind, content = value
    if kind == "tensor":
        return torch.from_numpy(content)
    if kind == "batch":
        return Batch(*(_unpacked(part) for part in content))
    return [_unpacked(part) for part in content] if kind == "list" else content


class Carried:
    """One part: a population with random numbers of its own, and the training set in shared memory."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.population = Population.of_settings({k: v for k, v in settings.items() if k != "seed"})
        self.data: Batch | None = None
        self.random = torch.Generator().manual_seed(settings["seed"]).get_state()

    def attach(self, descriptions: Sequence[Any]) -> None:
        self.data = Batch(*(mapped(tuple(description)) for description in descriptions))

    def advance_by_index(self, index: Tensor) -> list[Tensor]:
        assert self.data is not None
        return self.population.minibatch_losses(Batch(*(part.index_select(0, index) for part in self.data)))

    def peak_memory_bytes(self) -> int:
        return machine.peak_memory_bytes()

    def send(self, method: str, *arguments: Any) -> None:
        self.answer = self.call(method, arguments)

    def receive(self) -> Any:
        return self.answer

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        owner = self if hasattr(self, method) else self.population
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            answer = getattr(owner, method)(*arguments)
            self.random = torch.get_rng_state()
        return answer


def serve(descriptor: int) -> None:
    """The main function of a process: answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    connection = Connection(descriptor)
    settings = pickle.loads(connection.recv_bytes())
    machine.configure_torch(settings["plan"].threads, deterministic=settings.pop("deterministic"))
    carried = Carried(settings)
    while True:
        try:
            method, arguments = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = ("answer", _packed(carried.call(method, _unpacked(arguments))))
        except Exception as error:
            answer = ("error", error)
        with suppress(BrokenPipeError):
            connection.send_bytes(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
