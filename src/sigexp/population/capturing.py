"""Passes on a CUDA device as graphs, which start all their kernels in one call: what repeating.py is to the CPU.

Small models train as quickly as their kernels can be started, and from Python that is some 10 us each; a graph
(torch.cuda.CUDAGraph) starts hundreds at once. Where one cannot be had, the function is computed as before.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sigexp.population.sending import wait

WARMING = 3  # calls before the capture: libraries choose algorithms and take their workspaces
CLOSE = 1e-3  # relative to the largest number, that sums in another order may make
STREAMS = 32  # that torch has, and hands out in turn
Function = Callable[..., Sequence[Tensor | None]]

_captured_on: set[int] = set()  # streams of graphs that are alive


class Graph(NamedTuple):
    """replay: compute again, with the inputs where they were. results: where they are after it. bytes: that it holds
    besides."""

    replay: Callable[[], Any]
    results: Sequence[Tensor | None]
    bytes: int


class Captured:
    """One call of a function of tensors, to be called again; `Recording` in repeating.py is the same for the CPU.

    What the function changes in its inputs, as BatchNorm does its running statistics, is changed there too.
    """

    most_bytes = 2**31  # that those of a population may hold

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.detach().clone() for tensor in inputs]
        with Sight(self.inputs) as sight:
            function(*self.inputs)
        self.refused, self.changed, self.bytes = sight.refused, sorted(sight.changed), 0
        del sight  # which keeps what the call made
        if self.refused:
            return
        copy_all(self.inputs, inputs)
        expected = _copies(function(*self.inputs))
        after = _copies(self.inputs)
        self.graph = capture(function, self.inputs)
        self.bytes = self.graph.bytes + sum(tensor.nbytes for tensor in self.inputs)
        copy_all(self.inputs, inputs)
        for result in self.graph.results:
            if result is not None and result.is_floating_point():
                result.fill_(torch.nan)
        self.graph.replay()
        pairs = zip([*self.graph.results, *self.inputs], [*expected, *after], strict=True)
        self.right = all(_close(got, wanted) for got, wanted in pairs)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        copy_all(self.inputs, inputs)
        self.graph.replay()
        copy_all([inputs[i] for i in self.changed], [self.inputs[i] for i in self.changed])
        return _copies(self.graph.results)  # because the next call writes there

    def proves_right(self) -> bool:
        """Whether the graph gave what the function gives: a choice made on the host would be missing."""
        return self.right and self.bytes <= self.most_bytes


def capture(function: Function, inputs: Sequence[Tensor]) -> Graph:
    """The kernels that function(*inputs) starts on a CUDA device.

    As `torch.cuda.graph`, without collecting garbage before every capture. Other threads may use the device meanwhile.
    Raises RuntimeError where it cannot be.
    """
    device, graph = inputs[0].device, torch.cuda.CUDAGraph()
    stream = _own_stream(device)
    wait(device)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for _ in range(WARMING):
            function(*inputs)
        wait(device)
        before = torch.cuda.memory_reserved(device)
        _captured_on.add(stream.cuda_stream)
        weakref.finalize(graph, _captured_on.discard, stream.cuda_stream)
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            results = [None if result is None else result.detach() for result in function(*inputs)]
        finally:
            graph.capture_end()
    wait(device)
    return Graph(graph.replay, results, max(0, torch.cuda.memory_reserved(device) - before))


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """One that no living graph was captured on: torch frees the workspaces of the stream with every graph of it."""
    for _ in range(STREAMS):
        stream = torch.cuda.Stream(device)
        if stream.cuda_stream not in _captured_on:
            return stream
    raise RuntimeError("all streams have graphs")


class Sight(TorchDispatchMode):
    """Sees whether a call can be captured, and which of the inputs it changes: `refused` says what is in the way."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As `Recording._should_skip_dynamo`."""
        return False

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.places = {memory_of(tensor): i for i, tensor in enumerate(inputs)}
        self.known = {*self.places}  # memory whose content comes from the inputs or is made by the call
        self.made: list[Tensor] = []  # alive, because memory that is taken again would be known
        self.device = inputs[0].device
        self.refused = ""
        self.changed: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        if function is torch.ops.aten.lift_fresh.default:  # a constant in the code
            self.known.add(memory_of(given[0]))
            self.made.append(given[0])
        self.refused = self.refused or self._in_the_way(function, given, made)
        self.known |= {memory_of(tensor) for tensor in made}
        self.made += made
        self.changed |= {self.places[place] for place in written(function, args, kwargs) if place in self.places}
        return results

    def _in_the_way(self, function: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> str:
        name = function._schema.name
        carries = any(part in name for part in ("copy", "index_put"))  # single numbers of others travel with the call
        masks = "index" in name and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in given[1:])
        if torch.Tag.nondeterministic_seeded in function.tags:
            return "random numbers"
        if torch.Tag.data_dependent_output in function.tags or masks or "nonzero" in name:
            return "a choice that depends on data"
        if any(tensor.device != self.device for tensor in (*given, *made) if tensor.ndim or carries):
            return "numbers from another device"
        if not {memory_of(tensor) for tensor in given} <= self.known:
            return "numbers from elsewhere"
        dynamic = torch.Tag.dynamic_output_shape in function.tags and name != "aten::index"
        return "a choice that depends on data" if dynamic else ""


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def written(function: Any, args: Any, kwargs: Any) -> list[int]:
    """The memory that a function of torch's writes to among what it is given; also that of BatchNorm's running
    statistics, of which torch does not say it."""
    schema = function._schema
    named = {**dict(zip((argument.name for argument in schema.arguments), args, strict=False)), **kwargs}
    writes = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if "batch_norm" in schema.name:
        writes += [name for name in ("running_mean", "running_var") if name in named]
    return [memory_of(leaf) for name in writes for leaf in tree_leaves(named.get(name)) if isinstance(leaf, Tensor)]


def copy_all(to: Sequence[Tensor], content: Sequence[Tensor]) -> None:
    """In a kernel for each type of numbers."""
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(to, content, strict=True):
        targets, sources = by_type.setdefault(target.dtype, ([], []))
        targets.append(target)
        sources.append(source)
    with torch.no_grad():
        for targets, sources in by_type.values():
            torch._foreach_copy_(targets, sources)


def _copies(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    there = [tensor.detach() for tensor in tensors if tensor is not None]
    copies = [torch.empty_like(tensor) for tensor in there]
    copy_all(copies, there)
    left = iter(copies)
    return [None if tensor is None else next(left) for tensor in tensors]


def _close(got: Tensor | None, wanted: Tensor | None) -> bool:
    if got is None or wanted is None:
        return got is wanted
    if not wanted.is_floating_point():
        return torch.equal(got, wanted)
    finite = wanted.isfinite()  # not those of a member that has diverged
    scale = float(wanted[finite].abs().max()) if finite.any() else 0.0
    return torch.allclose(got[finite], wanted[finite], rtol=CLOSE, atol=CLOSE * scale)
