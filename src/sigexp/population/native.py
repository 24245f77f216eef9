"""The LSTM scan as C: lstm.c, compiled for this very machine at its first use and kept in the cache folder.

The compiler is `$CC`, else cc, gcc or clang. Where there is none, or anything else fails, `kernel()` gives None, says
so once in the log, and the torch version in recurrent.py does the work. SIGEXP_NATIVE=0 has the same effect.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigexp.machine import cache_dir

log = logging.getLogger("sigexp")

SOURCE = Path(__file__).with_name("lstm.c")
# Not -ffast-math: NaN has to stay NaN, so that a member that diverged is seen.
FLAGS = (
    "-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared",
    "-fPIC", "-w",
)  # fmt: skip
TIMEOUT_S = 60


class Shape(ctypes.Structure):
    """`Shape` of lstm.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("members", "directions", "time", "examples", "inputs", "hidden")]


class Strides(ctypes.Structure):
    """`Strides` of lstm.c, of a tensor [P, T, B, C] in elements."""

    _fields_ = [(name, ctypes.c_int64) for name in ("member", "time", "example", "channel")]


POINTER = ctypes.c_void_p
SIGNATURES = {
    "lstm_block": (ctypes.c_int64, ()),
    "lstm_forward": (ctypes.c_int, (Shape, POINTER, Strides, *[POINTER] * 4)),
    "lstm_backward": (ctypes.c_int, (Shape, POINTER, Strides, *[POINTER] * 4, Strides, *[POINTER] * 3)),
}


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled lstm.c, or None. The first call on a machine takes a second."""
    if os.environ.get("SIGEXP_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(_built()))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        return library
    except (OSError, ValueError, RuntimeError, AttributeError, subprocess.SubprocessError) as reason:
        log.info("LSTMs train without the compiled kernel: %s", " ".join(str(reason).split())[:200])
        return None


def _built() -> Path:
    """Path of the compiled library, after compiling it where that is still to do."""
    compiler = _compiler()
    # What the compiler defines names its own version and every extension of this processor.
    target = _run([*compiler, *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    digest = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), repr((compiler, FLAGS)).encode(), target]))
    path = cache_dir() / f"lstm-{digest.hexdigest()[:24]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(prefix=".lstm-", suffix=".so", dir=path.parent)
    os.close(descriptor)
    try:
        _run([*compiler, *FLAGS, str(SOURCE), "-o", unfinished])
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            os.unlink(unfinished)
    return path


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
