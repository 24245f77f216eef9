"""All members in one pass: `vmap` of a plain module's forward, with batching rules of our own where torch's are slow.

How it works. `Together` evaluates one module on the stacked parameters of all members as `torch.func.vmap` does, and
one ordinary backward pass follows. Most operations (elementwise, pooling, reshaping) are what vmap makes of them. For
the few where its result is slow or missing, `RULES` maps the torch function that modules call to a version of ours.
It gets ordinary tensors with the members in front, and autograd differentiates it like any other code.

To fuse another operation, write such a function and add it to `RULES`. It takes the arguments of the original, with
every tensor that vmap would batch as `Stacked`: `.tensor` leads with P where `.own`, else it is shared by the members
(the minibatch). It returns plain tensors that lead with P. One that knows nothing better returns `each(...)`.
The convolutions are in convolution.py, the LSTM in recurrent.py.

Axes: P members, B examples, C channels, H W pixels, T samples.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _functorch  # what vmap is made of
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.overrides import TorchFunctionMode

from sigexp.layers.fft_conv import fft_conv2d
from sigexp.population import compiling, native
from sigexp.population.blocks import block, join, learn
from sigexp.population.convolution import Geometry, Kernels, convolve, pair
from sigexp.population.recurrent import lstm_layers
from sigexp.population.single import SingleConvolution
from sigexp.problem import Batch, PerExample
from sigexp.signal.quality import SquaredError, squared_error


@dataclass(frozen=True)
class Stacked:
    """A tensor of P members, [P, ...], or one that they share."""

    tensor: Tensor
    own: bool

    def members(self, count: int) -> Tensor:
        return self.tensor if self.own else self.tensor.expand(count, *self.tensor.shape)


def each(function: Callable, count: int, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
    """The members one after the other, their results stacked: right for any operation."""
    columns = [a.members(count).unbind() if isinstance(a, Stacked) else [a] * count for a in arguments]
    results = [function(*row) for row in zip(*columns, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


class Together:
    """Losses and gradients of P members at once.

    template: one member, whose own weights are not used. kernels: which algorithm each convolution takes.
    """

    def __init__(self, template: nn.Module, loss: PerExample, kernels: Kernels) -> None:
        self.kernels, self.loss = kernels, loss
        self.template = copy.deepcopy(template)
        self.single = SingleConvolution.of(self.template, loss)
        modules = dict(self.template.named_modules())
        tensors = [*self.template.named_parameters(remove_duplicate=False), *self.template.named_buffers()]
        names = {id(tensor): name for name, tensor in reversed(tensors)}
        self._places = []  # every dictionary of the template that holds a tensor, its name there, and in the state
        for path, tensor in tensors:
            owner, _, leaf = path.rpartition(".")
            held = modules[owner]._parameters if leaf in modules[owner]._parameters else modules[owner]._buffers
            self._places.append((held, leaf, names[id(tensor)]))
        join(self.template)

    def losses_and_gradients(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch, weights: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Losses [P, B] in training mode, and the gradients [P, ...] of their sum weighted with `weights` [P], or
        [P, B] where every member has examples of its own: inputs and targets [P, B, ...]."""
        if weights.ndim == 2:
            return self._by_layers(params, buffers, batch, weights)
        ways: dict[str, Callable] = {"layers": self._by_layers}
        if self.single and self.single.takes(params, batch):
            ways = {"single pass": self.single.losses_and_gradients, **ways}
        return self.kernels.pick("model", ways, (params, buffers, batch, weights))

    def _by_layers(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch, weights: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        self.template.train()
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        own = weights.ndim == 2
        losses = self._over_members({**leaves, **buffers}, batch, lambda out, targets: self.loss(out, targets), own)
        upstream = weights.to(losses) if own else weights.to(losses)[:, None].expand_as(losses)
        return losses.detach(), list(torch.autograd.grad(losses, list(leaves.values()), upstream, allow_unused=True))

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

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        replacement = RULES.get(function)
        if replacement is None:
            return function(*args, **kwargs)
        level = _functorch.maybe_current_level() or 0
        count = 0

        def unwrap(value: Any) -> Any:
            nonlocal count
            if isinstance(value, list | tuple):
                return type(value)(unwrap(part) for part in value)
            if not isinstance(value, Tensor):
                return value
            if not _functorch.is_batchedtensor(value) or _functorch.maybe_get_level(value) != level:
                return Stacked(value, own=False)
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


# Convolutions, those of sequences as images one pixel high.


def conv2d(kernels, count, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    geometry = Geometry.of(weight.tensor.shape[-2:], stride, padding, dilation, groups)
    if geometry is None or x.tensor.dim() != 4 + x.own:
        return each(F.conv2d, count, x, weight, bias, stride, padding, dilation, groups)
    bias = bias.members(count) if bias else None
    return convolve(kernels, geometry, x.tensor, weight.members(count), bias, shared=not x.own)


def fft_conv(kernels, count, x, weight, bias, padding):
    return conv2d(kernels, count, x, weight, bias, padding=padding)


def conv1d(kernels, count, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    geometry = Geometry.of_line(weight.tensor.shape[-1], stride, padding, dilation, groups)
    if geometry is None or x.tensor.dim() != 3 + x.own:
        return each(F.conv1d, count, x, weight, bias, stride, padding, dilation, groups)
    bias = bias.members(count) if bias else None
    lines, taps = x.tensor.unsqueeze(-2), weight.members(count).unsqueeze(-2)
    return convolve(kernels, geometry, lines, taps, bias, shared=not x.own).squeeze(-2)


def linear(kernels, count, x, weight, bias=None):
    if not weight.own or x.tensor.dim() < 2 + x.own:
        return each(F.linear, count, x, weight, bias)
    shift = bias.members(count) if bias else None
    if not x.own:  # one wide layer gives the outputs of all members
        wide = F.linear(x.tensor, weight.tensor.flatten(0, 1), None if shift is None else shift.flatten())
        return wide.unflatten(-1, (count, -1)).movedim(-2, 0)
    rows, matrix = x.tensor.flatten(1, -2), weight.tensor.transpose(1, 2)
    out = torch.bmm(rows, matrix) if shift is None else torch.baddbmm(shift[:, None], rows, matrix)
    return out.unflatten(1, x.tensor.shape[1:-1])


def batch_norm(
    kernels, count, x, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1,
    eps=1e-5, pools=False, relu=False,
):  # fmt: skip
    """The channels of all members as the channels of one layer; with what `block` has behind it."""
    planes = x.members(count).transpose(1, 2).contiguous()  # [P, C, B, ...]
    if training and planes[0, 0].numel() == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.tensor.shape}")
    # Views, because the running statistics are updated in place.
    mean, variance, scale, shift = (
        None if t is None else t.members(count).view(-1) for t in (running_mean, running_var, weight, bias)
    )
    rows = planes.view(planes.shape[0] * planes.shape[1], -1)
    if (training or not torch.is_grad_enabled()) and compiling.takes(rows):
        found: Any = native.statistics(rows) if training else (mean, variance)
        if training:
            learn(mean, variance, found[0], found[1], momentum, rows.shape[1])
        scale = torch.ones_like(found[0]) if scale is None else scale
        shift = torch.zeros_like(found[0]) if shift is None else shift
        if pools and planes.dim() == 5 and min(planes.shape[3:]) > 1:
            out = native.NormalizedMaxima.apply(
                compiling.kernel(), planes.flatten(0, 1), scale, shift, *found, eps, relu
            )
            return out.unflatten(0, planes.shape[:2]).transpose(1, 2)
        out = native.Normalization.apply(compiling.kernel(), rows, scale, shift, *found, eps, relu)
    else:
        out = F.batch_norm(rows[None], mean, variance, scale, shift, training, momentum, eps)
        out = F.relu(out) if relu else out
    out = out.view(planes.shape).transpose(1, 2)
    return max_pool2d(kernels, count, Stacked(out, own=True), 2) if pools else out


def max_pool2d(
    kernels, count, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Members, channels and examples are all just planes, in whatever order they lie in memory."""
    if return_indices or x.tensor.dim() != 4 + x.own:
        return each(F.max_pool2d, count, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    planes = x.members(count).transpose(1, 2)
    squares = pair(kernel_size) == pair(stride or kernel_size) == (2, 2) and min(planes.shape[3:]) > 1
    if squares and pair(padding) == (0, 0) and pair(dilation) == (1, 1) and not ceil_mode and compiling.takes(planes):
        out = native.Pooling.apply(compiling.kernel(), planes.flatten(0, 2))
    else:
        out = F.max_pool2d(planes.flatten(0, 2), kernel_size, stride, padding, dilation, ceil_mode)
    return out.view(*planes.shape[:3], *out.shape[1:]).transpose(1, 2)


def lstm(
    kernels, count, x, states, weights, has_bias, layers, dropout, training, bidirectional, batch_first=None
):  # fmt: skip
    per_direction = 4 if has_bias else 2
    if batch_first is None or len(weights) != layers * (1 + bidirectional) * per_direction:
        raise RuntimeError("packed sequences and projections have no rule")
    begins = any(state.tensor.any() for state in states)
    if begins or (dropout and training and layers > 1) or not all(weight.own for weight in weights):

        def one(x, h, c, *weights):
            settings = (has_bias, layers, dropout, training, bidirectional, batch_first)
            return torch._VF.lstm(x, (h, c), list(weights), *settings)

        return each(one, count, x, *states, *weights)
    sequences = x.tensor if x.own else x.tensor[None]
    sequences = sequences.transpose(1, 2) if batch_first else sequences
    stacked = [weight.tensor for weight in weights]

    def run(compiled, x, *weights):
        return lstm_layers(x, weights, layers, 1 + bidirectional, has_bias, compiled)

    ways = {"compiled": partial(run, True)} if compiling.takes(sequences, *stacked) else {}
    out, h, c = kernels.pick(
        f"lstm {tuple(stacked[0].shape[1:])}", {**ways, "torch": partial(run, False)}, (sequences, *stacked)
    )
    return (out.transpose(1, 2) if batch_first else out), h, c


def squared_errors(kernels, count, outputs, targets):
    if targets.tensor.requires_grad:
        return each(squared_error, count, outputs, targets)
    return SquaredError.apply(outputs.members(count), targets.tensor, 2)


def cross_entropy(
    kernels, count, logits, classes, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
    label_smoothing=0.0,
):  # fmt: skip
    """For one value per example, members are only more examples."""
    settings = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    if reduction != "none" or classes.own or classes.tensor.is_floating_point() or logits.tensor.dim() != 3:
        return each(lambda x, y, w: F.cross_entropy(x, y, w, **settings), count, logits, classes, weight)
    x, y = logits.members(count).flatten(0, 1), classes.tensor.repeat(count)
    return F.cross_entropy(x, y, weight.tensor if weight else None, **settings).unflatten(0, (count, -1))


RULES: Mapping[Any, Callable] = {
    torch.conv1d: conv1d,
    torch.conv2d: conv2d,
    F.linear: linear,
    F.batch_norm: batch_norm,
    block: batch_norm,
    F.max_pool2d: max_pool2d,
    torch._VF.lstm: lstm,
    fft_conv2d: fft_conv,
    squared_error: squared_errors,
    F.cross_entropy: cross_entropy,
}
