"""One file of a user through a learned model: read, computed in tiles, written whole or not at all.

Axes: C and D channels, H W pixels, T samples, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sigexp.data import pictures, recordings
from sigexp.data.images import SUFFIXES
from sigexp.data.patches import to_float
from sigexp.data.pictures import Picture
from sigexp.judging import SSIM_REACH, Quality
from sigexp.predictor import Predictor, refuse_photograph
from sigexp.signal.bayer import mosaic
from sigexp.signal.demosaic import METHODS, PADDING, demosaic
from sigexp.tiling import Tile
from sigexp.track import folder as folders

Advance = Callable[[int, int], None]  # tiles done, of how many
Place = Callable[[str], Path]  # where a result goes, by its suffix; refuses what is there
OUTSIDE = 0.02  # how far beyond 0..1 a value is no mere overshoot
CROP = 400  # pixels: four of them side by side are 1600
SHOWN_SHARE = 0.05  # of such values, from which it is said


@dataclass(frozen=True)
class Done:
    """What became of a file: where the result is, remarks, and what was measured or recognised."""

    output: Path | None
    remarks: list[str]
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    classes: dict[str, float] = field(default_factory=dict)
    crops: tuple[np.ndarray, np.ndarray] | None = None  # of photograph and result, [h, w, 3] in 0..1, to be looked at


@dataclass(frozen=True)
class Converter:
    """A model, and how its results are wanted: as arrays, with mosaics made from photographs, up to so many pixels.

    label: what the model is called in tables. writes: whether results become files, or are only judged. classical:
    whether the classical methods are judged beside it. folder: the run's.
    """

    predictor: Predictor
    label: str
    as_array: bool = False
    simulate: bool = False
    most_pixels: int = pictures.MAX_PIXELS
    writes: bool = True
    classical: bool = True
    folder: Path = Path()

    def convert(self, path: Path, place: Place, advance: Advance) -> Done:
        """Put a file through the model. Raises ValueError for one that cannot work, OSError for disk or permission."""
        kind = path.suffix.lower()
        if kind == ".npy":
            array = recordings.read_array(path)
            return self.sequence(array, place) if self.predictor.axes == 1 else self.array(array, place, advance)
        if kind == ".wav":
            self.expect("image" if self.predictor.axes == 2 else "", "a sound")
            return self.sound(recordings.read_sound(path), place)
        if kind not in SUFFIXES:
            raise ValueError(f"a file of another kind; expected {', '.join(sorted({*SUFFIXES, '.npy', '.wav'}))}")
        self.expect("sequence" if self.predictor.axes == 1 else "", "a picture")
        return self.picture(pictures.read_picture(path, self.most_pixels), place, advance)

    def expect(self, other: str, what: str) -> None:
        """Refuse what is of no use to a model of another kind."""
        if other:
            takes = "pictures and arrays [H, W], [H, W, C]" if other == "image" else "sounds and arrays [T], [C, T]"
            raise ValueError(f"{what}, but {self.predictor} takes {takes}")

    def array(self, array: np.ndarray, place: Place, advance: Advance) -> Done:
        """A picture [H, W] or [H, W, C] as an array; the result is one too."""
        if array.ndim not in (2, 3):
            raise ValueError(
                f"an array of shape {list(array.shape)}; {self.predictor} takes pictures [H, W] or [H, W, C]"
            )
        if array.dtype.kind in "iu" and array.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"a picture of {array.dtype}; expected uint8, uint16, or floats in 0..1")
        pixels = array if array.dtype.kind == "u" else array.astype(np.float32)
        remarks: tuple[str, ...] = ()
        if pixels.dtype.kind == "f" and float(pixels.max()) > 2:
            remarks = (f"values up to {float(pixels.max()):.4g}, where models see 0..1",)
        picture = Picture(pixels if array.ndim == 3 else pixels[..., None], remarks=remarks)
        return replace(self, as_array=True).picture(picture, place, advance, flat=array.ndim == 2)

    def picture(self, picture: Picture, place: Place, advance: Advance, *, flat: bool = False) -> Done:
        """A picture to a picture of the same depth with the same transparency, or to an array; flat: without channels
        where there is one."""
        picture = self.as_mosaic(picture)
        height, width, channels = picture.pixels.shape
        treatment = self.predictor.treatment(channels)
        remarks = [picture.described, *([treatment] if treatment else []), *picture.remarks]
        if self.predictor.kind == "class":
            (whole,) = self.predictor.plan((height, width), channels)
            found = self.predictor.outputs(_values(picture, whole.seen))
            return Done(None, remarks, classes=self.probabilities(found))
        single = self.predictor.target_shape[0] * (channels if treatment == "each channel alike" else 1)
        as_array = self.as_array or single not in (1, 3)
        output = place(".npy" if as_array else ".png") if self.writes else None
        kept = np.empty((height, width, single), np.float32 if as_array else picture.pixels.dtype)
        needs = {"least": PADDING, "further": SSIM_REACH} if self.simulate else {}
        tiles = self.predictor.plan((height, width), channels, **needs)
        outside, quality = self.fill(picture, tiles, kept, advance)
        way = self.way(tiles, channels)
        remarks += [*([way] if way else []), *self.described(kept, outside, as_array)]
        if output and as_array:
            folders.write(output, recordings.encode_array(kept[..., 0] if flat and single == 1 else kept))
        elif output:
            folders.write(output, pictures.encode_picture(replace(picture, pixels=kept)))
        crops = None
        if self.simulate and self.writes:
            middle = central((height, width))
            crops = to_float(picture.pixels[middle]), to_float(kept[middle])
        return Done(output, remarks, {name: q.values() for name, q in quality.items()}, crops=crops)

    def as_mosaic(self, picture: Picture) -> Picture:
        """The picture as it goes to the model; refuses photographs where mosaics are wanted, and the other way."""
        colour = picture.pixels.shape[2] == 3
        if not self.predictor.mosaic:
            if self.simulate:
                raise ValueError(f"--simulate is for models of Bayer mosaics; {self.predictor} is none")
            return picture
        if self.simulate and not colour:
            raise ValueError("--simulate makes mosaics from RGB photographs; this one has no colours")
        if colour and not self.simulate:
            red, green, blue = (picture.pixels[..., c] for c in range(3))
            if np.array_equal(red, green) and np.array_equal(red, blue):  # the raw picture, saved as RGB
                return replace(picture, pixels=picture.pixels[..., :1])
            refuse_photograph(picture.pixels, "--simulate makes the mosaic")
        return picture

    def way(self, tiles: Sequence[Tile], channels: int) -> str:
        """How a picture is computed, in words, '' where that is as anybody would expect."""
        if len(tiles) > 1:
            return f"{len(tiles)} tiles"
        whole = [side.stop for side in tiles[0].kept]
        small = self.predictor.is_small(whole, channels) or self.predictor.sight is not None
        return "" if small else "in one piece, as the model sees all of it"

    def fill(
        self, picture: Picture, tiles: Sequence[Tile], kept: np.ndarray, advance: Advance
    ) -> tuple[int, dict[str, Quality]]:
        """Compute the outputs [H, W, D] in tiles; returns how many values are far outside 0..1, and the quality."""
        names = (f"{self.label} (learned)", *(METHODS if self.classical else ())) if self.simulate else ()
        quality, outside = {name: Quality(picture.pixels.shape[:2]) for name in names}, 0
        for number, tile in enumerate(tiles):
            values = _values(picture, tile.seen)
            found = self.predictor.outputs(mosaic(values) if self.simulate else values)
            if found.shape[1:] != values.shape[1:]:
                raise ValueError(f"{self.predictor} gives {list(found.shape)}, which is no picture of its input's size")
            if self.simulate:
                self.judge(tile, values, found, quality)
            part = tile.crop(found)
            outside += int(((part < -OUTSIDE) | (part > 1 + OUTSIDE)).sum())
            numbers = part.movedim(0, -1).numpy()
            kept[tile.kept] = numbers if kept.dtype.kind == "f" else pictures.quantised(numbers, kept.dtype)
            advance(number + 1, len(tiles))
        return outside, quality

    def judge(self, tile: Tile, original: Tensor, found: Tensor, quality: Mapping[str, Quality]) -> None:
        """Add a tile to the quality of the model and of the classical methods."""
        learned, *classical = quality.values()
        learned.add(tile, found, original)
        for method, known in zip(METHODS, classical, strict=False):
            known.add(tile, demosaic(mosaic(original)[None], method)[0], original)

    def described(self, kept: np.ndarray, outside: int, as_array: bool) -> list[str]:
        """Remarks on what comes out."""
        said = []
        labels = self.predictor.labels
        if kept.shape[2] == len(labels) == 3 and labels != ("R", "G", "B"):
            said.append(f"channels {', '.join(labels)}")
        if self.writes and not as_array and outside > SHOWN_SHARE * kept.size:
            said.append(
                f"{100 * outside / kept.size:.0f} % of the values lie outside 0..1 and are cut; --npy keeps them"
            )
        if as_array and not self.as_array:
            said.append(f"{kept.shape[2]} channels, so an array")
        return said

    def probabilities(self, found: Tensor) -> dict[str, float]:
        """Class name -> probability."""
        labels = self.predictor.labels
        return {labels[i] if i < len(labels) else f"class {i}": p for i, p in enumerate(found.tolist())}

    def sequence(self, array: np.ndarray, place: Place) -> Done:
        """A sequence [T] or [C, T] as an array; the result is one too."""
        if array.ndim > 2:
            raise ValueError(f"an array of shape {list(array.shape)}; {self.predictor} takes sequences [T] or [C, T]")
        found = self.predictor.predict(np.asarray(array))
        treatment = self.predictor.treatment(1 if array.ndim == 1 else len(array))
        remarks = [f"{array.shape[-1]} samples", *([treatment] if treatment else [])]
        if self.predictor.kind == "class":
            return Done(None, remarks, classes=self.probabilities(torch.from_numpy(found)))
        output = place(".npy")
        folders.write(output, recordings.encode_array(found))
        return Done(output, remarks)

    def sound(self, sound: recordings.Sound, place: Place) -> Done:
        """A sound to a sound of the same type and rate, or to an array where its channels change in number."""
        channels, length = sound.samples.shape
        treatment = self.predictor.treatment(channels)
        remarks = [f"{length} samples at {sound.rate_hz} Hz", *([treatment] if treatment else [])]
        found = self.predictor.predict(sound.samples)
        if self.predictor.kind == "class":
            return Done(None, remarks, classes=self.probabilities(torch.from_numpy(found)))
        if self.as_array or found.shape != sound.samples.shape:
            output = place(".npy")
            folders.write(output, recordings.encode_array(found))
            return Done(output, remarks if self.as_array else [*remarks, f"an array {list(found.shape)}"])
        beyond = float((np.abs(found) > 1).mean())
        if sound.dtype.kind != "f" and beyond > 0:
            remarks.append(f"{100 * beyond:.2g} % of the samples lie outside -1..1 and are cut; --npy keeps them")
        output = place(".wav")
        folders.write(output, recordings.encode_sound(replace(sound, samples=found)))
        return Done(output, remarks)


def central(extent: tuple[int, int]) -> tuple[slice, slice]:
    """The middle of a picture, at most `CROP` pixels square, from an even row and column so that BGGR stays BGGR."""
    starts = [max(0, n - CROP) // 4 * 2 for n in extent]
    return slice(starts[0], starts[0] + CROP), slice(starts[1], starts[1] + CROP)


def _values(picture: Picture, where: tuple[slice, ...]) -> Tensor:
    """A part of a picture as float32 [C, h, w], integers in 0..1."""
    part = to_float(picture.pixels[where])
    return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))
