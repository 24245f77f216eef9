"""A 2-D convolution by FFT: the same layer as `nn.Conv2d`, parameters and function, at a cost that does not grow with
the kernel. For large kernels on few channels it is tens of times quicker on a CPU, where direct convolutions of such
shapes have no fast kernel in one of the two passes.
"""

import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

SMALLEST_KERNEL = 15  # sides below are quicker, or as quick, directly
MOST_CHANNEL_PAIRS = 64


class FFTConv2d(nn.Conv2d):
    """`nn.Conv2d` with stride 1, no dilation and one group: [B, C_in, H, W] -> [B, C_out, H', W']."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0):
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.border = (padding, padding)

    def forward(self, x: Tensor) -> Tensor:
        return fft_conv2d(x, self.weight, self.bias, self.border)


def fft_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """`F.conv2d` with stride 1, no dilation and one group; torch function modes can take it over as they can that."""
    if has_torch_function((x, weight)):
        return handle_torch_function(fft_conv2d, (x, weight), x, weight, bias, padding)
    shift = weight.new_zeros(len(weight)) if bias is None else bias
    return FFTCorrelation.apply(x.transpose(0, 1)[None], weight[None], shift[None], padding)[0].transpose(0, 1)


class FFTCorrelation(torch.autograd.Function):
    """x [Q, C, B, H, W], weight [P, D, C, h, w], bias [P, D] -> [P, D, B, H', W'], both passes by FFT.

    The correlation of every example with the kernels of P layers, of which Q = 1 or P have inputs of their own.
    With the kernel's first tap at -padding, a circle of max(H + padding, H') pixels is long enough: what wraps around
    meets zeros.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
        kh, kw = weight.shape[3:]
        extent = (x.shape[3] + 2 * padding[0] - kh + 1, x.shape[4] + 2 * padding[1] - kw + 1)
        circle = [
            scipy.fft.next_fast_len(max(n + p, m + k - 1 - p, m, k), real=True)
            for n, m, k, p in zip(x.shape[3:], extent, (kh, kw), padding, strict=True)
        ]
        taps = F.pad(weight, (0, circle[1] - kw, 0, circle[0] - kh)).roll((-padding[0], -padding[1]), (3, 4))
        spectra, kernels = torch.fft.rfft2(x, s=circle), torch.fft.rfft2(taps).conj().resolve_conj()
        ctx.save_for_backward(spectra, kernels)
        ctx.padding, ctx.shapes, ctx.circle = padding, (x.shape, weight.shape), circle
        product = _contract("qcb,pdc->pdb", spectra, kernels)
        product[..., 0, 0] += (bias * circle[0] * circle[1])[:, :, None]  # the bias is the mean
        # A copy, because a view that a function returns cannot be changed in place.
        return torch.fft.irfft2(product, s=circle)[..., : extent[0], : extent[1]].contiguous()

    @staticmethod
    def backward(ctx, grad):
        spectra, kernels = ctx.saved_tensors
        (x_shape, weight_shape), circle, padding = ctx.shapes, ctx.circle, ctx.padding
        errors = torch.fft.rfft2(grad, s=circle)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            product = _contract("pdb,pdc->pcb", errors, kernels.conj())
            grad_x = torch.fft.irfft2(product, s=circle)[..., : x_shape[3], : x_shape[4]]
            grad_x = grad_x.sum(0, keepdim=True) if x_shape[0] < len(grad_x) else grad_x
        if ctx.needs_input_grad[1]:
            product = _contract("pdb,qcb->pdc", errors, spectra.conj().resolve_conj())
            taps = torch.fft.irfft2(product.conj(), s=circle).roll(padding, (3, 4))
            grad_weight = taps[..., : weight_shape[3], : weight_shape[4]]
        if ctx.needs_input_grad[2]:
            grad_bias = errors[..., 0, 0].real.sum(2)
        return grad_x, grad_weight, grad_bias, None


def _contract(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """An einsum at every frequency, the last two axes; q is 1 or as long as p. By product and sum: these products of
    a few complex numbers are far from what a matrix product is good at."""
    left, right, out = equation.replace("->", ",").replace("q", "p").split(",")
    letters = sorted(set(left + right))
    views = []
    for axes, tensor in ((left, a), (right, b)):
        order = [axes.index(letter) for letter in letters if letter in axes]
        view = tensor.permute(*order, -2, -1)
        for position, letter in enumerate(letters):
            if letter not in axes:
                view = view.unsqueeze(position)
        views.append(view)
    summed = [i for i, letter in enumerate(letters) if letter not in out]
    kept = [letter for letter in letters if letter in out]
    lone = [i for i in summed if max(view.shape[i] for view in views) == 1]
    product = views[0] * views[1]
    product = product.squeeze(summed) if lone == summed else product.sum(summed)
    return product.permute(*[kept.index(letter) for letter in out], -2, -1)
