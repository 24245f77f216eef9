"""The linear families that models belong to, or are held against (bounds.py)."""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

from torch import nn

from sigexp.layers.chain import chain
from sigexp.layers.color import LinearizeSRGB
from sigexp.layers.fft_conv import FFTConv2d
from sigexp.layers.recurrence import LinearRecurrence
from sigexp.problem import Problem

Convolution = nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Form:
    """A family of linear models.

    kernel: taps (h, w) of a zero-padded convolution; None for a weight from every input to every output.
    separable: the kernel is one down the columns, then one along the rows. front: what is done to inputs first.
    """

    kernel: tuple[int, int] | None
    separable: bool = False
    front: nn.Module = field(default_factory=nn.Identity)

    def key(self) -> tuple[Any, ...]:
        """Equal for forms of runs with the same architecture that are the same."""
        return self.kernel, self.separable, repr(self.front)


def form_of(model: nn.Module) -> Form | None:
    """The linear family of which a model can be any member; None where it is not seen to have one."""
    modules = [module for module in chain(model) if not isinstance(module, nn.Identity)]
    front: nn.Module = nn.Identity()
    if modules and isinstance(modules[0], LinearizeSRGB):
        front, modules = modules[0], modules[1:]
    convolutions = [module for module in modules if same_extent(module)]
    if convolutions and len(convolutions) == len(modules):
        return _of_convolutions(convolutions, front)
    wide = all(bank.out_channels >= bank.in_channels for bank in convolutions)
    matrix = [type(module) for module in modules[len(convolutions) :]] == [nn.Flatten, nn.Linear, nn.Unflatten]
    return Form(None, front=front) if matrix and wide else None


def same_extent(module: nn.Module) -> TypeGuard[Convolution]:
    """Whether a module is a convolution whose outputs line up with its inputs, zeros beyond the border."""
    if type(module) not in (nn.Conv1d, nn.Conv2d, FFTConv2d):
        return False
    assert isinstance(module, Convolution)
    padded = module.padding_mode == "zeros" and tuple(module.padding) == tuple(k // 2 for k in module.kernel_size)
    odd = all(k % 2 for k in module.kernel_size)
    return padded and odd and {*module.stride, *module.dilation, module.groups} == {1} and module.bias is not None


def _of_convolutions(chain: list[Convolution], front: nn.Module) -> Form | None:
    """One convolution; one with a matrix behind it that loses nothing; or a column filter, then a row filter."""
    kernels = [((1, *conv.kernel_size)[-2], conv.kernel_size[-1]) for conv in chain]
    hidden, outputs = chain[0].out_channels, chain[-1].out_channels
    whole = hidden >= min(chain[0].weight[0].numel(), outputs)
    if len(chain) == 1 or (len(chain) == 2 and kernels[1] == (1, 1) and whole):
        return Form(kernels[0], front=front)
    if len(chain) == 2 and kernels[0][1] == kernels[1][0] == 1 and hidden == outputs:
        return Form((kernels[0][0], kernels[1][1]), separable=True, front=front)
    return None


def forms(model: nn.Module, problem: Problem, footprint: int, sight: tuple[int, ...] | None) -> dict[str, Form]:
    """What a model is to be held against: suffix of the reference's name -> form, the model's own first."""
    shape, target = problem.shapes()
    own = form_of(model)
    if shape[1:] != target[1:]:
        return {"": own or Form(None)}
    axes = len(shape) - 1
    linear = (1 if axes == 1 else footprint, footprint) if footprint % 2 else None
    if own is not None:
        return {"": own, **({_suffix(linear[-axes:]): Form(linear)} if linear and own.kernel is None else {})}
    # A recurrence forgets, but never all: where its derivative is lost in rounding says nothing of its form.
    remembers = any(isinstance(module, (nn.RNNBase, LinearRecurrence)) for module in model.modules())
    seen = (1 if axes == 1 else sight[0], sight[-1]) if sight and not remembers else None
    further = {_suffix(seen[-axes:]): Form(seen)} if seen and seen != linear else {}
    return {**({"": Form(linear)} if linear else {}), **further}


def _suffix(kernel: tuple[int, ...]) -> str:
    return "_" + "x".join(str(n) for n in kernel)
