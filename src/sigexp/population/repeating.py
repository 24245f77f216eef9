"""Passes that come again and again, as the list of kernels that they call.

What Python, vmap and autograd do between two kernels is the same for every minibatch of a shape, and in small models
takes longer than the kernels. A `Repeating` records the kernels of one call, with the memory that they work on, and
from then on runs nothing else; on a CUDA device a graph does that (capturing.py). The bits of the results are the same,
which is looked at before a recording is used. What cannot be repeated that way (random numbers, a choice that depends
on data, code that is not torch's or sigexp's) is computed as before.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sigexp.population import native
from sigexp.population.capturing import Captured, memory_of, written
from sigexp.population.sending import wait

Function = Callable[..., Sequence[Tensor | None]]
CALLS = 3  # of a shape before it is recorded
LONGEST = 0.02  # seconds of a call, above which there is little to gain
FACTORY = ("dtype", "layout", "device", "pin_memory")  # arguments that given results make up for
KNOWN = ("torch", "sigexp")  # packages whose modules do the same at every call


class Repeating:
    """Calls of functions of tensors on one device without side effects, often with the same shapes."""

    def __init__(self) -> None:
        self.calls: dict[Any, tuple[int, float]] = {}  # of a shape: how many, and the seconds of the quickest
        self.recordings: dict[Any, Recording | Captured | None] = {}  # None where it cannot be; last, the last used

    def __call__(self, function: Function, *inputs: Tensor) -> Sequence[Tensor | None]:
        """function(*inputs), which must depend on nothing else."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if (recording := self.recordings.get(key)) is not None:
            self.recordings[key] = self.recordings.pop(key)
            return recording(inputs)
        if key in self.recordings:
            return function(*inputs)
        count, least = self.calls.get(key, (0, float("inf")))
        if count == CALLS:
            device = inputs[0].device.type
            self.recordings[key] = self._record(function, inputs) if least < LONGEST or device != "cpu" else None
            self._forget(KINDS[device].most_bytes)
        began = time.perf_counter()
        results = function(*inputs)
        self.calls[key] = count + 1, min(least, time.perf_counter() - began)
        return results

    def _record(self, function: Function, inputs: Sequence[Tensor]) -> "Recording | Captured | None":
        """A recording that is quicker than the function, if there can be one."""
        device = inputs[0].device
        try:
            inputs = [tensor.clone() for tensor in inputs]
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                if device.type != "cpu" and _seconds(device, function, *inputs) >= LONGEST:
                    return None  # by then a card has begun work, not done it
                recording = KINDS[device.type](function, inputs)
                if recording.refused or not recording.proves_right():
                    return None
                times = [
                    (_seconds(device, recording, inputs), _seconds(device, function, *inputs)) for _ in range(CALLS)
                ]
        except Exception:  # whatever this function of torch's cannot do
            return None
        return recording if min(one for one, _ in times) < min(other for _, other in times) else None

    def _forget(self, most_bytes: int) -> None:
        """Make room by those that were not used for longest. They are not recorded again, or more shapes than there is
        room for would be recorded all the time."""
        taken = [(key, recording.bytes) for key, recording in self.recordings.items() if recording]
        total = sum(size for _, size in taken)
        for key, size in taken:
            if total <= most_bytes:
                break
            del self.recordings[key]
            total -= size


def _seconds(device: torch.device, function: Callable, *arguments: Any) -> float:
    wait(device)
    began = time.perf_counter()
    function(*arguments)
    wait(device)
    return time.perf_counter() - began


def repeatable(model: nn.Module, loss: Callable) -> bool:
    """Whether every call does the same, but for the numbers: no code that could count its calls, or write a file."""
    modules = list(model.modules())
    origins = [*(type(module).__module__ for module in modules), getattr(loss, "__module__", None) or ""]
    known = all(origin.partition(".")[0] in KNOWN for origin in origins)
    return known and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


class Recording(TorchDispatchMode):
    """The kernels of one call of a function, to be called again.

    All tensors of the call live as long as this does: each kernel writes where it wrote then.
    """

    most_bytes = 2**27  # that those of a population may hold

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """A hook of torch's, which would import its compiler to keep that away from here: a second in every process."""
        return False

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self.inputs = [tensor.detach().clone() for tensor in inputs]
        self.kernels: list[Callable[[], Any]] = []
        self.written: list[Tensor] = []  # of the call's own tensors one for each memory
        self.constants: list[Tensor] = []
        self.known = {memory_of(tensor) for tensor in self.inputs}  # memory whose content comes from there
        self.settled: set[int] = set()  # memory whose content depends on no input
        self.refused = ""
        with self, native.recorded(self.kernels):
            results = function(*self.inputs)
        self.results = [None if result is None else result.detach() for result in results]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        with torch.inference_mode():
            torch._foreach_copy_(self.inputs, list(inputs))
            for kernel in self.kernels:
                kernel()
        with torch.no_grad():  # copies, because the next call writes there
            return [None if result is None else result.clone() for result in self.results]

    def proves_right(self) -> bool:
        """Whether the kernels alone give what the function gave. Its results are forgotten before: a kernel that was
        not seen leaves a hole."""
        expected = [result.clone() for result in self.results if result is not None]
        for tensor in self.written:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        got = [result for result in self(self.inputs) if result is not None]
        finite = [result.isfinite() for result in expected]  # not those of a member that has diverged
        triples = zip(expected, got, finite, strict=True)
        return all(there.any() and torch.equal(one[there], other[there]) for one, other, there in triples)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        if not self.refused:
            self._note(function, args, kwargs, results)
            if self.refused:
                self.kernels.clear()
                self.written.clear()
        return results

    def _note(self, function: Any, args: Any, kwargs: Any, results: Any) -> None:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        if function is torch.ops.aten.lift_fresh.default and not given[0].ndim:  # a constant in the code
            self.known.add(memory_of(given[0]))
            self.settled.add(memory_of(given[0]))
            self.constants.append(given[0])
        settled = all(memory_of(tensor) in self.settled for tensor in given)
        if not {memory_of(tensor) for tensor in given} <= self.known:
            self.refused = "numbers from elsewhere"
        elif torch.Tag.nondeterministic_seeded in function.tags:
            self.refused = "random numbers"
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
            self.refused = "" if settled else "a choice that depends on data"
        elif function._schema.is_mutable:
            if not settled:
                self.settled -= {memory_of(tensor) for tensor in given}
            if set(written(function, args, kwargs)) & {memory_of(tensor) for tensor in self.inputs}:
                self.refused = "it changes what it is given"
            self.kernels.append(partial(function._op, *_plain(args), **_plain(kwargs)))
        elif made and not {memory_of(tensor) for tensor in made} <= {memory_of(tensor) for tensor in given}:  # no views
            self.known |= {memory_of(tensor) for tensor in made}
            self.written += [tensor.detach() for tensor in made]
            self.bytes += sum(tensor.untyped_storage().nbytes() for tensor in made)
            if self.bytes > self.most_bytes:
                self.refused = "much memory"
            elif "empty" not in function._schema.name:
                if settled:
                    self.settled |= {memory_of(tensor) for tensor in made}
                self.kernels.append(_again(function, _plain(args), _plain(kwargs), [t.detach() for t in made]))


def _plain(values: Any) -> Any:
    """Tensors without what autograd knows of them, on the same memory."""
    return tree_map_only(Tensor, Tensor.detach, values)


def _again(function: Any, args: Any, kwargs: Any, made: list[Tensor]) -> Callable[[], Any]:
    """Call a function of torch's again, with its results where they are."""
    wanted = [(argument.name, str(argument.type)) for argument in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        overload = getattr(function.overloadpacket, name)
        arguments = overload._schema.arguments
        outs = [argument.name for argument in arguments if argument.is_out]
        others = {argument.name: str(argument.type) for argument in arguments if not argument.is_out}
        same = [pair for pair in wanted if pair[0] in others or pair[0] not in FACTORY] == list(others.items())
        if same and len(outs) == len(made):
            kept = {name: value for name, value in kwargs.items() if name in others}
            return partial(overload._op, *args, **kept, **dict(zip(outs, made, strict=True)))

    def copy() -> None:
        for tensor, result in zip(made, tree_leaves(function._op(*args, **kwargs)), strict=True):
            tensor.copy_(result)

    return copy


KINDS: dict[str, type[Recording | Captured]] = {"cpu": Recording, "cuda": Captured}  # device -> what repeats there
