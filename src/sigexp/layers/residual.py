"""A body that corrects a skip, and the initial weights that make deep stacks of convolutions train."""

from torch import Tensor, nn


class Residual(nn.Module):
    """skip(x) + body(x)."""

    def __init__(self, body: nn.Module, skip: nn.Module):
        super().__init__()
        self.body, self.skip = body, skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


def kaiming(layer: nn.Module) -> nn.Module:
    """He et al. 2015 for ReLU-like layers: variance 2 / fan-in, so that signals neither fade nor grow with depth."""
    zero(layer)
    nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
    return layer


def zero(layer: nn.Module) -> nn.Module:
    """All zeros: a last layer that leaves the skip alone at the start."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
