"""Layers of populations in C, as ctypes knows them (building.py compiles them).

Where there is no compiler, or anything else fails, `kernel()` gives None, says so in the log, once for each part, and
torch or another part does the work. SIGEXP_NATIVE=0 has the same effect.
"""

import ctypes
import logging
import math
import os
import subprocess
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sigexp.layers.chain import chain
from sigexp.population.building import ACROSS, LAYERS, LSTM, built

log = logging.getLogger("sigexp")


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


SOME_TAPS, FEW_PIXELS = 9, 2048  # as in convolution.c
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
OF_ACROSS = {
    "across_forward": (ctypes.c_int, (Convolution, NUMBER, NUMBER, *[POINTER] * 4)),
    "across_backward": (ctypes.c_int, (Convolution, NUMBER, NUMBER, *[POINTER] * 7)),
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
SIGNATURES: dict[str, dict[str, tuple[Any, tuple[Any, ...]]]] = {LAYERS: OF_LAYERS, ACROSS: OF_ACROSS, LSTM: OF_LSTM}


@cache
def kernel(part: str = LAYERS) -> ctypes.CDLL | None:
    """The compiled functions of a part, or None. The first call on a machine takes two seconds."""
    if os.environ.get("SIGEXP_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(built(part)))
        for name, (result, arguments) in SIGNATURES[part].items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        return library
    except (OSError, ValueError, RuntimeError, AttributeError, subprocess.SubprocessError) as reason:
        log.info("training goes on without compiled kernels (%s): %s", part, " ".join(str(reason).split())[:200])
        return None


def parts_of(model: nn.Module, pixels: int) -> list[str]:
    """Which parts a model may need, whose inputs have so many pixels or samples."""
    layers = chain(model)
    one_large = pixels > FEW_PIXELS and len(layers) == 1 and isinstance(layers[0], nn.Conv1d | nn.Conv2d)
    across = not one_large and any(p.ndim > 2 and math.prod(p.shape[2:]) >= SOME_TAPS for p in model.parameters())
    return [LAYERS, *[ACROSS] * across, *[LSTM] * any(isinstance(module, nn.LSTM) for module in model.modules())]


def takes(*tensors: Tensor, part: str = LAYERS) -> bool:
    """Whether the compiled functions of a part can do these, and are there."""
    for tensor in tensors:  # a loop, because every pass asks several times
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.numel():
            return False
    return not torch.is_autocast_enabled("cpu") and kernel(part) is not None
