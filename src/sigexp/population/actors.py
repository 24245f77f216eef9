"""Parts of a population carried by actors of Ray (https://docs.ray.io), on the cores or GPUs of one machine or of many.

`trainer.engine=ray`, with the extra `cluster`. This process is the driver: it selects, holds the checkpoints, and puts
the training set into Ray's object store, out of which every node reads it once; minibatches travel as the numbers of
their examples. An actor is used like a `Worker` of crew.py. Ray starts none again by itself, because it would come back
with fresh weights: `Shards.restart` and `restore` do that from the driver's snapshot, and a loss changes no result.
"""

import copy
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from sigexp import machine
from sigexp.population.crew import Crew, WorkerLost, packed, unpacked
from sigexp.problem import Batch

Package = Mapping[str, Any]  # what a `Crew` is made of
TRIES, PAUSE_S = 3, 1.0  # to reach an actor
COMPUTES = ("sigexp", "torch", "numpy")  # that have to be the same everywhere


@dataclass(frozen=True)
class InStore:
    """Stands in a call for a batch that lies in the object store: the first or second of those, and so on."""

    number: int


class Carrier:
    """What an actor is: a `Crew`, in a process of Ray's."""

    def begin(self, package: Package) -> dict[str, str]:
        """Carry new parts. Returns the versions that compute here."""
        settings = dict(package)
        if settings.pop("tune_allocator"):
            machine.tune_allocator()
        machine.configure_torch(settings["plan"].threads, deterministic=settings.pop("deterministic"))
        self.device = settings["device"]
        self.crew = Crew(settings)
        return {name: machine.versions()[name] for name in COMPUTES}

    def call(self, calls: Any, *arrays: Any) -> Any:
        """The calls of a crew, packed. arrays: inputs and targets of every batch that lies in the store, read-only."""
        found = unpacked(calls)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch, that they could be written to
            tensors = [torch.from_numpy(array) for array in arrays]
        if found[0][0] != "attach":  # the training set is only selected from; modules may work in place on others
            tensors = [tensor.clone() for tensor in tensors]
        tensors = [tensor.to(self.device) for tensor in tensors]
        batches = [Batch(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
        self.crew.send([(method, [self._placed(one, batches) for one in arguments]) for method, arguments in found])
        return packed(self.crew.receive())

    def _placed(self, argument: Any, batches: Sequence[Batch]) -> Any:
        """An argument as the population takes it: batches, and states on the device."""
        if isinstance(argument, InStore):
            return batches[argument.number]
        if isinstance(argument, dict) and self.device.type != "cpu":
            return {n: t if n.startswith(("hparams/", "random")) else t.to(self.device) for n, t in argument.items()}
        return argument


class Actor:
    """A `Carrier` on the cluster; used like a `Worker`."""

    def __init__(self, handle: Any, put: Callable[[Batch, bool], Sequence[Any]]) -> None:
        """handle: Ray's. put: a batch into the object store, and whether it is needed again."""
        self.handle, self.put = handle, put
        self.pending: Any = None

    def begin(self, package: Package) -> None:
        """Have new parts; `begun` is the end of it."""
        try:
            self.pending = self.handle.begin.remote(package)
        except TypeError as error:
            raise ValueError(f"trainer.engine=ray: the model or loss cannot travel to an actor ({error})") from error

    def begun(self) -> None:
        """Raises ValueError where the actor computes by other versions, which could change results, or cannot import
        what is trained."""
        here = machine.versions()
        try:
            there = self._answer()
        except Exception as error:
            missing = re.search(r"No module named '[\w.]+'", f"{error} {error.__cause__}")
            if missing is None:
                raise
            raise ValueError(f"trainer.engine=ray: {missing[0]} on a node of the cluster; install it there") from error
        for name, version in there.items():
            if version != here[name]:
                raise ValueError(
                    f"trainer.engine=ray: a node of the cluster has {name} {version}, and this machine {here[name]}; "
                    "install the same versions on all nodes"
                )

    def send(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> None:
        batches: dict[int, Batch] = {}

        def stored(argument: Any) -> Any:
            if not isinstance(argument, Batch):
                return argument
            batches[id(argument)] = argument
            return InStore(list(batches).index(id(argument)))

        own = [(method, [stored(argument) for argument in arguments]) for method, arguments in calls]
        keep = calls[0][0] == "attach"
        refs = [ref for batch in batches.values() for ref in self.put(batch, keep)]
        self.pending = self.handle.call.remote(packed(own), *refs)

    def receive(self) -> Any:
        return unpacked(self._answer())

    def _answer(self) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(self.pending)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, RayError):  # what it was given was lost
                self._died(cause)
            if not isinstance(cause, Exception):
                raise
            cause.add_note(f"in an actor of Ray: {error}")
            raise cause from None
        except RayError as error:
            self._died(error)

    def _died(self, error: Exception) -> NoReturn:
        first = str(error).strip().partition("\n")[0][:120]
        raise WorkerLost(f"an actor of Ray was lost ({type(error).__name__}: {first})") from error

    def alive(self) -> bool:
        """Whether it still answers, after what it is at."""
        for _ in range(TRIES):
            try:
                self.send([("peak_memory_bytes", ())])
                self.receive()
                return True
            except WorkerLost as lost:
                if type(lost.__cause__).__name__ != "ActorUnavailableError":  # which may pass
                    return False
            time.sleep(PAUSE_S)
        return False

    def close(self, at_once: bool = False) -> int:
        """Its peak memory in bytes."""
        import ray

        peak = 0
        if not at_once:
            with suppress(Exception):
                self.send([("peak_memory_bytes", ())])
                peak = int(self.receive()[0])
        with suppress(Exception):
            ray.kill(self.handle)
        return peak


def travelling(settings: Package, *, tune_allocator: bool) -> dict[str, Any]:
    """What a `Carrier` begins with, of the settings of a `Crew`."""
    return {
        **settings,
        "template": copy.deepcopy(settings["template"]).cpu(),
        "device": torch.device(settings["device"].type),  # an actor sees its own GPU alone
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tune_allocator": tune_allocator,
    }
