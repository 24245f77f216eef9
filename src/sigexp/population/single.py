"""Models of a single convolution under squared error: losses and gradients in one compiled pass, without autograd.

What autograd, vmap and separate passes for outputs, errors and gradients cost is most of the time of such small models.
Axes: P members, B examples, C and D input and output channels.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sigexp.population import compiling, native
from sigexp.population.convolution import Geometry
from sigexp.population.moments import front_and_layer
from sigexp.problem import Batch, PerExample


class SingleConvolution:
    """One convolution behind functions without parameters; `of` finds both in a model."""

    def __init__(
        self, front: nn.Sequential, layer: nn.Conv1d | nn.Conv2d, geometry: Geometry, border: list[int]
    ) -> None:
        self.front, self.layer, self.geometry, self.border = front, layer, geometry, border

    @classmethod
    def of(cls, template: nn.Module, loss: PerExample) -> "SingleConvolution | None":
        """None for any other model, another loss than `mse`, or a padding that cuts pixels off."""
        found = front_and_layer(template, loss)
        if found is None:
            return None
        front, layer = found
        if not isinstance(layer, nn.Conv1d | nn.Conv2d):
            return None
        zeros = layer.padding_mode == "zeros"
        padding: Any = layer.padding if zeros else 0
        if isinstance(layer, nn.Conv2d):
            geometry = Geometry.of(layer.kernel_size, layer.stride, padding, layer.dilation, 1)
        else:
            geometry = Geometry.of_line(layer.kernel_size[0], layer.stride, padding, layer.dilation, 1)
        if geometry is None or min(geometry.transposed().padding) < 0:
            return None
        return cls(front, layer, geometry, [] if zeros else layer._reversed_padding_repeated_twice)

    def takes(self, params: Mapping[str, Tensor], batch: Batch) -> bool:
        return compiling.takes(batch.inputs, batch.targets, *params.values())

    def losses_and_gradients(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch, weights: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """As `Together.losses_and_gradients`."""
        x = self.front(batch.inputs.clone()) if len(self.front) else batch.inputs  # a copy: modules may work in place
        if self.border:
            x = F.pad(x, self.border, self.layer.padding_mode)
        x = x if x.ndim == 4 else x.unsqueeze(-2)
        weight, *bias = params.values()
        kernels = weight if weight.ndim == 5 else weight.unsqueeze(-2)
        shift = bias[0] if bias else weight.new_zeros(weight.shape[:2])
        found = native.learn(
            x, kernels, shift, batch.targets, self.geometry.extent((x.shape[2], x.shape[3])), self.geometry.padding,
            self.geometry.dilation,
        )  # fmt: skip
        scale = 1 / batch.targets[0].numel()
        losses, slope = found[0] * scale, (weights * (2 * scale)).to(weight)
        gradients = [g * slope.view(-1, *[1] * (g.ndim - 1)) for g in found[1:]]
        return losses, [gradients[0].view(weight.shape), *gradients[1 : 1 + len(bias)]]
