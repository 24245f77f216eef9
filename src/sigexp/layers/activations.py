"""Pointwise nonlinearities by the name that a configuration gives them."""

import torch
from torch import Tensor, nn


class CentredSigmoid(nn.Module):
    """sigmoid(x) - 1/2: the mean 1/2 of a sigmoid makes the layer behind it ill-conditioned, a bias can undo it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) - 0.5


class Square(nn.Module):
    """x^2: with a bank of filters in front, the power in each band."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "centred_sigmoid": CentredSigmoid,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "square": Square,
}


def pointwise(name: str) -> nn.Module:
    """The nonlinearity called `name`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
