"""Convolutions of a population: P members' kernels on a minibatch that they share, or each on its own activations.

Activations lie in memory as planes [P, C, B, H, W], whatever their logical order, because then one matrix product per
member covers a whole minibatch, and where the input is shared one product covers all members; between two compiled
convolutions as [P, C, H, W, B] (nonlinearity.py). Four algorithms make a convolution of such products, a fifth of none;
`Kernels` says which one a layer takes, and is filled by timing them (race.py).

direct: compiled (convolution.c, across.c), where there is a compiler: no windows are copied; most of a core's peak.
patches: the windows of the input as columns (im2col), then one product; best for few input channels.
scatter: the product first, then its rows are shifted and added (col2im); best for few output channels.
fft: a product of spectra; for large kernels. Those of a shared minibatch are computed once for all members.
library: torch's own convolution, with P times the outputs where the input is shared, else member by member.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigexp.layers.fft_conv import FFTCorrelation
from sigexp.population import compiling, native
from sigexp.population.geometry import Geometry
from sigexp.population.nonlinearity import Nonlinearity

WINDOW_VALUES = 2**21  # numbers in the columns that are made at a time
SMALL = 8  # pixels of a side, below which vectors are not filled and products of matrices may do better
LARGEST_WINDOWS = 2**26  # bytes of one example's windows as columns, above which they are not made


@dataclass
class Kernels:
    """Which algorithm each layer takes that has several; `choose` is asked where nothing is known yet, else the first.

    chosen: key of a layer -> name. A key names what the layer is, without the number of examples and members.
    """

    chosen: dict[str, str] = field(default_factory=dict)
    choose: Callable[[dict[str, Callable], tuple[Any, ...]], str] | None = None

    def pick(self, key: str, candidates: dict[str, Callable], arguments: tuple[Any, ...]) -> Any:
        if len(candidates) == 1:
            return next(iter(candidates.values()))(*arguments)
        name = self.chosen.get(key)
        if name not in candidates:
            name = self.choose(candidates, arguments) if self.choose else next(iter(candidates))
            if self.choose:
                self.chosen[key] = name
        return candidates[name](*arguments)


def convolve(
    kernels: Kernels,
    geometry: Geometry,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    shared: bool,
    after: Nonlinearity | None = None,
) -> Tensor:
    """x [B, C, H, W] if shared, else [P, B, C, H, W]; weight [P, D, C, h, w]; bias [P, D] -> [P, B, D, H', W']."""
    planes = (x[None] if shared else x).transpose(1, 2)  # [Q, C, B, H, W], Q = 1 or P
    candidates = _candidates(geometry, planes, weight)
    if not (native.lies_across(planes) and "direct" in candidates and _goes_across(geometry, planes, weight)):
        planes = _planes(planes)
    if after:
        candidates = {
            name: partial(by_direct, after=after) if name == "direct" else partial(_then, after, way)
            for name, way in candidates.items()
        }
    key = " ".join(
        str(part).replace(" ", "")
        for part in ("conv", "shared" if shared else "own", tuple(weight.shape[1:]), tuple(planes.shape[-2:]),
                     geometry.stride, geometry.dilation, geometry.groups)
    )  # fmt: skip
    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
    return kernels.pick(key, candidates, (geometry, planes, weight, bias)).transpose(1, 2)


def _planes(x: Tensor) -> Tensor:
    """x [Q, C, B, H, W], contiguous. torch copies what an LSTM gives, channels innermost, number by number."""
    dense = sorted((stride, n) for stride, n in zip(x.stride(), x.shape, strict=True) if n > 1)
    if native.lies_across(x) and compiling.takes(x):  # as if examples were channels
        lines = x.flatten(3).flatten(0, 1)[:, :, None, None]  # [Q C, B, 1, 1, H W]
        return native.Planes.apply(compiling.kernel(), lines).view(x.shape)
    apart = x.stride(1) != 1 or x.shape[1] == 1 or any(a * n != b for (a, n), (b, _) in pairwise(dense))
    if apart or x.is_contiguous() or not compiling.takes(x):
        return x.contiguous()
    planes: Tensor = native.Planes.apply(compiling.kernel(), x)
    return planes


def _candidates(geometry: Geometry, x: Tensor, weight: Tensor) -> dict[str, Callable[..., Tensor]]:
    """By the planes x [Q, C, B, H, W] and weight [P, D, C, h, w]."""
    members, outputs, inputs, height, width = weight.shape
    shared, pixels = len(x) < members, x.shape[3] * x.shape[4]
    unit = geometry.stride == (1, 1) and geometry.groups == 1
    rows, columns = geometry.transposed().padding
    within = rows >= 0 and columns >= 0  # no output without an input under its kernel
    found: dict[str, Callable[..., Tensor]] = {}
    if unit and within and compiling.takes(x, weight) and not (shared and x.requires_grad):
        found["direct"] = by_direct
    if unit and geometry.dilation == (1, 1) and height * width >= 81 and inputs * outputs <= 64:
        found["fft"] = by_fft
    if "direct" in found and (height * width > 1 or shared) and min(x.shape[4], x.shape[3]) >= SMALL:
        return found
    if unit and within and not shared and outputs <= 4 and height * width > 1:
        found["scatter"] = by_scatter
    windows = inputs * height * width * 4 * pixels  # bytes of one example's
    either = inputs <= 4 or outputs > 4 or height * width == 1 or not unit
    if geometry.groups == 1 and either and windows < LARGEST_WINDOWS:
        found["patches"] = by_patches
    # With few channels on one side and a large kernel, the library's takes up to a hundred times as long.
    if shared or not found or height * width < 49 or min(inputs, outputs) > 4:
        found["library"] = by_library
    return found


def _then(after: Nonlinearity, way: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return after.function(way(*arguments))


def by_direct(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor, after: Nonlinearity | None = None) -> Tensor:
    """Without windows, compiled; stride 1."""
    size = geometry.extent((x.shape[3], x.shape[4]))
    number, slope = (after.number, after.slope) if after and _goes_across(geometry, x, weight) else (0, 0.0)
    out: Tensor = native.DirectConvolution.apply(
        compiling.kernel(), x, weight, bias, size, geometry.padding, geometry.dilation, number, slope
    )
    return after.function(out) if after and not number else out


def _goes_across(geometry: Geometry, x: Tensor, weight: Tensor) -> bool:
    """Whether examples can lie innermost, in what is read and, with a nonlinearity, in what is made."""
    size = geometry.extent((x.shape[3], x.shape[4]))
    return native.goes_across(x, weight, size, geometry.padding, geometry.dilation)


def by_patches(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Windows as columns, then a product. x: [Q, C, B, H, W], Q = 1 or P.

    A column of ones carries the bias, which costs less than a pass over the outputs to add it.
    """
    members, outputs = weight.shape[:2]
    size = geometry.extent((x.shape[3], x.shape[4]))
    pointwise = geometry.kernel == geometry.stride == (1, 1) and geometry.padding == (0, 0)
    if pointwise and len(x) == members:
        out = torch.baddbmm(bias[:, :, None], weight.flatten(2), x.flatten(2))
    else:
        rows = torch.cat([weight.flatten(2), bias[:, :, None]], 2)
        out = WindowProduct.apply(x, rows.view(len(x), -1, rows.shape[2]), geometry)  # [Q, P / Q D, B H' W']
    return out.view(members, outputs, x.shape[2], *size)


def by_scatter(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product for every tap, then the results are shifted and added; stride 1."""
    members, outputs, inputs = weight.shape[:3]
    taps = weight.flip(3, 4).permute(0, 1, 3, 4, 2).reshape(members, -1, inputs)  # [P, D h w, C]
    pixels = x.flatten(2).expand(members, -1, -1)
    size = geometry.extent((x.shape[3], x.shape[4]))
    contributions = torch.bmm(taps, pixels)  # [P, D h w, B H W]
    return Scatter.apply(contributions, geometry.transposed(), (outputs, x.shape[2], *size)) + planewise(bias)


def by_library(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """torch's own convolution: of all members at once on a shared input, else of one after the other."""
    settings = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    members = len(weight)
    if len(x) < members and geometry.groups == 1:
        out = F.conv2d(x[0].transpose(0, 1), weight.flatten(0, 1), bias.flatten(), *settings)
        return out.unflatten(1, (members, -1)).permute(1, 2, 0, 3, 4).contiguous()
    examples = x.transpose(1, 2).expand(members, -1, -1, -1, -1)
    rows = zip(examples.unbind(), weight.unbind(), bias.unbind(), strict=True)
    return torch.stack([F.conv2d(inputs, w, b, *settings) for inputs, w, b in rows]).transpose(1, 2)


def by_fft(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product of spectra; stride 1, no dilation."""
    return FFTCorrelation.apply(x, weight, bias, geometry.padding)


def planewise(bias: Tensor) -> Tensor:
    """[P, D] as a factor or summand of planes [P, D, B, H, W]."""
    return bias[:, :, None, None, None]


class WindowProduct(torch.autograd.Function):
    """x [Q, C, B, H, W], rows [Q, D, C h w + 1] -> the products with every window and a 1, [Q, D, B H' W'].

    The windows of a few examples are made at a time, so that they stay in the cache, and made again for the gradient
    where the few are not all.
    """

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        pixels = math.prod(geometry.extent((x.shape[3], x.shape[4])))
        out = x.new_empty(len(x), rows.shape[1], x.shape[2] * pixels)
        for examples, columns in _windows(x, geometry):
            for q, place in enumerate(out[:, :, examples.start * pixels : examples.stop * pixels]):
                torch.mm(rows[q], columns[q], out=place)
        everything = examples.stop - examples.start == x.shape[2]
        ctx.save_for_backward(x, rows, columns if everything else None)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, rows, kept = ctx.saved_tensors
        pixels = grad.shape[2] // x.shape[2]
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_rows = torch.zeros_like(rows)
        everything = slice(0, x.shape[2])
        for examples, columns in _windows(x, ctx.geometry) if kept is None else [(everything, kept)]:
            here = grad[:, :, examples.start * pixels : examples.stop * pixels]
            for q in range(len(x)):
                grad_rows[q].addmm_(here[q], columns[q].t())
            if grad_x is not None:
                spread = torch.bmm(rows[:, :, :-1].transpose(1, 2), here)
                part = grad_x[:, :, examples]
                part.copy_(_scatter(spread, ctx.geometry, part.shape[1:]))
        return grad_x, grad_rows, None


def _windows(x: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Runs of examples and their windows with ones below, few enough at a time for the cache."""
    size = math.prod(geometry.kernel) * math.prod(geometry.extent((x.shape[3], x.shape[4]))) * x.shape[1]
    count = max(1, WINDOW_VALUES // (len(x) * size))
    for first in range(0, x.shape[2], count):
        examples = slice(first, min(first + count, x.shape[2]))
        yield examples, _patches(x[:, :, examples], geometry, ones=1)


class Scatter(torch.autograd.Function):
    """Every window's values added where the window was: the adjoint of `_patches` without ones.

    columns [Q, C h w, B H' W'] -> [Q, *shape] with shape = (C, B, H, W).
    """

    @staticmethod
    def forward(ctx, columns: Tensor, geometry: Geometry, shape: tuple[int, ...]) -> Tensor:
        ctx.geometry = geometry
        return _scatter(columns, geometry, shape)

    @staticmethod
    def backward(ctx, grad):
        return _patches(grad.contiguous(), ctx.geometry), None, None


def _patches(x: Tensor, geometry: Geometry, ones: int = 0) -> Tensor:
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    count, channels, examples, height, width = x.shape
    size = geometry.extent((height, width))
    x = F.pad(x, (pw, pw, ph, ph)) if ph or pw else x
    by_member, by_channel, by_example, by_row, by_column = x.stride()
    windows = x.as_strided(
        (count, channels, kh, kw, examples, *size),
        (by_member, by_channel, dh * by_row, dw * by_column, by_example, sh * by_row, sw * by_column),
    )
    columns = x.new_empty(count, channels * kh * kw + ones, examples * size[0] * size[1])
    columns[:, : channels * kh * kw].view(windows.shape).copy_(windows)
    columns[:, channels * kh * kw :] = 1
    return columns


def _scatter(columns: Tensor, geometry: Geometry, shape: tuple[int, ...]) -> Tensor:
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    channels, examples, height, width = shape
    rows, across = geometry.extent((height, width))
    taps = columns.unflatten(1, (channels, kh, kw)).unflatten(4, (examples, rows, across))
    # First along the rows, then along the columns: kw + kh additions instead of kw times kh.
    wide = columns.new_zeros(len(columns), channels, kh, examples, rows, width + 2 * pw)
    for j in range(kw):
        wide[..., j * dw : j * dw + sw * (across - 1) + 1 : sw] += taps[:, :, :, j]
    wide = wide[..., pw : pw + width]
    out = columns.new_zeros(len(columns), channels, examples, height + 2 * ph, width)
    for i in range(kh):
        out[..., i * dh : i * dh + sh * (rows - 1) + 1 : sh, :] += wide[:, :, i]
    return out[..., ph : ph + height, :]
