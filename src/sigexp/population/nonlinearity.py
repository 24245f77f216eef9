"""Convolutions with the nonlinearity behind them, where another convolution follows, as one function.

In C (across.c) the nonlinearity is computed before its numbers leave the cache, and they lie as the next convolution
wants them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from sigexp.layers.activations import CentredSigmoid

NUMBERS: dict[type[nn.Module], int] = {nn.Sigmoid: 1, CentredSigmoid: 2, nn.ReLU: 3, nn.LeakyReLU: 4, nn.Tanh: 5}


@dataclass(frozen=True)
class Nonlinearity:
    """number: that of across.c. slope: of a leaky ReLU below zero."""

    function: Callable[[Tensor], Tensor]
    number: int
    slope: float = 0.0


def of_layer(layer: nn.Module) -> Nonlinearity | None:
    """None for one that across.c does not know."""
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope <= 0:  # the sign of its value is not that of x
        return None
    number = NUMBERS.get(type(layer))
    return Nonlinearity(layer, number, getattr(layer, "negative_slope", 0.0)) if number else None


def hidden(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups, after: Nonlinearity
) -> Tensor:  # fmt: skip
    """`F.conv2d`, then the nonlinearity; torch function modes can take it over as they can each of the two."""
    tensors = (x, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(hidden, tensors, *tensors, stride, padding, dilation, groups, after)
    return after.function(F.conv2d(x, weight, bias, stride, padding, dilation, groups))
