"""Models of a single convolution, or of LSTMs that are read out, under squared error: losses and gradients in one
compiled pass, without autograd.

What autograd, vmap and separate passes for outputs, errors and gradients cost is most of the time of such small models.
Axes: P members, B examples, C and D input and output channels, T samples.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigexp.layers.chain import chain
from sigexp.layers.lstm import SequenceLSTM
from sigexp.population import compiling, native, scan
from sigexp.population.geometry import Geometry
from sigexp.population.moments import front_and_layer
from sigexp.population.recurrent import joined
from sigexp.problem import Batch, PerExample
from sigexp.signal.quality import mse


def single_pass(template: nn.Module, loss: PerExample) -> "SingleConvolution | ReadOutLSTM | None":
    """The way to learn in a single pass, of models that have one."""
    return SingleConvolution.of(template, loss) or ReadOutLSTM.of(template, loss)


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

    def takes(self, params: Mapping[str, Tensor], batch: Batch, weights: Tensor) -> bool:
        return weights.ndim == 1 and compiling.takes(batch.inputs, batch.targets, *params.values())

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


class ReadOutLSTM:
    """One layer of LSTMs over sequences, a sigmoid or none, and a convolution of one sample; `of` finds them."""

    def __init__(self, lstm: nn.LSTM, squashed: bool) -> None:
        self.directions, self.has_bias, self.squashed = 1 + lstm.bidirectional, bool(lstm.bias), squashed

    @classmethod
    def of(cls, template: nn.Module, loss: PerExample) -> "ReadOutLSTM | None":
        """None for any other model, or another loss than `mse`."""
        if loss is not mse or any(m._forward_hooks or m._forward_pre_hooks for m in template.modules()):
            return None
        modules = chain(template)
        squashed = [type(module) for module in modules] == [SequenceLSTM, nn.Sigmoid, nn.Conv1d]
        if not squashed and [type(module) for module in modules] != [SequenceLSTM, nn.Conv1d]:
            return None
        lstm, layer = modules[0].lstm, modules[-1]
        assert isinstance(lstm, nn.LSTM)
        assert isinstance(layer, nn.Conv1d)
        plain = layer.kernel_size == layer.stride == (1,) and layer.groups == 1 and layer.padding in ((0,), "valid")
        learned = all(parameter.requires_grad for parameter in template.parameters())
        return cls(lstm, squashed) if plain and learned and lstm.num_layers == 1 and not lstm.proj_size else None

    def takes(self, params: Mapping[str, Tensor], batch: Batch, weights: Tensor) -> bool:
        return compiling.takes(batch.inputs, batch.targets, *params.values(), part=compiling.LSTM)

    def losses_and_gradients(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch, weights: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """As `Together.losses_and_gradients`."""
        tensors, each = list(params.values()), 4 if self.has_bias else 2
        recurrent, (kernel, *bias) = tensors[: each * self.directions], tensors[each * self.directions :]
        own = [recurrent[each * d : each * (d + 1)] for d in range(self.directions)]
        shift = bias[0] if bias else kernel.new_zeros(kernel.shape[:2])
        readout = torch.cat([kernel.squeeze(3), shift.unsqueeze(2)], 2)
        shared = weights.ndim == 1
        x, target = (part[None] if shared else part for part in batch)
        each_example = (weights[:, None] if shared else weights).to(kernel).expand(len(kernel), x.shape[1])
        losses, slopes, reads = scan.learn_readout(
            x, target, joined(own, self.has_bias), readout, each_example, squashed=self.squashed
        )
        inputs, gradients = x.shape[2], list[Tensor | None]()
        for slope in slopes.permute(0, 1, 4, 2, 3).flatten(2, 3).unbind(1):  # [P, 4 H, I + 1 + H]
            gradients += [slope[..., :inputs], slope[..., inputs + 1 :], *[slope[..., inputs]] * (each - 2)]
        return losses, [*gradients, reads[..., :-1].unsqueeze(3), *[reads[..., -1]] * len(bias)]
