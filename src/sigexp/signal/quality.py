"""Losses and quality measures, one value per example.

Every function maps outputs and targets of one batch to a tensor of shape [B] and never reduces over the batch, so
that means, intervals and worst cases are the caller's choice.

Axes: B batch, C channels, H W pixels, T samples.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

MSE_FLOOR = 1e-20  # an exact predictor has 200 dB, not infinity, which JSON and TensorBoard cannot hold


def crop(signal: Tensor, border: int) -> Tensor:
    """Cut `border` samples from each end of every axis behind [B, C]."""
    if border == 0:
        return signal
    inner = slice(border, -border)
    return signal[(slice(None), slice(None), *[inner] * (signal.ndim - 2))]


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float64, where its device has it (Apple's has not)."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def mse(outputs: Tensor, targets: Tensor, *, border: int = 0) -> Tensor:
    """Mean squared error of [B, C, ...], `border` samples cut from every side: [B]."""
    outputs, targets = crop(outputs, border), crop(targets, border)
    return squared_error(outputs, targets) / outputs[0].numel()


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum of squared errors of [B, ...]: [B]. Torch function modes can take it over, as any function of torch."""
    if has_torch_function((outputs, targets)):
        return handle_torch_function(squared_error, (outputs, targets), outputs, targets)
    return SquaredError.apply(outputs, targets, 1)


class SquaredError(torch.autograd.Function):
    """Sum of squares over the axes behind the first `lead`, in a third of the passes that autograd takes."""

    @staticmethod
    def forward(ctx, outputs: Tensor, targets: Tensor, lead: int) -> Tensor:
        error = outputs - targets
        ctx.save_for_backward(error)
        lines = error.flatten(-2) if error.ndim > lead + 2 else error
        energy = torch.linalg.vector_norm(lines, dim=-1).square()
        return energy.sum(tuple(range(lead, energy.ndim))) if energy.ndim > lead else energy

    @staticmethod
    def backward(ctx, grad: Tensor):
        (error,) = ctx.saved_tensors
        slope = error * (2 * grad).view(*grad.shape, *[1] * (error.ndim - grad.ndim))
        # Only the outputs are learned; targets lead with fewer axes where members share them.
        return slope, (-slope if ctx.needs_input_grad[1] else None), None


def psnr(outputs: Tensor, targets: Tensor, *, border: int = 0) -> Tensor:
    """Peak signal-to-noise ratio in dB for signals of range 0..1, outputs clipped to that range: [B]."""
    error = precise(mse(outputs.clamp(0, 1), targets, border=border))
    return -10 * error.clamp_min(MSE_FLOOR).log10()


def ssim(outputs: Tensor, targets: Tensor, *, border: int = 0) -> Tensor:
    """Structural similarity of [B, C, H, W] in 0..1, outputs clipped, mean over channels: [B].

    Wang et al. 2004 with the 11x11 Gaussian window of sigma 1.5, equal to
    `skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False, data_range=1)`.
    """
    x, y = (precise(crop(s, border)) for s in (outputs.clamp(0, 1), targets))
    mean_x, mean_y, square_x, square_y, product = windowed(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    var_x, var_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return score.reshape(len(outputs), -1).mean(1)


def windowed(images: Tensor) -> Tensor:
    """Means of [B, C, H, W] under the window of SSIM: [B, C, H - 10, W - 10].

    A sum of shifted images: ten times as quick as a convolution, which has no fast kernel in float64.
    """
    taps = [math.exp(-0.5 * (offset / 1.5) ** 2) for offset in range(-5, 6)]
    weights = [tap / sum(taps) for tap in taps]
    for axis in (-2, -1):
        length = images.shape[axis] - len(weights) + 1
        mean = weights[0] * images.narrow(axis, 0, length)
        for offset, weight in enumerate(weights[1:], 1):
            mean.add_(images.narrow(axis, offset, length), alpha=weight)
        images = mean
    return images


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of logits [B, K] against class indices [B]: [B]."""
    return F.cross_entropy(outputs, targets, reduction="none")


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest of the logits [B, K] is not the class [B], else 0: [B]."""
    return (outputs.argmax(1) != targets).to(torch.float32)


def pixel_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of pixels on the wrong side of 1/2: [B]."""
    return (_mask(outputs) - _mask(targets)).abs_().mean(1)


def iou(outputs: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of the pixels above 1/2 (1 where both masks are empty): [B]."""
    a, b = _mask(outputs), _mask(targets)
    both = (a * b).sum(1)
    union = a.sum(1) + b.sum(1) - both
    return torch.where(union > 0, both / union.clamp_min(1), 1.0)


def _mask(x: Tensor) -> Tensor:
    """1 where [B, ...] is above 1/2, else 0: [B, N] float32, with which torch is three times as quick as with bool."""
    return torch.gt(x, 0.5, out=torch.empty_like(x, dtype=torch.float32)).flatten(1)


def position_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of a softmax over all positions of [B, 1, H, W] against a map that sums to 1: [B]."""
    return -(targets.flatten(1) * outputs.flatten(1).log_softmax(1)).sum(1)


def hit_rate(outputs: Tensor, targets: Tensor, *, tolerance_px: int = 1) -> Tensor:
    """1 where the maximum of [B, 1, H, W] lies within `tolerance_px` of the target's in both axes, else 0: [B]."""
    width = targets.shape[-1]
    found, true = outputs.flatten(1).argmax(1), targets.flatten(1).argmax(1)
    rows = (found // width - true // width).abs()
    columns = (found % width - true % width).abs()
    return ((rows <= tolerance_px) & (columns <= tolerance_px)).to(torch.float32)
