"""Layers of populations as autograd functions of compiling.py's C functions."""

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigexp.population.compiling import ACROSS, Convolution, Optimizer, Pixels, kernel
from sigexp.population.geometry import Pair

_recording = threading.local()  # calls: where to note what compiled functions are called


def _convolution(
    shared: bool,
    examples: int,
    weight: Tensor,
    extent: Sequence[int],
    size: Sequence[int],
    padding: Pair,
    dilation: Pair,
) -> Convolution:
    """Of kernels [P, D, C, h, w] on images of `extent`, giving images of `size`."""
    members, outputs, inputs, *kernel = weight.shape
    if kernel == [1, 1] and padding == (0, 0):  # images are lines of pixels, which fill vectors better
        extent = size = (1, extent[0] * extent[1])
    return Convolution(members, shared, examples, inputs, outputs, *extent, *size, *kernel, *padding, *dilation)


def learn(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, size: Pair, padding: Pair, dilation: Pair
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of squared errors [P, B] of P convolutions of x [B, C, H, W] against target [B, D, ...], of `size` pixels,
    and half their gradients by the weight [P, D, C, h, w] and the bias [P, D]; stride 1, no groups."""
    library = kernel()
    assert library is not None
    if x.shape[1] != weight.shape[2] or target.numel() != len(x) * weight.shape[1] * size[0] * size[1]:
        raise ValueError(f"inputs {list(x.shape)} and targets {list(target.shape)} do not fit the model")
    x, weight, bias, target = (tensor.contiguous() for tensor in (x, weight, bias, target))
    shape = _convolution(True, len(x), weight, x.shape[2:], size, padding, dilation)
    found = weight.new_zeros(len(weight), len(x)), torch.zeros_like(weight), torch.zeros_like(bias)
    pointers = [tensor.data_ptr() for tensor in (x, weight, bias, target, *found)]
    in_threads(lambda first, last: library.convolution_learn(shape, first, last, *pointers), len(weight))
    return found


def update(kind: int, beta2: float, epsilon: float, *tensors: Tensor | None) -> None:
    """`update_members` of update.c: parameters, first and second state, gradients [N]; owner [N] int64; lr, momentum,
    weight_decay [P]; turn [P] bool; step, alive (bool), losses [P]."""
    library = kernel()
    assert library is not None
    members, numbers = len(tensors[-1]), len(tensors[0])  # type: ignore[arg-type]
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    library.update_members(Optimizer(kind, members, numbers, beta2, epsilon), *pointers)


def _across(x: Tensor) -> Tensor:
    """x [Q, C, B, H, W] as [Q, C, H, W, B]."""
    return x.permute(0, 1, 3, 4, 2)


def lies_across(x: Tensor) -> bool:
    """Whether an image [Q, C, B, H, W] has the same pixel of all examples side by side in memory."""
    return not x.is_contiguous() and _across(x).is_contiguous()


def goes_across(x: Tensor, weight: Tensor, size: Pair, padding: Pair, dilation: Pair) -> bool:
    """Whether `DirectConvolution` takes x that lies across, and can have a nonlinearity."""
    library = kernel()
    assert library is not None
    shape = _convolution(len(x) < len(weight), x.shape[2], weight, x.shape[3:], size, padding, dilation)
    shape.nonlinearity = 1
    return _across_library(library, shape) is not None


def _across_library(library: ctypes.CDLL, shape: Convolution) -> ctypes.CDLL | None:
    """The one that suits a convolution better than `library` does, if there is one."""
    return kernel(ACROSS) if library.across_takes(shape) else None


class DirectConvolution(torch.autograd.Function):
    """x [Q, C, B, H, W], Q = 1 or P, weight [P, D, C, h, w], bias [P, D] -> [P, D, B, H', W']; float32 on the CPU.

    Stride 1, no groups; padding and dilation as pairs. Where Q = 1 and P > 1, x gets no gradient. `size`: (H', W').
    With a nonlinearity (nonlinearity.py), its number and slope, the result lies across, as x may: where `goes_across`.
    """

    @staticmethod
    def forward(
        ctx,
        library: ctypes.CDLL,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        size: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        nonlinearity: int,
        slope: float,
    ) -> Tensor:
        (members, outputs), examples = weight.shape[:2], x.shape[2]
        ctx.shape = _convolution(len(x) < members, examples, weight, x.shape[3:], size, padding, dilation)
        ctx.shape.nonlinearity, ctx.shape.slope, ctx.shape.from_across = nonlinearity, slope, lies_across(x)
        weight, bias = weight.contiguous(), bias.contiguous()
        x = x if ctx.shape.from_across else x.contiguous()
        if nonlinearity:
            out = x.new_empty(members, outputs, *size, examples).permute(0, 1, 4, 2, 3)
        else:
            out = x.new_empty(members, outputs, examples, *size)
        ctx.save_for_backward(x, weight, *[out] * bool(nonlinearity))
        pointers = [tensor.data_ptr() for tensor in (x, weight, bias, out)]
        forward, ctx.way_back = library.convolution_forward, library.convolution_backward
        if across := _across_library(library, ctx.shape):
            forward, ctx.way_back = across.across_forward, across.across_backward
        elif nonlinearity or ctx.shape.from_across:
            raise ValueError("this convolution does not go across the examples: see `goes_across`")
        in_threads(lambda first, last: forward(ctx.shape, first, last, *pointers), members)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        x, weight, *values = ctx.saved_tensors
        out = values[0] if values else None
        grad = gradients[0].contiguous() if out is None else _across(gradients[0]).contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        dw, db = torch.zeros_like(weight), weight.new_zeros(weight.shape[:2])
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, weight, out, grad, dx, dw, db)]
        in_threads(lambda first, last: ctx.way_back(ctx.shape, first, last, *pointers), len(weight))
        return None, dx, dw, db, *[None] * 5


class Planes(torch.autograd.Function):
    """x [P, C, B, H, W], dense, with a pixel's channels side by side -> the same, contiguous; float32 on the CPU.

    The gradient lies as x does, so that what made x has no reason to walk over two layouts at once.
    """

    @staticmethod
    def forward(ctx, library: ctypes.CDLL, x: Tensor) -> Tensor:
        member, _, *others = x.stride()
        ctx.run, ctx.strides = partial(_planes, library, x.shape, Pixels(member, *others)), x.stride()
        out = x.new_empty(x.shape)
        ctx.run(False, x, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        grad = gradients[0].contiguous()
        dx = torch.empty_strided(grad.shape, ctx.strides, dtype=grad.dtype)
        ctx.run(True, dx, grad)
        return None, dx


def _planes(
    library: ctypes.CDLL, shape: torch.Size, strides: Pixels, back: bool, pixels: Tensor, planes: Tensor
) -> None:
    extent, pointers = shape[1:], (pixels.data_ptr(), planes.data_ptr())
    in_threads(lambda first, last: library.planes_of_pixels(first, last, *extent, strides, back, *pointers), shape[0])


class Normalization(torch.autograd.Function):
    """x [R, ...] by the mean and variance of each row, then times weight and plus bias [R]; float32 on the CPU.

    Where `pools`, the maxima of squares of 2 x 2 of x [R, B, H, W]: [R, B, H / 2, W / 2]; where `relu`, ReLU of that.
    The gradient takes it that mean and variance are those of x.
    """

    @staticmethod
    def forward(
        ctx, library: ctypes.CDLL, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float,
        pools: bool, relu: bool,
    ):  # fmt: skip
        inverse = (variance + eps).rsqrt()
        factor, shift = weight * inverse, bias.contiguous()
        kept: list[Tensor] = []  # of the maxima: the values of x that they come from, and their places
        if pools:
            run, ctx.run, extent = library.maxima_forward, library.maxima_backward, x.shape[1:]
            out = x.new_empty(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
            kept = [torch.empty_like(out), torch.empty_like(out, dtype=torch.uint8)]
        else:
            run, ctx.run, extent = library.normalization_forward, library.normalization_backward, x[:1].flatten().shape
            out = torch.empty_like(x)
        pointers = [tensor.data_ptr() for tensor in (x, mean, factor, shift, out, *kept)]
        in_threads(lambda first, last: run(first, last, *extent, relu, *pointers), len(x))
        # Below zero the places say so; without maxima it is computed again.
        ctx.settings, again = (extent, ()) if pools else ((*extent, relu), (shift,))
        ctx.save_for_backward(x, *kept, mean, inverse, factor, *again)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        x, *values = ctx.saved_tensors
        grad, dx = gradients[0].contiguous(), torch.empty_like(x)
        dw, db = torch.empty_like(values[-1]), torch.empty_like(values[-1])
        pointers = [tensor.data_ptr() for tensor in (x, grad, *values, dx, dw, db)]
        in_threads(lambda first, last: ctx.run(first, last, *ctx.settings, *pointers), len(x))
        return None, dx, dw, db, *[None] * 5


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, by N, of the rows of x [R, N]."""
    library = kernel()
    assert library is not None
    mean, variance = x.new_empty(len(x)), x.new_empty(len(x))
    pointers = [tensor.data_ptr() for tensor in (x, mean, variance)]
    in_threads(lambda first, last: library.normalization_statistics(first, last, x.shape[1], *pointers), len(x))
    return mean, variance


class Pooling(torch.autograd.Function):
    """Maxima of squares of 2 x 2: [N, H, W] -> [N, H / 2, W / 2], rounded down; float32 on the CPU."""

    @staticmethod
    def forward(ctx, library: ctypes.CDLL, x: Tensor) -> Tensor:
        x = x.contiguous()
        count, height, width = x.shape
        ctx.library, ctx.shape = library, (count, height, width)
        out = x.new_empty(count, height // 2, width // 2)
        which = torch.empty_like(out, dtype=torch.uint8)
        call(partial(library.pooling_forward, *ctx.shape, x.data_ptr(), out.data_ptr(), which.data_ptr()))
        ctx.save_for_backward(which)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        (which,), grad = ctx.saved_tensors, gradients[0].contiguous()
        dx = grad.new_empty(ctx.shape)
        call(partial(ctx.library.pooling_backward, *ctx.shape, grad.data_ptr(), which.data_ptr(), dx.data_ptr()))
        return None, dx


def in_threads(work: Callable[[int, int], int | None], total: int) -> None:
    """work(first, last) for runs of `total` members or rows, as many side by side as torch has threads."""
    count = min(torch.get_num_threads(), total)
    bounds = [total * i // count for i in range(count + 1)]
    run = map if count == 1 else _executor(count).map
    call(lambda: any(list(run(work, bounds[:-1], bounds[1:]))))


def call(work: Callable[[], Any]) -> None:
    """Call a compiled function, which returns whether memory did not do."""
    if (calls := getattr(_recording, "calls", None)) is not None:
        calls.append(partial(_checked, work))
    _checked(work)


def _checked(work: Callable[[], Any]) -> None:
    if work():
        raise MemoryError("no memory for a compiled layer")


@contextmanager
def recorded(calls: list[Callable[[], Any]]) -> Iterator[None]:
    """Note the calls of compiled functions in this thread, which can be called again while their tensors live."""
    _recording.calls = calls
    try:
        yield
    finally:
        _recording.calls = None


@cache
def _executor(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="layer")
