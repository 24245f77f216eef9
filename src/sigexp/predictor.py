"""A learned model on signals from outside: pictures, arrays, sounds, of any size.

Axes: B batch, C and D channels, H W pixels, T samples, K classes. Signals are float32; pictures are in 0..1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sigexp import machine, saved, tiling
from sigexp.data.patches import to_float
from sigexp.gathering import labels
from sigexp.signal.bayer import mosaic
from sigexp.tiling import Sight, Tile
from sigexp.track.record import load_yaml, mapping, printable

MOSAICS = "sigexp.datasets.bayer.bayer_mosaic"
LOWEST, HIGHEST = -1.0, 2.0  # of a picture's values: 0..1, with room for noise
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class Predictor:
    """A model and what it is for. mosaic: its inputs are BGGR mosaics."""

    model: nn.Module
    experiment: str
    name: str
    kind: str
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    mosaic: bool
    folder: Path = Path()  # of the run

    @property
    def axes(self) -> int:
        return len(self.input_shape) - 1

    @cached_property
    def sight(self) -> Sight | None:
        """How it may be cut; measured at the first use, which takes a second or more."""
        return tiling.sight(self.model, self.input_shape[0], self.axes)

    @cached_property
    def bytes_per_sample(self) -> float:
        return tiling.working_bytes(self.model, self.input_shape)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def treatment(self, channels: int) -> str:
        """What is done to a signal of so many channels, in words, '' where it is as the model wants it.

        Raises ValueError where nothing sensible can be done.
        """
        wanted = self.input_shape[0]
        if channels == wanted or (self.mosaic and channels == 1):
            return ""
        if wanted == 1 and self.kind == "class" and channels == 3:
            return "as grey"
        if wanted == 1 and self.kind != "class":
            return "each channel alike"
        if wanted == 3 and channels == 1:
            return "grey as R = G = B"
        raise ValueError(f"{channels} channels; {self} takes {wanted}")

    def adapted(self, values: Tensor) -> Tensor:
        """A signal [C, ...] as inputs of the model [B, C', ...]. A mosaic has to start at an even row and column."""
        treatment = self.treatment(len(values))
        if treatment == "as grey":
            return torch.einsum("c,chw->hw", torch.tensor(GREY), values)[None, None]
        if treatment == "each channel alike":
            return values[:, None]
        if len(values) < self.input_shape[0]:
            repeated = values.expand(self.input_shape[0], *values.shape[1:])
            return (mosaic(repeated) if self.mosaic else repeated)[None]
        return values[None]

    def outputs(self, values: Tensor) -> Tensor:
        """What the model makes of a signal [C, ...] at once: [D, ...], or probabilities [K].

        Raises ValueError where the model cannot take its extent.
        """
        inputs = self.adapted(values)
        try:
            with torch.inference_mode():
                found = self.model(inputs.to(self.device)).cpu()
        except RuntimeError as error:
            if inputs.shape[1:] == self.input_shape or "memory" in str(error):
                raise
            reason = str(error).splitlines()[0][:100]
            raise ValueError(
                f"{self} cannot take {list(inputs.shape[1:])}, it was made for {list(self.input_shape)} ({reason})"
            ) from error
        if not bool(found.isfinite().all()):
            raise ValueError(f"{self} gives NaN or infinite values for it")
        if self.kind != "class":
            return found.flatten(0, 1)
        if found.ndim != 2:
            raise ValueError(f"{self} gives {list(found.shape[1:])}, which are no classes")
        return found.softmax(1)[0]

    def lanes(self, channels: int) -> int:
        """How many times the model runs for a signal of so many channels."""
        return channels if self.treatment(channels) == "each channel alike" else 1

    def is_small(self, extent: Sequence[int], channels: int) -> bool:
        """Whether a signal is computed at once, however far the model sees."""
        return self.bytes_per_sample * self.lanes(channels) * math.prod(extent) <= tiling.WORKING_BYTES

    def plan(self, extent: Sequence[int], channels: int, *, least: int = 0, further: int = 0) -> list[Tile]:
        """The tiles in which a signal of that extent is computed, one where it is small or cannot be cut.

        least: samples that something else beside the model sees to either side. further: samples of valid outputs
        around what is kept. Raises ValueError where it cannot be cut and does not fit into memory.
        """
        each = self.bytes_per_sample * self.lanes(channels)
        needed = each * math.prod(extent)
        if self.is_small(extent, channels) or self.kind == "class":
            cut = None
        else:
            cut = self.sight and self.sight.widened(least, further, 2 if self.mosaic else 1)
        free = machine.free_memory_bytes(str(self.device))
        if cut is None and needed > 0.8 * free:
            raise ValueError(
                f"{self} sees all of it at once, which would take about {needed / 1e9:.0f} GB "
                f"of memory where {free / 1e9:.0f} GB are free; make it smaller"
            )
        return tiling.tiles(extent, cut, tiling.side(each, cut) if cut else 0)

    def signal(self, values: Tensor) -> Tensor:
        """Outputs [D, ...] or probabilities [K] for a signal [C, ...], in tiles where it is large."""
        tiles = self.plan(values.shape[1:], len(values))
        if len(tiles) == 1:
            return self.outputs(values)
        whole: Tensor | None = None
        for tile in tiles:
            found = tile.crop(self.outputs(values[(slice(None), *tile.seen)]))
            whole = torch.empty(len(found), *values.shape[1:]) if whole is None else whole
            whole[(slice(None), *tile.kept)] = found
        assert whole is not None
        return whole

    def predict(self, array: Array) -> Array:
        """What the model makes of an array or tensor, as one of the same kind, float32.

        Pictures are [H, W], [H, W, C] or a batch [B, H, W, C] in numpy ([B, H, W] too, where W is no number of
        channels), and [H, W], [C, H, W] or [B, C, H, W] as tensors; sequences [T], [C, T] or [B, C, T]. Outputs are
        laid out alike; a picture without channels gets an axis for them only where there are several. Classes are
        probabilities [K] or [B, K].

        uint8 and uint16 pictures are divided by their largest value; others are taken as they are, in 0..1 or not far
        from it. A model of one channel filters each channel alike. Raises ValueError for what the model cannot take.
        """
        is_tensor = isinstance(array, Tensor)
        layout = self.layout(array.shape, last=not is_tensor)
        given = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
        values = layout.opened(self.floats(given))
        if self.mosaic and values.shape[1] == 3:
            for picture in values:
                refuse_photograph(picture.transpose(1, 2, 0), "sigexp.signal.bayer.mosaic makes one of [..., 3, H, W]")
        found = torch.stack([self.signal(torch.from_numpy(one)) for one in values])
        closed = layout.closed(found, classes=self.kind == "class")
        return closed if is_tensor else closed.numpy()  # type: ignore[return-value]

    def floats(self, values: np.ndarray) -> np.ndarray:
        """Values as float32, pictures of 8 and 16 bits in 0..1. Raises ValueError for NaN and for odd types."""
        kind = values.dtype
        if kind.kind not in "fiub" or values.size == 0:
            raise ValueError(f"an array of {kind}, shape {list(values.shape)}: expected real numbers")
        if self.axes == 2 and kind.kind in "iu" and kind not in (np.uint8, np.uint16):
            raise ValueError(f"a picture of {kind}: expected uint8, uint16, or floats in 0..1")
        scaled = to_float(values) if self.axes == 2 and kind.kind == "u" else values.astype(np.float32)
        if not np.isfinite(scaled).all():
            raise ValueError("it holds NaN or infinite values; replace them first")
        if self.axes == 2:
            refuse_far(float(scaled.min()), float(scaled.max()))
        return np.ascontiguousarray(scaled)

    def layout(self, shape: Sequence[int], *, last: bool) -> "Layout":
        """How an array of this shape is to be read; raises ValueError where it has too few or too many axes."""
        few = {1, 3, self.input_shape[0]}
        extra = len(shape) - self.axes
        if extra == 0:
            return Layout(batched=False, channelled=False, last=last)
        if extra == 2:
            return Layout(batched=True, channelled=True, last=last and self.axes == 2)
        if extra == 1:
            batch = last and self.axes == 2 and shape[-1] not in few
            return Layout(batched=batch, channelled=not batch, last=last and self.axes == 2)
        what = "a picture [H, W], [H, W, C]" if self.axes == 2 else "a sequence [T], [C, T]"
        raise ValueError(f"an array of shape {list(shape)}: {self} expects {what} or a batch")

    def __str__(self) -> str:
        return f"{self.experiment}/{self.name}"


@dataclass(frozen=True)
class Layout:
    """Which axes an array has beside the extent: a batch in front, channels behind that or last."""

    batched: bool
    channelled: bool
    last: bool

    def opened(self, values: np.ndarray) -> np.ndarray:
        """The array as [B, C, ...]."""
        values = values if self.batched else values[None]
        if not self.channelled:
            return values[:, None]
        return np.ascontiguousarray(np.moveaxis(values, -1, 1)) if self.last else values

    def closed(self, found: Tensor, *, classes: bool) -> Tensor:
        """Outputs [B, D, ...] or [B, K] as the array was laid out."""
        if not classes and not self.channelled and found.shape[1] == 1:
            found = found[:, 0]
        elif not classes and self.last and found.ndim == 4:
            found = found.movedim(1, -1).contiguous()
        return found if self.batched else found[0]


def refuse_far(low: float, high: float) -> None:
    """Raise ValueError where a picture's values lie far outside 0..1, as those of 0..255 do."""
    if low < LOWEST or high > HIGHEST:
        far = f"up to {high:.4g}" if high > HIGHEST else f"down to {low:.4g}"
        remedy = "divide by 65535, or pass uint16" if high > 256 else "divide by 255, or pass uint8"
        raise ValueError(f"values {far}; floats are expected in 0..1 ({remedy})")


def refuse_photograph(pixels: np.ndarray, remedy: str) -> None:
    """Raise ValueError where [H, W, 3] holds values that a BGGR sensor does not measure; remedy: what to do."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    unmeasured = (red[0::2], red[1::2, 0::2], green[0::2, 0::2], green[1::2, 1::2], blue[1::2], blue[0::2, 1::2])
    if any(part.any() for part in unmeasured):
        raise ValueError(
            "a colour photograph, not a mosaic: expected the raw picture in one channel, or in three with zeros where "
            f"a colour was not measured (BGGR); {remedy}"
        )


def load(folder: Path, trust: Sequence[str] = ()) -> Predictor:
    """The best model of a run, ready for signals. Raises ValueError for what is missing, damaged or not trusted.

    trust: prefixes of targets that it may name beside what a conf offers.
    """
    return described(folder, saved.load_model(folder, trust))


def load_several(folders: Sequence[Path], trust: Sequence[str] = ()) -> dict[str, Predictor]:
    """The best models of several runs, by what to call them; a run that repeats another one counts once. As `load`."""
    found: dict[bytes, Path] = {}
    ready = {folder: load(folder, trust) for folder in folders}
    for folder in folders:
        found.setdefault(sha256((folder / "model.safetensors").read_bytes()).digest(), folder)
    names = labels([ready[folder].name for folder in found.values()], list(found.values()))
    return {name: ready[folder] for name, folder in zip(names, found.values(), strict=True)}


def described(folder: Path, model: nn.Module) -> Predictor:
    """A model with what a run's folder says of it."""
    found = saved.read_description(folder)
    return Predictor(
        model=model,
        experiment=printable(found["experiment"]),
        name=printable(found["name"]),
        kind=found["kind"],
        labels=tuple(map(printable, found["labels"])),
        input_shape=tuple(found["input_shape"]),
        target_shape=tuple(found["target_shape"]),
        mosaic=_dataset(folder) == MOSAICS,
        folder=folder,
    )


def _dataset(folder: Path) -> str | None:
    """The target of the run's dataset, which is compared and never imported."""
    found = load_yaml(folder, "config.yaml")
    target = mapping(mapping(found).get("dataset")).get("_target_")
    if found is not None and not isinstance(target, str):
        raise ValueError(f"{folder / 'config.yaml'}: damaged (it names no dataset)")
    return target
