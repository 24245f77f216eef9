"""What members compute together where torch's own batching is slow or missing: rules for torch functions.

A rule is called as rule(kernels, count, *args, **kwargs): which algorithms layers take (most rules ignore it), P, and
what the function was called with, every tensor as `Stacked`, at least one of them of the members' own. It returns plain
tensors that lead with P, and depends on nothing but its arguments (repeating.py); autograd differentiates it. Add it to
`RULES` under the outermost torch function that modules call: F.layer_norm, not the torch.layer_norm within. One that
knows nothing better returns `each(...)`, which takes no lists of tensors. The convolutions are in convolution.py, the
LSTM in recurrent.py, the products of full layers in dense.py, BatchNorm and convolutions with what is behind them in
blocks.py and nonlinearity.py.

Axes: P members, B examples, C channels, H W pixels, T samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigexp.layers.fft_conv import fft_conv2d
from sigexp.population import compiling, dense, native
from sigexp.population.blocks import block, learn
from sigexp.population.convolution import convolve
from sigexp.population.geometry import Geometry, pair
from sigexp.population.nonlinearity import hidden
from sigexp.population.recurrent import lstm_layers
from sigexp.signal.quality import SquaredError, squared_error


@dataclass(frozen=True)
class Stacked:
    """A tensor of P members, [P, ...], or one that they share. zero: known to be, without reading it."""

    tensor: Tensor
    own: bool
    zero: bool = False

    def members(self, count: int) -> Tensor:
        return self.tensor if self.own else self.tensor.expand(count, *self.tensor.shape)


def each(function: Callable, count: int, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
    """The members one after the other, their results stacked: right for any operation."""
    columns = [a.members(count).unbind() if isinstance(a, Stacked) else [a] * count for a in arguments]
    results = [function(*row) for row in zip(*columns, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


# Convolutions, those of sequences as images one pixel high.


def conv2d(kernels, count, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, after=None):
    """With the nonlinearity `after` it, if any."""
    geometry = Geometry.of(weight.tensor.shape[-2:], stride, padding, dilation, groups)
    if geometry is None or x.tensor.dim() != 4 + x.own:
        out = each(F.conv2d, count, x, weight, bias, stride, padding, dilation, groups)
        return after.function(out) if after else out
    bias = bias.members(count) if bias else None
    return convolve(kernels, geometry, x.tensor, weight.members(count), bias, shared=not x.own, after=after)


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
    rows = x.tensor.flatten(int(x.own), -2)
    ways = LINEAR_WAYS if dense.usable(rows, weight.tensor) else {"torch": by_torch}
    key = f"linear {'own' if x.own else 'shared'} {tuple(weight.tensor.shape[1:])}"
    out = kernels.pick(key, ways, (rows, weight.tensor, shift))
    return out.unflatten(1, x.tensor.shape[int(x.own) : -1])


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, K] or [P, B, K], weight [P, N, K], bias [P, N] -> [P, B, N]."""
    if x.dim() == 2:
        return wide(F.linear, x, weight, bias)
    matrix = weight.transpose(1, 2)
    return torch.bmm(x, matrix) if bias is None else torch.baddbmm(bias[:, None], x, matrix)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `by_torch`."""
    if x.dim() == 2:
        return wide(dense.Dense.apply, x, weight, bias)
    shifts = [None] * len(weight) if bias is None else bias.unbind()
    return torch.stack([dense.Dense.apply(*row) for row in zip(x.unbind(), weight.unbind(), shifts, strict=True)])


LINEAR_WAYS: dict[str, Callable[..., Tensor]] = {"torch": by_torch, "onednn": by_onednn}


def wide(layer: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One wide layer gives the outputs of all members."""
    out = layer(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
    return out.unflatten(-1, (len(weight), -1)).movedim(-2, 0)


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
    channels = planes.flatten(0, 1)  # of all members: [P C, B, ...]
    rows = channels.flatten(1)
    if (training or not torch.is_grad_enabled()) and compiling.takes(rows):
        found: Any = native.statistics(rows) if training else (mean, variance)
        if training:
            learn(mean, variance, found[0], found[1], momentum, rows.shape[1])
        scale = torch.ones_like(found[0]) if scale is None else scale
        shift = torch.zeros_like(found[0]) if shift is None else shift
        maxima = pools and channels.dim() == 4 and min(channels.shape[2:]) > 1
        out = native.Normalization.apply(compiling.kernel(), channels, scale, shift, *found, eps, maxima, relu)
        pools = pools and not maxima
    else:
        out = F.batch_norm(rows[None], mean, variance, scale, shift, training, momentum, eps).view(channels.shape)
        out = F.relu(out) if relu else out
    out = out.unflatten(0, planes.shape[:2]).transpose(1, 2)
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


def concatenate(kernels, count, tensors, dim=0, axis=None):
    """Channels one behind the other where they lie: the planes of each are a block of memory."""
    dim = dim if axis is None else axis  # NumPy's name, which torch takes too
    parts = [part.members(count) for part in tensors]
    if dim == 1 and all(part.dim() == 5 for part in parts):
        return torch.cat([part.transpose(1, 2) for part in parts], 1).transpose(1, 2)
    return torch.cat(parts, dim + 1 if dim >= 0 else dim)


def interpolate(
    kernels, count, x, size=None, scale_factor=None, mode="nearest", align_corners=None,
    recompute_scale_factor=None, antialias=False,
):  # fmt: skip
    """Planes as in `max_pool2d`. Doubled ones, as U-Nets have them, are copied several times as quickly as by torch."""
    settings = (size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    if x.tensor.dim() != 4 + x.own:
        return each(F.interpolate, count, x, *settings)
    planes = x.members(count).transpose(1, 2)
    if size is None and scale_factor in (2, (2, 2), [2, 2]) and mode == "nearest" and not antialias:
        return Doubled.apply(planes).transpose(1, 2)
    out = F.interpolate(planes.flatten(0, 2)[:, None], *settings)
    return out.view(*planes.shape[:3], *out.shape[2:]).transpose(1, 2)


class Doubled(torch.autograd.Function):
    """Planes [..., H, W] -> [..., 2 H, 2 W], every pixel four times."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        out = x.new_empty(*x.shape[:-1], 2, x.shape[-1], 2)
        out[..., 0, :, 0] = out[..., 0, :, 1] = x
        out[..., 1, :, :] = out[..., 0, :, :]
        return out.view(*x.shape[:-2], 2 * x.shape[-2], 2 * x.shape[-1])

    @staticmethod
    def backward(ctx, grad):
        rows = grad.unflatten(-2, (-1, 2))
        rows = rows[..., 0, :] + rows[..., 1, :]
        return rows[..., ::2] + rows[..., 1::2]


def lstm(
    kernels, count, x, states, weights, has_bias, layers, dropout, training, bidirectional, batch_first=None
):  # fmt: skip
    per_direction = 4 if has_bias else 2
    if batch_first is None or len(weights) != layers * (1 + bidirectional) * per_direction:
        raise RuntimeError("packed sequences and projections have no rule")
    begins = any(not state.zero and state.tensor.any() for state in states)
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

    ways = {"compiled": partial(run, True)} if compiling.takes(sequences, *stacked, part=compiling.LSTM) else {}
    out, h, c = kernels.pick(
        f"lstm {tuple(stacked[0].shape[1:])}", {**ways, "torch": partial(run, False)}, (sequences, *stacked)
    )
    return (out.transpose(1, 2) if batch_first else out), h, c


def squared_errors(kernels, count, outputs, targets):
    if targets.tensor.requires_grad:
        return each(squared_error, count, outputs, targets)
    return SquaredError.apply(outputs.members(count), targets.tensor, 2)


def cross_entropy(
    kernels, count, logits, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
    label_smoothing=0.0,
):  # fmt: skip
    """For one value per example, members are only more examples."""
    settings = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    old = {"size_average": size_average, "reduce": reduce}  # names of `reduction`, which they override
    plain = reduction == "none" and not target.own and size_average is None and reduce is None
    if not plain or target.tensor.is_floating_point() or logits.tensor.dim() != 3:
        return each(lambda x, y, w: F.cross_entropy(x, y, w, **settings, **old), count, logits, target, weight)
    x, y = logits.members(count).flatten(0, 1), target.tensor.repeat(count)
    return F.cross_entropy(x, y, weight.tensor if weight else None, **settings).unflatten(0, (count, -1))


RULES: Mapping[Any, Callable] = {
    torch.conv1d: conv1d,
    torch.conv2d: conv2d,
    hidden: conv2d,
    F.linear: linear,
    F.batch_norm: batch_norm,
    block: batch_norm,
    F.max_pool2d: max_pool2d,
    F.interpolate: interpolate,
    torch.cat: concatenate,
    torch._VF.lstm: lstm,
    fft_conv2d: fft_conv,
    squared_error: squared_errors,
    F.cross_entropy: cross_entropy,
}
