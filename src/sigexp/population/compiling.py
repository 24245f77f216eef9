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
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigexp.machine import cache_dir

log = logging.getLogger("sigexp")

HERE = Path(__file__).parent
# Two libraries, because most runs have no LSTM and need not wait for its compiler.
LAYERS, LSTM = "layers", "lstm"
SOURCES = {
    LAYERS: ["across", "convolution", "descent", "moments", "normalization", "pointwise", "update"],
    LSTM: ["lstm", "readout"],
}
_headers = "across exponential floats lstm pointwise products update vectors"
HEADERS = [HERE / f"{name}.h" for name in _headers.split()]
# Not -ffast-math: NaN has to stay NaN, so that a member that diverged is seen.
FLAGS = (
    "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared",
    "-fPIC", "-w",
)  # fmt: skip
IN_VECTORS = ("across", "convolution")  # with -O2 they are as quick, and compiled in half the time
TIMEOUT_S = 60
_begun: set[str] = set()  # parts that are compiled, or are being compiled


class Shape(ctypes.Structure):
    """`Shape` of lstm.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("members", "directions", "time", "examples", "inputs", "hidden")]


class Strides(ctypes.Structure):
    """`Strides` of lstm.h, of a tensor [P, T, B, C] in elements."""

    _fields_ = [(name, ctypes.c_int64) for name in ("member", "time", "example", "channel")]


class Readout(ctypes.Structure):
    """`Readout` of readout.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("outputs", "squashed")]


class Convolution(ctypes.Structure):
    """`Shape` of products.h."""

    _names = (
        "members shared examples inputs outputs height width out_height out_width kernel_height kernel_width pad_rows "
        "pad_columns step_rows step_columns from_across nonlinearity"
    )
    _fields_ = [*((name, ctypes.c_int64) for name in _names.split()), ("slope", ctypes.c_double)]


class Pixels(ctypes.Structure):
    """`Pixels` of convolution.c, in elements."""

    _fields_ = [(name, ctypes.c_int64) for name in ("member", "example", "row", "pixel")]


class Windows(ctypes.Structure):
    """`Windows` of moments.c."""

    _names = "channels height width kernel_height kernel_width step_rows step_columns outputs bias"
    _fields_ = [(name, ctypes.c_int64) for name in _names.split()]


class Linear(ctypes.Structure):
    """`Linear` of descent.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("members", "outputs", "features", "bias", "values")]


class Optimizer(ctypes.Structure):
    """`Optimizer` of update.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "members", "numbers")),
        *((name, ctypes.c_double) for name in ("beta2", "epsilon")),
    ]


POINTER, NUMBER, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
OF_LAYERS = {
    "convolution_forward": (ctypes.c_int, (Convolution, NUMBER, NUMBER, *[POINTER] * 4)),
    "convolution_backward": (ctypes.c_int, (Convolution, NUMBER, NUMBER, *[POINTER] * 7)),
    "convolution_learn": (ctypes.c_int, (Convolution, NUMBER, NUMBER, *[POINTER] * 7)),
    "across_takes": (ctypes.c_int, (ctypes.POINTER(Convolution),)),
    "planes_of_pixels": (None, (*[NUMBER] * 6, Pixels, FLAG, *[POINTER] * 2)),
    "update_members": (None, (Optimizer, *[POINTER] * 12)),
    "moments_rows": (ctypes.c_int, (Windows, NUMBER, *[POINTER] * 4)),
    "moments_sums": (None, (*[NUMBER] * 3, *[POINTER] * 4)),
    "moments_descend": (None, (Linear, Optimizer, NUMBER, *[POINTER] * 17)),
    "normalization_statistics": (None, (*[NUMBER] * 3, *[POINTER] * 3)),
    "normalization_forward": (None, (*[NUMBER] * 3, FLAG, *[POINTER] * 5)),
    "normalization_backward": (None, (*[NUMBER] * 3, FLAG, *[POINTER] * 9)),
    "pooling_forward": (None, (*[NUMBER] * 3, *[POINTER] * 3)),
    "pooling_backward": (None, (*[NUMBER] * 3, *[POINTER] * 3)),
    "maxima_forward": (None, (*[NUMBER] * 5, FLAG, *[POINTER] * 7)),
    "maxima_backward": (None, (*[NUMBER] * 5, *[POINTER] * 10)),
}
OF_LSTM = {
    "lstm_block": (ctypes.c_int64, ()),
    "lstm_forward": (ctypes.c_int, (Shape, POINTER, Strides, *[POINTER] * 4)),
    "lstm_backward": (ctypes.c_int, (Shape, POINTER, Strides, *[POINTER] * 4, Strides, *[POINTER] * 3)),
    "readout_learn": (
        ctypes.c_int,
        (Shape, Readout, *[NUMBER] * 3, POINTER, Strides, POINTER, Strides, *[POINTER] * 6),
    ),
}
SIGNATURES: dict[str, dict[str, tuple[Any, tuple[Any, ...]]]] = {LAYERS: OF_LAYERS, LSTM: OF_LSTM}


@cache
def kernel(part: str = LAYERS) -> ctypes.CDLL | None:
    """The compiled functions of a part, or None. The first call on a machine takes two seconds."""
    if os.environ.get("SIGEXP_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(_built(part)))
        for name, (result, arguments) in SIGNATURES[part].items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        return library
    except (OSError, ValueError, RuntimeError, AttributeError, subprocess.SubprocessError) as reason:
        log.info("training goes on without compiled kernels: %s", " ".join(str(reason).split())[:200])
        return None


def parts_of(model: nn.Module) -> list[str]:
    """Which parts a model's layers are in."""
    return [LAYERS, *[LSTM] * any(isinstance(module, nn.LSTM) for module in model.modules())]


def begin(part: str = LAYERS) -> None:
    """Compile in a thread what is still to be compiled, while data are drawn; `kernel` waits for it."""

    def build() -> None:
        with suppress(Exception):  # which `kernel` will meet again, and tell
            _built(part)

    if os.environ.get("SIGEXP_NATIVE") != "0" and part not in _begun:
        _begun.add(part)
        threading.Thread(target=build, daemon=True).start()


def takes(*tensors: Tensor, part: str = LAYERS) -> bool:
    """Whether the compiled functions of a part can do these, and are there."""
    usable = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    usable = usable and all(t.numel() for t in tensors) and not torch.is_autocast_enabled("cpu")
    return usable and kernel(part) is not None


def _built(part: str) -> Path:
    """Path of a compiled library, after compiling it where that is still to do."""
    compiler = _compiler()
    # What the compiler defines names its own version and every extension of this processor.
    target = _run([*compiler, *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    sources = [HERE / f"{name}.c" for name in SOURCES[part]]
    texts = [source.read_bytes() for source in [*HEADERS, *sources]]
    digest = hashlib.sha256(b"\0".join([*texts, repr((compiler, FLAGS, IN_VECTORS)).encode(), target]))
    path = cache_dir() / f"kernels-{part}-{digest.hexdigest()[:24]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if not path.exists():  # else another process has compiled it meanwhile
            _compile(compiler, sources, path)
    return path


def _compile(compiler: Sequence[str], sources: Sequence[Path], path: Path) -> None:
    """Sources side by side, because it is what a first run waits for."""
    with tempfile.TemporaryDirectory(prefix=".kernels-", dir=path.parent) as place, ThreadPoolExecutor() as pool:
        objects = [f"{place}/{source.stem}.o" for source in sources]

        def build(source: Path, path: str) -> None:
            _run([*compiler, "-O2" if source.stem in IN_VECTORS else "-O3", *FLAGS, "-c", str(source), "-o", path])

        list(pool.map(build, sources, objects))
        _run([*compiler, *FLAGS, *objects, "-o", f"{place}/{path.name}"])
        os.replace(f"{place}/{path.name}", path)


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
