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
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigexp import machine
from sigexp.population.feed import Feed
from sigexp.population.population import HPARAMS, Population, State, join, take
from sigexp.problem import Batch

# The allocator is set before torch is loaded.
COMMAND = "from sigexp import machine; {tune} and machine.tune_allocator(); import {module} as m; m.serve({descriptor})"


class Shards:
    """A population that is carried in parts; used like the `Population` it is made of.

    processes: with 1 this process carries all parts, one after the other; more divide them among themselves.
    seed: of what draws while it trains, such as dropout. tune_allocator: of the processes, as `machine` has it.
    """

    def __init__(self, whole: Population, processes: int = 1, *, seed: int = 0, tune_allocator: bool = False) -> None:
        self.whole, self.plan, self.device, self.template = whole, whole.plan, whole.device, whole.template
        self._hparams: dict[str, Tensor] = {}
        self.lr_scale = 1.0
        self.peak_memory_bytes = 0
        self._remote = processes > 1
        self._shared: Shared | None = None
        self._crews: list[Crew | Worker] = []
        self._threads = torch.get_num_threads()
        numbers = list(range(whole.plan.shards))
        try:
            for first in range(min(processes, len(numbers))):
                seeds = [seed * 1000 + number for number in numbers[first::processes]]
                package = {**whole.settings(), "seeds": seeds}
                self._crews.append(Worker(package, tune_allocator) if self._remote else Crew(package))
            if not self._remote:
                torch.set_num_threads(whole.plan.threads)
            self.load_state(whole.view())
            whole.load_state(take(whole.view(), torch.tensor([0])))  # the parts have the members now
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._hparams["lr"])

    @property
    def hparams(self) -> dict[str, Tensor]:
        return self._hparams

    def _rows(self) -> list[Tensor]:
        """The members of every part that has any."""
        return list(torch.arange(len(self)).chunk(self.plan.shards))

    def _ask(self, method: str, arguments: Callable[[Tensor], Sequence[Any]] = lambda rows: ()) -> list[Any]:
        """Call a method of every part, with what `arguments` makes of its members' rows; their answers in order."""
        rows = self._rows()
        count = len(rows)
        crews = self._crews[:count]
        for i, crew in enumerate(crews):
            crew.send([(method, arguments(own)) for own in rows[i :: len(self._crews)]])
        answers: list[Any] = [None] * count
        for i, crew in enumerate(crews):
            answers[i :: len(self._crews)] = crew.receive()
        return answers

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._hparams = {name: state[f"hparams/{name}"].clone() for name in HPARAMS}
        self._ask("load_state", lambda rows: [take(state, rows)])

    def set_hparams(self, hparams: Mapping[str, Tensor]) -> None:
        self._hparams = {name: hparams[name].to(self._hparams[name].dtype) for name in HPARAMS}
        self._ask("set_hparams", lambda rows: [take(hparams, rows)])

    def state(self) -> State:
        return join(*self._ask("state"))

    def copy(self, parents: Tensor) -> None:
        self.load_state(take(self.state(), parents))

    def drop_pending(self) -> None:
        self._ask("drop_pending")

    def advance(self, feed: Feed, position: int, count: int) -> list[Tensor]:
        if self._remote and feed.size is not None:
            if self._shared is None:
                self._shared = Shared(feed.data())
                for crew in self._crews:
                    crew.send([("attach", (self._shared.description,))])
                for crew in self._crews:
                    crew.receive()
                self._shared.unlink()
            examples: Tensor | Batch = feed.indices(position, count)
        else:
            examples = feed.take(position, count)
        answers = self._ask("advance", lambda _: [examples, self.lr_scale])
        return [losses for part in answers for losses in part]

    def evaluate(self, batch: Batch, metrics: Collection[str] | None = None) -> dict[str, Tensor]:
        return join(*self._ask("evaluate", lambda _: [batch, metrics]))

    def member(self, p: int) -> nn.Module:
        self.whole.load_state(self.state())
        return self.whole.member(p)

    def close(self) -> None:
        """End the processes; their members are gone with them."""
        for crew in self._crews:
            if isinstance(crew, Worker):
                self.peak_memory_bytes += crew.close()
        torch.set_num_threads(self._threads)
        self._crews = []


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
    """A process with a `Crew`; used like one."""

    def __init__(self, settings: Mapping[str, Any], tune_allocator: bool) -> None:
        deterministic = torch.are_deterministic_algorithms_enabled()
        package = pickle.dumps({**settings, "deterministic": deterministic})  # what cannot travel is refused here
        self.connection, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = COMMAND.format(tune=tune_allocator, module=__name__, descriptor=theirs.fileno())
        self.process = subprocess.Popen(
            [sys.executable, "-c", command], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
        )
        theirs.close()
        self.connection.send_bytes(package)

    def send(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> None:
        try:
            self.connection.send_bytes(pickle.dumps(_packed(list(calls)), protocol=pickle.HIGHEST_PROTOCOL))
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
        peak: Any = 0
        with suppress(Exception):
            self.send([("peak_memory_bytes", ())])
            peak = self.receive()[0]  # after an interrupt it may be the answer to an earlier call
        self.connection.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return peak if isinstance(peak, int) else 0


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
            examples, lr_scale = arguments
            part.population.lr_scale = lr_scale
            if isinstance(examples, Tensor):
                assert self.data is not None
                examples = Batch(*(kept.index_select(0, examples) for kept in self.data))
            return part.call("minibatch_losses", [examples])
        return part.call(method, arguments)

    def attach(self, descriptions: Sequence[Any]) -> None:
        self.data = Batch(*(mapped(tuple(description)) for description in descriptions))

    def peak_memory_bytes(self) -> int:
        return machine.peak_memory_bytes()


def serve(descriptor: int) -> None:
    """The main function of a process: answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    connection = Connection(descriptor)
    settings = pickle.loads(connection.recv_bytes())
    machine.configure_torch(settings["plan"].threads, deterministic=settings.pop("deterministic"))
    crew = Crew(settings)
    while True:
        try:
            calls = _unpacked(pickle.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            return
        try:
            crew.send(calls)
            answer = ("answer", _packed(crew.receive()))
        except Exception as error:
            error.add_note(f"in a training process: {traceback.format_exc()}")
            answer = ("error", error)
        with suppress(BrokenPipeError):
            connection.send_bytes(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
