"""Layers of populations in C, compiled for this machine at their first use and kept in the cache.

The compiler is `$CC`, else cc, gcc or clang. Where there is none, or anything else fails, `kernel()` gives None, says
so once in the log, and torch does the work. SIGEXP_NATIVE=0 has the same effect.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigexp.machine import cache_dir

log = logging.getLogger("sigexp")

SOURCES = [Path(__file__).with_name(name) for name in ("convolution.c", "lstm.c", "normalization.c", "pooling.c")]
# Not -ffast-math: NaN has to stay NaN, so that a member that diverged is seen.
FLAGS = (
    "-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared",
    "-fPIC", "-w",
)  # fmt: skip
TIMEOUT_S = 60


Pair = tuple[int, int]


class Shape(ctypes.Structure):
    """`Shape` of lstm.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("members", "directions", "time", "examples", "inputs", "hidden")]


class Strides(ctypes.Structure):
    """`Strides` of lstm.c, of a tensor [P, T, B, C] in elements."""

    _fields_ = [(name, ctypes.c_int64) for name in ("member", "time", "example", "channel")]


class Convolution(ctypes.Structure):
    """`Shape` of convolution.c."""

    _names = (
        "members shared examples inputs outputs height width out_height out_width kernel_height kernel_width pad_rows "
        "pad_columns step_rows step_columns"
    )
    _fields_ = [(name, ctypes.c_int64) for name in _names.split()]


POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int64
SIGNATURES = {
    "convolution_forward": (ctypes.c_int, (Convolution, NUMBER, NUMBER, *[POINTER] * 4)),
    "convolution_backward": (ctypes.c_int, (Convolution, NUMBER, NUMBER, *[POINTER] * 6)),
    "convolution_learn": (ctypes.c_int, (Convolution, NUMBER, NUMBER, *[POINTER] * 7)),
    "normalization_statistics": (None, (*[NUMBER] * 3, *[POINTER] * 3)),
    "normalization_forward": (None, (*[NUMBER] * 3, *[POINTER] * 5)),
    "normalization_backward": (None, (*[NUMBER] * 3, *[POINTER] * 8)),
    "pooling_forward": (None, (*[NUMBER] * 3, *[POINTER] * 3)),
    "pooling_backward": (None, (*[NUMBER] * 3, *[POINTER] * 3)),
    "lstm_block": (ctypes.c_int64, ()),
    "lstm_forward": (ctypes.c_int, (Shape, POINTER, Strides, *[POINTER] * 4)),
    "lstm_backward": (ctypes.c_int, (Shape, POINTER, Strides, *[POINTER] * 4, Strides, *[POINTER] * 3)),
}


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled functions, or None. The first call on a machine takes two seconds."""
    if os.environ.get("SIGEXP_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(_built()))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        return library
    except (OSError, ValueError, RuntimeError, AttributeError, subprocess.SubprocessError) as reason:
        log.info("training goes on without compiled kernels: %s", " ".join(str(reason).split())[:200])
        return None


def takes(*tensors: Tensor) -> bool:
    """Whether the compiled functions can do these, and are there."""
    usable = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return usable and all(t.numel() for t in tensors) and not torch.is_autocast_enabled("cpu") and kernel() is not None


def _built() -> Path:
    """Path of the compiled library, after compiling it where that is still to do."""
    compiler = _compiler()
    # What the compiler defines names its own version and every extension of this processor.
    target = _run([*compiler, *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    sources = [source.read_bytes() for source in SOURCES]
    digest = hashlib.sha256(b"\0".join([*sources, repr((compiler, FLAGS)).encode(), target]))
    path = cache_dir() / f"kernels-{digest.hexdigest()[:24]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if not path.exists():  # else another process has compiled it meanwhile
            _compile(compiler, path)
    return path


def _compile(compiler: Sequence[str], path: Path) -> None:
    descriptor, unfinished = tempfile.mkstemp(prefix=".kernels-", suffix=".so", dir=path.parent)
    os.close(descriptor)
    try:
        _run([*compiler, *FLAGS, *map(str, SOURCES), "-o", unfinished])
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            os.unlink(unfinished)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that of many runs that start together one compiles and the others wait. The system
    lets go of it however the process ends; a file system without locks grants it to everybody."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compiler() -> list[str]:
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        raise OSError("there is no C compiler (cc, gcc or clang)")
    return [found]


def _run(command: list[str]) -> bytes:
    return subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    ).stdout  # fmt: skip


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
        if library.lstm_forward(ctx.shape, x.data_ptr(), Strides(*x.stride()), *pointers):
            raise MemoryError("no memory for an LSTM")
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
        if ctx.library.lstm_backward(
            ctx.shape, x.data_ptr(), Strides(*x.stride()), weights.data_ptr(), h.data_ptr(), c.data_ptr(),
            grad.data_ptr(), Strides(*grad.stride()), *pointers,
        ):  # fmt: skip
            raise MemoryError("no memory for an LSTM's gradients")
        return None, dx, dw


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
    x, weight, bias, target = (tensor.contiguous() for tensor in (x, weight, bias, target))
    shape = _convolution(True, len(x), weight, x.shape[2:], size, padding, dilation)
    found = weight.new_zeros(len(weight), len(x)), torch.zeros_like(weight), torch.zeros_like(bias)
    pointers = [tensor.data_ptr() for tensor in (x, weight, bias, target, *found)]
    _in_threads(lambda first, last: library.convolution_learn(shape, first, last, *pointers), len(weight))
    return found


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


class Normalization(torch.autograd.Function):
    """x [R, N] by the mean and variance of each row, then times weight and plus bias [R]; float32 on the CPU."""

    @staticmethod
    def forward(
        ctx, library: ctypes.CDLL, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps
    ):
        inverse = (variance + eps).rsqrt()
        factor, shift, out = weight * inverse, bias.contiguous(), torch.empty_like(x)
        pointers = [tensor.data_ptr() for tensor in (x, mean, factor, shift, out)]
        _in_threads(lambda first, last: library.normalization_forward(first, last, x.shape[1], *pointers), len(x))
        ctx.library = library
        ctx.save_for_backward(x, mean, inverse, factor)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        x, mean, inverse, factor = ctx.saved_tensors
        grad, dx = gradients[0].contiguous(), torch.empty_like(x)
        dw, db = torch.empty_like(mean), torch.empty_like(mean)
        pointers = [tensor.data_ptr() for tensor in (x, grad, mean, inverse, factor, dx, dw, db)]
        _in_threads(lambda first, last: ctx.library.normalization_backward(first, last, x.shape[1], *pointers), len(x))
        return None, dx, dw, db, None, None, None


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
        library.pooling_forward(*ctx.shape, x.data_ptr(), out.data_ptr(), which.data_ptr())
        ctx.save_for_backward(which)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        (which,), grad = ctx.saved_tensors, gradients[0].contiguous()
        dx = grad.new_empty(ctx.shape)
        ctx.library.pooling_backward(*ctx.shape, grad.data_ptr(), which.data_ptr(), dx.data_ptr())
        return None, dx


def _in_threads(work: Callable[[int, int], int | None], total: int) -> None:
    """work(first, last) for runs of `total` members or rows, as many side by side as torch has threads."""
    count = min(torch.get_num_threads(), total)
    bounds = [total * i // count for i in range(count + 1)]
    run = map if count == 1 else _executor(count).map
    if any(list(run(work, bounds[:-1], bounds[1:]))):
        raise MemoryError("no memory for a compiled layer")


@cache
def _executor(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="layer")
