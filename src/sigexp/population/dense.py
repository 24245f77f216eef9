"""Products of full layers by oneDNN, which torch has beside the library of its own `linear`.

On some processors one of the two is two to four times as quick as the other, so they are timed (race.py). torch calls
oneDNN's in float32 for compiled modules alone, by an operator that it keeps to itself: `usable` says whether a release
has it as it is called here.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def usable(*tensors: Tensor) -> bool:
    """Whether oneDNN can have these."""
    fit = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.numel() for t in tensors)
    return fit and not torch.is_autocast_enabled("cpu") and _there()


@cache
def _there() -> bool:
    try:
        x, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(4.0)
        return torch.backends.mkldnn.is_available() and torch.equal(product(x, weight, bias), F.linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return False


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, K], weight [N, K], bias [N] -> [B, N]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class Dense(torch.autograd.Function):
    """`F.linear` of x [B, K], weight [N, K] and bias [N] or None."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x.contiguous(), weight)  # in the gradient of the weight it stands where weights do
        ctx.shifts = bias is not None
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        (x, weight), grad = ctx.saved_tensors, gradients[0]
        dx = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        dw = product(grad.t(), x.t()) if ctx.needs_input_grad[1] else None
        return dx, dw, grad.sum(0) if ctx.shifts else None
