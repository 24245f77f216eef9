"""Passes on a CUDA device as graphs, which start all their kernels in one call: what repeating.py is to the CPU.

Small models train as quickly as their kernels can be started, and from Python that is some 10 us each; a graph
(torch.cuda.CUDAGraph) starts hundreds at once. Where one cannot be had, the function is computed as before.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARMING = 3  # calls before the capture: libraries choose algorithms and take their workspaces
CLOSE = 1e-3  # relative to the largest number, that sums in another order may make
Function = Callable[..., Sequence[Tensor | None]]


class Graph(NamedTuple):
    """replay: compute again, with the inputs where they were. results: where they are after it."""

    replay: Callable[[], None]
    results: Sequence[Tensor | None]


class Captured:
    """One call of a function of tensors, to be called again; `Recording` in repeating.py is the same for the CPU.

    What the function changes in its inputs, as BatchNorm does its running statistics, is changed there too.
    """

    most_bytes = 2**32

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.detach().clone() for tensor in inputs]
        with Sight(self.inputs) as sight:
            function(*self.inputs)
        self.refused, self.bytes = sight.refused, 0
        if self.refused:
            return
        # torch does not say of `native_batch_norm` that it changes the running statistics.
        pairs = zip(self.inputs, inputs, strict=True)
        seen = {i for i, (after, before) in enumerate(pairs) if not _close(after, before, 0.0)}
        self.changed = sorted(seen | sight.changed)
        self._begin_with(inputs)
        expected = _copies(function(*self.inputs))
        after = _copies(self.inputs)
        self.graph, self.bytes = capture(lambda: function(*self.inputs), self.inputs[0].device)
        self._begin_with(inputs)
        for result in self.graph.results:
            if result is not None and result.is_floating_point():
                result.fill_(torch.nan)
        self.graph.replay()
        both = zip([*self.graph.results, *self.inputs], [*expected, *after], strict=True)
        self.right = all(_close(got, wanted) for got, wanted in both)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        self._begin_with(inputs)
        self.graph.replay()
        with torch.no_grad():
            for i in self.changed:
                inputs[i].copy_(self.inputs[i])
            return _copies(self.graph.results)  # because the next call writes there

    def _begin_with(self, inputs: Sequence[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.inputs, list(inputs))

    def proves_right(self) -> bool:
        """Whether the graph gave what the function gives: a choice made on the host would be missing."""
        return self.right


def capture(function: Callable[[], Sequence[Tensor | None]], device: torch.device) -> tuple[Graph, int]:
    """The kernels that a call starts on a CUDA device, and the bytes that they hold.

    As `torch.cuda.graph`, without collecting garbage before every capture. Other threads may use the device meanwhile.
    """
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_reserved(device)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for _ in range(WARMING):
            function()
        torch.cuda.synchronize(device)
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            results = [None if result is None else result.detach() for result in function()]
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(stream)
    return Graph(graph.replay, results), max(0, torch.cuda.memory_reserved(device) - before)


class Sight(TorchDispatchMode):
    """Sees whether a call can be captured, and which of the inputs it changes: `refused` says what is in the way."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As `Recording._should_skip_dynamo`."""
        return False

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.places = {tensor.untyped_storage().data_ptr(): i for i, tensor in enumerate(inputs)}
        self.device = inputs[0].device
        self.refused = ""
        self.changed: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, results)) if isinstance(leaf, Tensor)]
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.refused = "random numbers"
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
            self.refused = "a choice that depends on data"
        elif any(tensor.device != self.device for tensor in tensors if tensor.ndim):
            self.refused = "numbers from another device"
        self.changed |= {self.places[place] for place in written(function, args, kwargs) if place in self.places}
        return results


def written(function: Any, args: Any, kwargs: Any) -> list[int]:
    """The memory that a function of torch's writes to among what it is given."""
    named = {**dict(zip((argument.name for argument in function._schema.arguments), args, strict=False)), **kwargs}
    writes = [a.name for a in function._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    leaves = [leaf for name in writes for leaf in tree_leaves(named.get(name)) if isinstance(leaf, Tensor)]
    return [leaf.untyped_storage().data_ptr() for leaf in leaves]


def _copies(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """In as few kernels as can be."""
    there = [tensor.detach() for tensor in tensors if tensor is not None]
    copies = [torch.empty_like(tensor) for tensor in there]
    if copies:
        torch._foreach_copy_(copies, there)
    left = iter(copies)
    return [None if tensor is None else next(left) for tensor in tensors]


def _close(got: Tensor | None, wanted: Tensor | None, tolerance: float = CLOSE) -> bool:
    if got is None or wanted is None:
        return got is wanted
    if not wanted.is_floating_point():
        return torch.equal(got, wanted)
    finite = wanted.isfinite()  # not those of a member that has diverged
    scale = float(wanted[finite].abs().max()) if finite.any() else 0.0
    return torch.allclose(got[finite], wanted[finite], rtol=tolerance, atol=tolerance * scale)
