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

from sigexp.population.compiling import Convolution, Linear, Optimizer, Pixels, Readout, Shape, Strides, Windows, kernel

Pair = tuple[int, int]
_recording = threading.local()  # calls: where to note what compiled functions are called


class NativeScan(torch.autograd.Function):
    """x [P, T, B, I], weights [P, D, H, I + 1 + H, 4] -> h [P, T, B, D H], last c [P, D, B, H]; float32 on the CPU.

    The columns of the weights belong to [x; 1; h[t-1]], their last axis to the gates i, f, g, o. Errors below 1e-6.
    """

    @staticmethod
    def forward(ctx, library: ctypes.CDLL, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        P, T, B, I = x.shape  # noqa: E741
        D, H = weights.shape[1:3]
        ctx.set_materialize_grads(False)
        ctx.library, ctx.shape, weights = library, Shape(P, D, T, B, I, H), weights.contiguous()
        block = library.lstm_block()
        blocks = -(-B // block)
        out, h = x.new_empty(P, T, B, D * H), x.new_empty(P, blocks, T, D, H, block)
        c = x.new_empty(P, blocks, D, T, H, block)
        pointers = (tensor.data_ptr() for tensor in (weights, out, h, c))
        _call(partial(library.lstm_forward, ctx.shape, x.data_ptr(), Strides(*x.stride()), *pointers))
        ctx.save_for_backward(x, weights, h, c)
        last = c[:, :, :, -1].permute(0, 2, 1, 4, 3).reshape(P, D, blocks * block, H)
        return out, last[:, :, :B]

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None):
        grad, grad_cell = gradients
        x, weights, h, c = ctx.saved_tensors
        P, T, B, I = x.shape  # noqa: E741
        D, H = weights.shape[1:3]
        blocks, block = h.shape[1], h.shape[-1]
        if grad is None:
            grad = x.new_zeros(()).expand(P, T, B, D * H)
        if grad_cell is not None:
            padded = torch.nn.functional.pad(grad_cell, (0, 0, 0, blocks * block - B))
            grad_cell = padded.unflatten(2, (blocks, block)).permute(0, 2, 1, 4, 3).contiguous()
        dx = x.new_empty(P, T, B, I) if ctx.needs_input_grad[1] else None
        dw = torch.empty_like(weights)
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in (grad_cell, dx, dw))
        _call(partial(
            ctx.library.lstm_backward, ctx.shape, x.data_ptr(), Strides(*x.stride()), weights.data_ptr(),
            h.data_ptr(), c.data_ptr(), grad.data_ptr(), Strides(*grad.stride()), *pointers,
        ))  # fmt: skip
        return None, dx, dw


def learn_readout(
    x: Tensor, target: Tensor, weights: Tensor, readout: Tensor, examples: Tensor, *, squashed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared errors [P, B] of LSTMs that are read out at every time, and the gradients of their sum, weighted by
    `examples` [P, B], by both weights.

    x [Q, B, I, T] and target [Q, B, O, T], Q = 1 or P; weights as of `NativeScan`; readout [P, O, D H + 1], the bias
    last; squashed: by a sigmoid before they are read.
    """
    library = kernel()
    assert library is not None
    members, directions, hidden, columns, _ = weights.shape
    fits = x.shape[2] + 1 + hidden == columns and readout.shape[2] == directions * hidden + 1
    if not fits or target.shape != (*x.shape[:2], readout.shape[1], x.shape[3]) or examples.shape[1] != x.shape[1]:
        raise ValueError(f"inputs {list(x.shape)} and targets {list(target.shape)} do not fit the model")
    shape = Shape(members, directions, x.shape[3], x.shape[1], x.shape[2], hidden)
    weights, readout, examples = (tensor.contiguous() for tensor in (weights, readout, examples))
    threads = torch.get_num_threads()
    parts = 1 if members % threads == 0 else threads  # of a member's examples, so that all threads have as much to do
    losses = torch.empty_like(examples)
    slopes = [tensor.new_empty(members, parts, *tensor.shape[1:]) for tensor in (weights, readout)]
    pointers = [tensor.data_ptr() for tensor in (weights, readout, examples, losses, *slopes)]
    given: list[Any] = []
    for tensor in (x, target):
        member, example, channel, time = tensor.stride()
        given += [tensor.data_ptr(), Strides(member if len(tensor) > 1 else 0, time, example, channel)]
    settings = Readout(readout.shape[1], squashed)
    _in_threads(
        lambda first, last: library.readout_learn(shape, settings, parts, first, last, *given, *pointers),
        members * parts,
    )
    return losses, *(slope.sum(1) if parts > 1 else slope[:, 0] for slope in slopes)  # type: ignore[return-value]


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
    _in_threads(lambda first, last: library.convolution_learn(shape, first, last, *pointers), len(weight))
    return found


def update(kind: int, beta2: float, epsilon: float, *tensors: Tensor | None) -> None:
    """`update_members` of update.c: parameters, first and second state, gradients [N]; owner [N] int64; lr, momentum,
    weight_decay [P]; turn [P] bool; step, alive (bool), losses [P]."""
    library = kernel()
    assert library is not None
    members, numbers = len(tensors[-1]), len(tensors[0])  # type: ignore[arg-type]
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    library.update_members(Optimizer(kind, members, numbers, beta2, epsilon), *pointers)


def moments_rows(
    x: Tensor, y: Tensor, centre: Tensor, kernel_size: Sequence[int], dilation: Sequence[int], bias: bool, table: Tensor
) -> None:
    """Fill rows [N, values] of `Moments` for x [N, C, H, W], padded, and y [N, D, H', W'] about centre [D, K]; on one
    thread."""
    library = kernel()
    assert library is not None
    shape = Windows(*x.shape[1:], *kernel_size, *dilation, len(centre), bias)
    tensors = [x.contiguous(), y.contiguous(), centre.contiguous(), table]
    _call(partial(library.moments_rows, shape, len(x), *(tensor.data_ptr() for tensor in tensors)))


def moments_sums(table: Tensor, index: Tensor, begin: Tensor, beyond: int) -> Tensor:
    """Sums of rows of the table [N, values], those of index from begin[i] to begin[i + 1] in row i: [passes, values],
    with zeros `beyond`."""
    library = kernel()
    assert library is not None
    passes, values = len(begin) - 1, table.shape[1]
    room = table.new_empty(passes * values + beyond)
    room[-beyond:] = 0
    pointers = [tensor.data_ptr() for tensor in (begin, index, table, room)]
    _in_threads(lambda first, last: library.moments_sums(values, first, last, *pointers), passes)
    return room[:-beyond].view(passes, values)


def moments_descend(
    linear: tuple[int, ...], optimizer: tuple[int, float, float], sums: Tensor, *tensors: Tensor | None
) -> None:
    """`moments_descend` of descent.c. linear: members, outputs, features, whether there is a bias, numbers in a row.
    optimizer: kind, beta2, epsilon. tensors: as they stand there, contiguous; all that changes, changes in place."""
    library = kernel()
    assert library is not None
    param = tensors[3]
    assert param is not None
    settings = Optimizer(optimizer[0], linear[0], len(param), *optimizer[1:])
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (sums, *tensors)]
    library.moments_descend(Linear(*linear), settings, len(sums), *pointers)


class DirectConvolution(torch.autograd.Function):
    """x [Q, C, B, H, W], Q = 1 or P, weight [P, D, C, h, w], bias [P, D] -> [P, D, B, H', W']; float32 on the CPU.

    Stride 1, no groups; padding and dilation as pairs. Where Q = 1 and P > 1, x gets no gradient. `size`: (H', W').
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
    ) -> Tensor:
        members, outputs = weight.shape[:2]
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        out = x.new_empty(members, outputs, x.shape[2], *size)
        shared = len(x) < members
        ctx.library = library
        ctx.shape = _convolution(shared, x.shape[2], weight, x.shape[3:], size, padding, dilation)
        ctx.save_for_backward(x, weight)
        pointers = [tensor.data_ptr() for tensor in (x, weight, bias, out)]
        _in_threads(lambda first, last: library.convolution_forward(ctx.shape, first, last, *pointers), members)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        x, weight = ctx.saved_tensors
        grad = gradients[0].contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        dw, db = torch.zeros_like(weight), weight.new_zeros(weight.shape[:2])
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, weight, grad, dx, dw, db)]
        _in_threads(
            lambda first, last: ctx.library.convolution_backward(ctx.shape, first, last, *pointers), len(weight)
        )
        return None, dx, dw, db, None, None, None


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
    _in_threads(lambda first, last: library.planes_of_pixels(first, last, *extent, strides, back, *pointers), shape[0])


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
        _in_threads(lambda first, last: run(first, last, *extent, relu, *pointers), len(x))
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
        _in_threads(lambda first, last: ctx.run(first, last, *ctx.settings, *pointers), len(x))
        return None, dx, dw, db, *[None] * 5


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, by N, of the rows of x [R, N]."""
    library = kernel()
    assert library is not None
    mean, variance = x.new_empty(len(x)), x.new_empty(len(x))
    pointers = [tensor.data_ptr() for tensor in (x, mean, variance)]
    _in_threads(lambda first, last: library.normalization_statistics(first, last, x.shape[1], *pointers), len(x))
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
        _call(partial(library.pooling_forward, *ctx.shape, x.data_ptr(), out.data_ptr(), which.data_ptr()))
        ctx.save_for_backward(which)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        (which,), grad = ctx.saved_tensors, gradients[0].contiguous()
        dx = grad.new_empty(ctx.shape)
        _call(partial(ctx.library.pooling_backward, *ctx.shape, grad.data_ptr(), which.data_ptr(), dx.data_ptr()))
        return None, dx


def _in_threads(work: Callable[[int, int], int | None], total: int) -> None:
    """work(first, last) for runs of `total` members or rows, as many side by side as torch has threads."""
    count = min(torch.get_num_threads(), total)
    bounds = [total * i // count for i in range(count + 1)]
    run = map if count == 1 else _executor(count).map
    _call(lambda: any(list(run(work, bounds[:-1], bounds[1:]))))


def _call(work: Callable[[], Any]) -> None:
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
