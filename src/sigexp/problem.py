"""What is learned and how it is judged.

A dataset is a function from YAML fields to a `Problem`. An example is a pure function of (dataset.seed, split,
index), so streams resume, shards agree and no split sees another's draws. Examples are drawn in blocks because that
is many times faster than one by one.

Axes: B batch, C channels, H W pixels, T samples, K classes.
"""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sigexp.machine import cores, free_memory_bytes

PerExample = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> [B]
Split = str  # 'train', 'valid', 'test', and whatever further test sets a dataset names


class Batch(NamedTuple):
    """Inputs [B, C, H, W] or [B, C, T]; targets of the same rank, or class indices [B] int64."""

    inputs: Tensor
    targets: Tensor


Sample = Callable[[Split, Tensor], Batch]
Draw = Callable[[np.random.Generator, Split, int], tuple[np.ndarray, np.ndarray]]
WORKING_COPIES = 4  # of a block, which a function that draws one holds at a time


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A known predictor (inputs [B, ...] -> outputs [B, ...]), or known numbers (metric name -> value)."""

    predict: Callable[[Tensor], Tensor] | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A learning problem with its yardsticks.

    sizes: examples of every split; `None` for a stream. The splits 'train', 'valid' and 'test' always exist; any
        other name is a further test set, whose metrics are reported as `name/metric`.
    loss: what training minimises. metrics: what is reported; the first one is the headline.
    references: evaluated on every test set. source: where the signals came from, for the result.
    classes: number of classes, for kind 'class'.
    ragged: splits whose examples differ in size (whole photographs) and are therefore taken one by one.
    labels: names of the classes or channels, for pictures and tables.
    kernel: where targets are linearly filtered inputs, the impulse response [h, w] or [T], its middle at half of every
        (odd) side; borders may differ.
    """

    kind: Literal["image", "sequence", "class"]
    sample: Sample
    sizes: Mapping[Split, int | None]
    loss: PerExample
    metrics: Mapping[str, PerExample]
    references: Mapping[str, Reference] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    classes: int | None = None
    ragged: Collection[Split] = ()
    labels: tuple[str, ...] = ()
    kernel: np.ndarray | None = None

    @property
    def headline(self) -> str:
        return next(iter(self.metrics))

    @property
    def test_splits(self) -> list[Split]:
        return [split for split in self.sizes if split not in ("train", "valid")]

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of one training input and of what a model has to give for it; (K,) for classes."""
        one = self.sample("train", torch.tensor([0]))
        target = (self.classes,) if self.classes else tuple(one.targets.shape[1:])
        return tuple(one.inputs.shape[1:]), target

    def examples(self, split: Split, start: int = 0, stop: int | None = None) -> Batch:
        """A run of consecutive examples of one split, by default all of it."""
        size = self.sizes[split]
        if stop is None:
            if size is None:
                raise ValueError(f"split {split!r} is a stream: say where to stop")
            stop = size
        return self.sample(split, torch.arange(start, stop))


def generator(seed: int, split: Split, block: int) -> np.random.Generator:
    """The one generator of a block of examples: independent for every (seed, split, block)."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), block])


def blockwise(draw: Draw, *, seed: int, block: int = 250) -> Sample:
    """Examples by index out of a function that draws `block` of them at once.

    `draw(rng, split, n)` gives inputs and targets as arrays with n rows, float32 (class indices int64). Blocks are
    drawn on all cores; the last few are kept, because neighbouring indices are usually asked for together.
    """
    kept: OrderedDict[tuple[Split, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()
    workers: list[int] = []  # one number, known when examples are first asked for

    def one(split: Split, number: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = draw(generator(seed, split, number), split, block)
        if not len(inputs) == len(targets) == block:
            raise ValueError(f"draw gave {len(inputs)} inputs and {len(targets)} targets; it was asked for {block}")
        _check_drawn("inputs", inputs)
        if targets.dtype != np.int64 or targets.ndim != 1:
            _check_drawn("targets", targets)
        return inputs, targets

    def sample(split: Split, index: Tensor) -> Batch:
        where = torch.as_tensor(index).numpy()
        if len(where) == 0:
            raise ValueError("no example was asked for: the index is empty")
        numbers, rows = where // block, where % block
        wanted = [int(n) for n in np.unique(numbers)]
        missing = [n for n in wanted if (split, n) not in kept]
        if not workers:
            workers.append(_workers(draw, split, block))
        found = {n: kept[split, n] for n in wanted if (split, n) in kept}
        inputs = targets = None

        def place(number: int, arrays: tuple[np.ndarray, np.ndarray]) -> None:
            nonlocal inputs, targets
            if inputs is None or targets is None:
                inputs = np.empty((len(where), *arrays[0].shape[1:]), arrays[0].dtype)
                targets = np.empty((len(where), *arrays[1].shape[1:]), arrays[1].dtype)
            here = np.flatnonzero(numbers == number)
            to, source = _run(here), _run(rows[here])
            inputs[to], targets[to] = arrays[0][source], arrays[1][source]

        for number, arrays in found.items():
            place(number, arrays)
        if len(missing) == 1:
            drawn = iter([one(split, missing[0])])
            collect(split, missing, drawn, place)
        elif missing:
            with ThreadPoolExecutor(workers[0]) as pool:
                collect(split, missing, pool.map(lambda n: one(split, n), missing), place)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def collect(split, missing, drawn, place) -> None:
        for number, arrays in zip(missing, drawn, strict=True):
            place(number, arrays)
            kept[split, number] = arrays
            while len(kept) > 2:
                kept.popitem(last=False)

    return sample


def _workers(draw: Draw, split: Split, block: int) -> int:
    """How many blocks may be drawn at once: as many as there are cores, or as the memory holds. Raises ValueError where
    it holds none, which one example tells."""
    try:
        one = draw(np.random.default_rng(0), split, 1)
        needed = WORKING_COPIES * block * sum(array.nbytes for array in one)
    except Exception:  # said where a block is drawn
        return cores()
    free = free_memory_bytes("cpu")
    if needed > free:
        shape = list(one[0].shape[1:])
        raise ValueError(
            f"dataset: examples of {shape} are drawn {block} at a time, which takes {needed / 1e9:,.1f} GB of memory, "
            f"and {free / 1e9:,.1f} GB are free; make them smaller (image_size, patch_size, dots_size or length)"
        )
    return min(cores(), int(free // max(1, needed)))


def _check_drawn(what: str, array: np.ndarray) -> None:
    """Raise ValueError where examples are no signals [n, C, H, W] or [n, C, T] in float32."""
    if array.dtype != np.float32 or array.ndim not in (3, 4):
        classes = "; class indices are int64 [n]" if what == "targets" else ""
        raise ValueError(
            f"draw gave {what} of {array.dtype}, shape {list(array.shape)}: expected float32 [n, C, H, W] or "
            f"[n, C, T]{classes}"
        )


def expected(found: object, target: object) -> Problem:
    """What a dataset's function gave, where it is a problem, else a ValueError."""
    if not isinstance(found, Problem):
        raise ValueError(f"dataset: {target} gave {type(found).__name__}; expected a sigexp.problem.Problem")
    return found


def _run(positions: np.ndarray) -> slice | np.ndarray:
    """Consecutive positions as a slice, which copies once instead of twice; others as they are."""
    if (np.diff(positions) == 1).all():
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


def train_size(size: int | str) -> int | None:
    """`dataset.size` as `Problem.sizes` wants it: a positive number, or None for 'stream'."""
    if size == "stream":
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"dataset.size={size}: expected a whole number of at least 1, or 'stream'")
    return size


def identity() -> Reference:
    """The input itself."""
    return Reference(predict=lambda inputs: inputs)


def constant(sample: Sample, size: int | str) -> Reference:
    """The best constant under squared error, a value per channel: the mean of the first 250 training targets, or of
    all where `size` is less."""
    means: list[Tensor] = []

    def predict(inputs: Tensor) -> Tensor:
        if not means:
            targets = sample("train", torch.arange(min(250, size) if isinstance(size, int) else 250)).targets
            means.append(targets.mean([0, *range(2, targets.ndim)]))
            same = targets.shape[2:] == sample("train", torch.arange(1)).inputs.shape[2:]
            means.append(torch.tensor(() if same else targets.shape[2:]))
        extent = tuple(int(n) for n in means[1]) or inputs.shape[2:]
        filled = means[0].to(inputs)[None, :, *[None] * len(extent)]
        return filled.expand(len(inputs), -1, *extent)

    return Reference(predict=predict)


def chance(classes: int) -> Reference:
    """Guessing among equally likely classes."""
    return Reference(values={"error": 1 - 1 / classes})
