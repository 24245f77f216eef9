"""A net on signals of any size: in tiles that overlap by what the net sees, equal to the signal as a whole.

How far a net sees is probed with NaN, which every sum, product, maximum and comparison hands on: what an output could
depend on is found whatever the weights are, where a gradient would miss a dead ReLU or the loser of a maximum. Whether
cutting there does no harm is then tried on numbers; so a net that knows its place in the image is found out as well.

Axes: B batch, C and D channels, behind them [H, W] or [T].
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sigexp.layers.fft_conv import fft_conv2d

Net = Callable[[Tensor], Tensor]
PERIODS = (1, 2, 64, 32, 16, 8, 4)  # strides of nets, in samples, in the order in which they are tried
NARROW = 32  # samples of a probed frame across the probed axis
FRAMES = (256, 1024)  # samples along the probed axis; an output that depends on more is not bounded
ROUNDING = 1e-9  # of the largest output, in float64
WORKING_BYTES = 2**27  # for the activations of one tile
SIDES = (128, 2048)  # samples of a tile along an axis, smallest and largest


@dataclass(frozen=True)
class Sight:
    """How a net may be cut: tiles start at multiples of `period` and overlap by `margin` samples along every axis."""

    margin: tuple[int, ...]
    period: int

    def widened(self, least: int, further: int, period: int) -> "Sight":
        """For what sees `least` samples to either side beside the net, and `further` samples of outputs around."""
        both = math.lcm(self.period, period)
        return Sight(tuple(round_up(max(m, least) + further, both) for m in self.margin), both)


@dataclass(frozen=True)
class Tile:
    """One piece of a signal: what the net is given, and what of its output is kept, along every axis."""

    seen: tuple[slice, ...]
    kept: tuple[slice, ...]

    def crop(self, outputs: Tensor) -> Tensor:
        """The kept part of the outputs [..., H, W] or [..., T] of what is seen."""
        inner = [slice(k.start - s.start, k.stop - s.start) for s, k in zip(self.seen, self.kept, strict=True)]
        return outputs[(slice(None),) * (outputs.ndim - len(inner)) + tuple(inner)]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def tiles(extent: Sequence[int], sight: Sight | None, side: int) -> list[Tile]:
    """Tiles of about `side` samples along every axis that cover `extent`; a single one where there is no sight."""
    if sight is None:
        whole = tuple(slice(0, n) for n in extent)
        return [Tile(whole, whole)]
    grids = [list(_cuts(n, m, sight.period, side)) for n, m in zip(extent, sight.margin, strict=True)]
    found: list[tuple[tuple[slice, slice], ...]] = [()]
    for grid in grids:
        found = [(*before, pair) for before in found for pair in grid]
    return [Tile(tuple(seen for seen, _ in pairs), tuple(kept for _, kept in pairs)) for pairs in found]


def _cuts(length: int, margin: int, period: int, side: int) -> Iterator[tuple[slice, slice]]:
    """What is seen and what is kept along one axis; tiles are equally long, so that the last one is no sliver."""
    core = round_up(-(-length // max(1, round(length / side))), period)
    for start in range(0, length, core):
        stop = min(start + core, length)
        yield slice(max(0, start - margin), min(length, stop + margin)), slice(start, stop)


class Directly(TorchFunctionMode):
    """Convolutions by FFT computed without one: a spectrum spreads NaN over everything."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is fft_conv2d:
            x, weight, bias, padding = args
            return F.conv2d(x, weight, bias, padding=padding)
        return function(*args, **(kwargs or {}))


def sight(model: nn.Module, channels: int, axes: int) -> Sight | None:
    """How a model of signals [B, channels, ...] may be cut along its 1 or 2 axes.

    None where the model takes one size only, gives no signals of its inputs' extent, sees further than 512 samples,
    or depends on the place in the frame.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return None  # without trying: such a net sees everything, and a long frame takes it long
    # In float64 torch convolves by plain products: quicker algorithms would spread NaN around it.
    net = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    try:
        with torch.no_grad(), Directly():
            bounded: list[int] = []
            for axis in range(axes):
                reached = reach(net, channels, axes, axis)
                if reached is None:
                    return None
                bounded.append(reached)
            return smallest_period(net, channels, bounded)
    except (RuntimeError, ValueError, IndexError):  # a model for one size, or a user's own that takes no such frame
        return None


def smallest_period(net: Net, channels: int, bounded: Sequence[int]) -> Sight | None:
    """The finest cuts that do no harm. What may be cut at a period may be at its multiples."""
    found = None
    for period in PERIODS:
        margin = tuple(round_up(r, period) for r in bounded)
        if all(may_cut(net, channels, len(margin), axis, margin[axis], period) for axis in range(len(margin))):
            found = Sight(margin, period)
            if period <= 2:
                return found
        elif period > 2:
            return found
    return found


def reach(net: Net, channels: int, axes: int, axis: int) -> int | None:
    """How many samples to either side an output can depend on along an axis, cut at a multiple of every period."""
    for length in FRAMES:
        middle = length // 2
        before = spoilt(net, frame(channels, axes, axis, length), 2 + axis, slice(0, middle))
        if len(before) and int(before[-1]) == length - 1:
            continue
        after = spoilt(net, frame(channels, axes, axis, length), 2 + axis, slice(middle, length))
        if len(after) and int(after[0]) == 0:
            continue
        return max(0, int(before[-1]) + 1 - middle if len(before) else 0, middle - int(after[0]) if len(after) else 0)
    return None


def spoilt(net: Net, x: Tensor, axis: int, unknown: slice) -> Tensor:
    """Where along an axis outputs depend on the unknown part of an input: sorted indices [N]."""
    x.narrow(axis, unknown.start, unknown.stop - unknown.start).fill_(torch.nan)
    y = net(x)
    if y.shape[2:] != x.shape[2:]:
        raise ValueError(f"outputs of extent {list(y.shape[2:])} for inputs of extent {list(x.shape[2:])}")
    return y.isnan().movedim(axis, 0).flatten(1).any(1).nonzero()[:, 0]


def frame(channels: int, axes: int, axis: int, length: int) -> Tensor:
    """Random samples in 0..1, long along one axis and short along the other: [1, C, ...], float64."""
    extent = [length if i == axis else NARROW for i in range(axes)]
    return torch.rand(1, channels, *extent, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def may_cut(net: Net, channels: int, axes: int, axis: int, margin: int, period: int) -> bool:
    """Whether outputs at least `margin` samples away from a cut by `period` samples at either end stay the same."""
    x = frame(channels, axes, axis, round_up(2 * (margin + period) + 64, 64))
    rest = x.shape[2 + axis] - period
    y = net(x)
    after = net(x.narrow(2 + axis, period, rest)).narrow(2 + axis, margin, rest - margin)
    before = net(x.narrow(2 + axis, 0, rest)).narrow(2 + axis, 0, rest - margin)
    change = max(
        (after - y.narrow(2 + axis, period + margin, rest - margin)).abs().max(),
        (before - y.narrow(2 + axis, 0, rest - margin)).abs().max(),
    )
    return bool(change <= ROUNDING * y.abs().max())


def working_bytes(model: nn.Module, shape: Sequence[int]) -> float:
    """About what the model holds at a time for each sample of a signal [C, ...], in bytes.

    Twice the inputs and outputs of its largest layer: what that needs, and copies in another order of memory.
    """
    largest = [1]

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        held = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        largest.append(sum(t.numel() for t in held))

    layers = [m for m in model.modules() if not list(m.children())]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *shape, device=next((p.device for p in model.parameters()), None)))
    finally:
        for hook in hooks:
            hook.remove()
    return 2 * 4 * max(largest) / math.prod(shape[1:])


def side(bytes_per_sample: float, found: Sight) -> int:
    """Samples of a tile along an axis that keep its activations within bounds, and its margins below half of it."""
    axes = len(found.margin)
    most = (WORKING_BYTES / bytes_per_sample) ** (1 / axes)
    least, largest = (SIDES[0], SIDES[1]) if axes == 2 else (2**12, 2**20)
    return max(least, 2 * max(found.margin), min(largest, int(most)))
