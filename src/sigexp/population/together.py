"""All members in one pass: `vmap` of a plain module's forward, with batching rules of our own where torch's are slow.

How it works. `Together` evaluates one module on the stacked parameters of all members as `torch.func.vmap` does, and
one ordinary backward pass follows. Most operations (elementwise, reshaping, most pooling) are what vmap makes of them.
For the few where its result is slow or missing, `RULES` (rules.py) maps the torch function that modules call to a
version of ours, which gets ordinary tensors with the members in front.

Axes: P members, B examples.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch  # what vmap is made of
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.overrides import TorchFunctionMode

from sigexp.population.blocks import join
from sigexp.population.convolution import Kernels
from sigexp.population.gradients import gradients
from sigexp.population.repeating import KINDS, Repeating, repeatable
from sigexp.population.rules import RULES, Stacked
from sigexp.population.single import single_pass
from sigexp.problem import Batch, PerExample


class Together:
    """Losses and gradients of P members at once.

    template: one member, whose own weights are not used. kernels: which algorithm each layer takes.
    """

    def __init__(self, template: nn.Module, loss: PerExample, kernels: Kernels) -> None:
        self.loss, self.template = loss, copy.deepcopy(template)
        self.single = single_pass(self.template, loss)
        modules = dict(self.template.named_modules())
        tensors = [*self.template.named_parameters(remove_duplicate=False), *self.template.named_buffers()]
        names = {id(tensor): name for name, tensor in reversed(tensors)}
        self._places = []  # every dictionary of the template that holds a tensor, its name there, and in the state
        for path, tensor in tensors:
            owner, _, leaf = path.rpartition(".")
            held = modules[owner]._parameters if leaf in modules[owner]._parameters else modules[owner]._buffers
            self._places.append((held, leaf, names[id(tensor)]))
        self._repeats = repeatable(self.template, loss)
        join(self.template)
        self.use(kernels)

    def use(self, kernels: Kernels) -> None:
        """Let convolutions take these algorithms."""
        self.kernels, self._again = kernels, Repeating()

    def losses_and_gradients(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch, weights: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Losses [P, B] in training mode, and the gradients [P, ...] of their sum weighted with `weights` [P], or
        [P, B] where every member has examples of its own: inputs and targets [P, B, ...]."""
        ways: dict[str, Callable] = {"layers": self._by_layers}
        if self.single and self.single.takes(params, batch, weights):
            ways = {"single pass": self.single.losses_and_gradients, **ways}
        return self.kernels.pick("model", ways, (params, buffers, batch, weights))

    def _by_layers(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch, weights: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        names, count = [*params, *buffers], len(params)

        def learn(*tensors: Tensor) -> list[Tensor | None]:
            *state, inputs, targets, weights = tensors
            return self._learn(dict(zip(names, state, strict=True)), count, Batch(inputs, targets), weights)

        tensors = [*params.values(), *buffers.values(), *batch, weights]
        repeats = self._repeats and weights.device.type in KINDS and not self.kernels.choose
        losses, *gradients = self._again(learn, *tensors) if repeats else learn(*tensors)
        assert losses is not None
        return losses, gradients

    def _learn(self, state: Mapping[str, Tensor], learned: int, batch: Batch, weights: Tensor) -> list[Tensor | None]:
        """The losses, and the gradients by the first `learned` tensors of the state."""
        self.template.train()
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in [*state.items()][:learned]}
        own = weights.ndim == 2
        losses = self._over_members({**state, **leaves}, batch, lambda out, targets: self.loss(out, targets), own)
        upstream = weights.to(losses) if own else weights.to(losses)[:, None].expand_as(losses)
        return [losses.detach(), *gradients(losses, list(leaves.values()), upstream)]

    def outputs(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs of all members in evaluation mode, without gradients: [P, B, ...]."""
        self.template.eval()
        with torch.no_grad():
            return self._over_members({**params, **buffers}, Batch(inputs, inputs), lambda out, _: out)

    def _over_members(
        self, state: Mapping[str, Tensor], batch: Batch, finish: Callable[[Tensor, Tensor], Tensor], own: bool = False
    ) -> Tensor:
        """finish(template(inputs), targets) with the tensors of every member in turn, and its examples where they are
        its `own`, as `torch.func.vmap` of `torch.func.functional_call` would compute it; their checks and trees take
        longer than small models train."""
        count = len(next(iter(state.values())))
        level = _functorch._vmap_increment_nesting(count, "different")
        try:
            stacked = {name: _functorch._add_batch_dim(tensor, 0, level) for name, tensor in state.items()}
            inputs, targets = (_functorch._add_batch_dim(part, 0, level) for part in batch) if own else batch
            for held, leaf, name in self._places:
                held[leaf] = stacked[name]
            for module in self.template.modules():
                if isinstance(module, nn.RNNBase):  # it keeps a list of its weights besides
                    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
            with Interception(self.kernels):
                result = finish(self.template(inputs), targets)
            return _functorch._remove_batch_dim(result, level, count, 0)
        finally:
            _functorch._vmap_decrement_nesting()


class Interception(TorchFunctionMode):
    """While it is active, calls of the functions in `RULES` on tensors of the population go to their versions there."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.zeros: list[Tensor] = []  # that the module made, as nn.LSTM does its states

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        replacement = RULES.get(function)
        if replacement is None:
            result = function(*args, **kwargs)
            if function is torch.zeros:
                self.zeros.append(result)
            return result
        if "input" in kwargs:  # torch's name of the first argument
            args, kwargs = (kwargs["input"], *args), {name: kwargs[name] for name in kwargs if name != "input"}
        level = _functorch.maybe_current_level() or 0
        count = 0

        def unwrap(value: Any) -> Any:
            nonlocal count
            if isinstance(value, list | tuple):
                return type(value)(unwrap(part) for part in value)
            if not isinstance(value, Tensor):
                return value
            if not _functorch.is_batchedtensor(value) or _functorch.maybe_get_level(value) != level:
                zero = any(value is made for made in self.zeros) and not value.is_inference() and value._version == 0
                return Stacked(value, own=False, zero=zero)
            tensor = _functorch.get_unwrapped(value).movedim(_functorch.maybe_get_bdim(value), 0)
            count = len(tensor)
            return Stacked(tensor, own=True)

        args_, kwargs_ = unwrap(args), {name: unwrap(value) for name, value in kwargs.items()}
        if not count:
            return function(*args, **kwargs)
        with temporarily_pop_interpreter_stack():
            results = replacement(self.kernels, count, *args_, **kwargs_)
        if isinstance(results, Tensor):
            return _functorch._add_batch_dim(results, 0, level)
        return tuple(_functorch._add_batch_dim(result, 0, level) for result in results)
