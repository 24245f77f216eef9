"""BatchNorm with the ReLU and the maxima of 2 x 2 pixels behind it, as one function; `join` finds what is one.

Such layers only move numbers through memory, and take most of the time of nets like VGG. They, and convolutions with
a nonlinearity (nonlinearity.py), are found in the `nn.Sequential`s of a module, whose own parts stay as they are: only
what calling the whole computes is done otherwise.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from sigexp.population.compiling import SOME_TAPS
from sigexp.population.nonlinearity import Nonlinearity, hidden, of_layer

PLAIN_POOLING = {
    "kernel_size": 2,
    "stride": 2,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
}


def join(module: nn.Module) -> None:
    """Let every `nn.Sequential` within a module compute such layers by `block` and `hidden`."""
    for sequence in module.modules():
        if type(sequence) is nn.Sequential:
            steps = _steps(list(sequence))
            if len(steps) < len(sequence):
                sequence.forward = partial(_through, steps)  # type: ignore[method-assign]


def block(
    x: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float, pools: bool, relu: bool,
) -> Tensor:  # fmt: skip
    """`F.batch_norm`, then `F.max_pool2d` by 2 where `pools`, then ReLU where `relu`; torch function modes can take it
    over as they can each of the three."""
    tensors = (x, mean, variance, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(block, tensors, *tensors, training, momentum, eps, pools, relu)
    out = F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)
    out = F.max_pool2d(out, 2) if pools else out
    return F.relu(out) if relu else out


def learn(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, variance: Tensor, momentum: float, count: int
) -> None:
    """The running statistics go towards those of `count` values."""
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((variance * (count / (count - 1))).to(running_var), momentum)


def _through(steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for step in steps:
        x = step(x)
    return x


def _steps(layers: Sequence[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """The layers, those that can be joined as one. Maxima and ReLU can change places: neither value nor gradient does,
    because of equal ones the first counts, and below zero there is no gradient."""
    steps: list[Callable[[Tensor], Tensor]] = []
    at = 0
    while at < len(layers):
        norm, behind = layers[at], at + 1
        step: Callable[[Tensor], Tensor] = norm
        if isinstance(norm, nn.Conv2d) and (after := _before_another(layers[at : at + 3])) is not None:
            step = partial(_hidden, norm, after)
            behind += 1
        elif _is_norm(norm) and norm.momentum is not None:
            kinds = [_kind(layer) for layer in layers[behind : behind + 2]]
            taken = 2 if sorted(kinds) == ["maxima", "relu"] else int(bool(kinds and kinds[0]))
            if type(norm) is nn.BatchNorm1d and "maxima" in kinds[:taken]:
                taken = int(kinds[0] == "relu")
            if taken and not any(map(_has_hooks, layers[at : behind + taken])):
                found = kinds[:taken]
                step = partial(_normalized, norm, "maxima" in found, "relu" in found)
                behind += taken
        steps.append(step)
        at = behind
    return steps


def _is_norm(layer: nn.Module) -> TypeGuard[nn.BatchNorm1d | nn.BatchNorm2d]:
    return type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d)


def _kind(layer: nn.Module) -> str:
    """'relu', 'maxima' (of 2 x 2 pixels), or nothing for any other layer."""
    if type(layer) is nn.ReLU:
        return "relu"
    plain = all(getattr(layer, name, None) in (value, (value, value)) for name, value in PLAIN_POOLING.items())
    return "maxima" if type(layer) is nn.MaxPool2d and plain and not layer.return_indices else ""


def _before_another(layers: Sequence[nn.Module]) -> Nonlinearity | None:
    """The nonlinearity between two convolutions that across.c takes."""
    if len(layers) < 3 or type(layers[0]) is not nn.Conv2d or not isinstance(layers[2], nn.Conv2d):
        return None
    takes = layers[2].stride == (1, 1) and layers[2].groups == 1 and prod(layers[2].kernel_size) >= SOME_TAPS
    plain = layers[0].padding_mode == "zeros" and not any(map(_has_hooks, layers[:2]))
    return of_layer(layers[1]) if takes and plain else None


def _has_hooks(layer: nn.Module) -> bool:
    """Which calling it would run."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, kind) for kind in kinds)


def _hidden(conv: nn.Conv2d, after: Nonlinearity, x: Tensor) -> Tensor:
    return hidden(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, after)


def _normalized(norm: nn.BatchNorm1d | nn.BatchNorm2d, pools: bool, relu: bool, x: Tensor) -> Tensor:
    """As calling the layer, and those behind it."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    assert norm.momentum is not None
    training = norm.training or norm.running_mean is None
    return block(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, norm.momentum, norm.eps, pools, relu
    )
