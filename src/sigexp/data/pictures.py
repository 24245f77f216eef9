"""A user's own pictures as they are: 8 or 16 bits, grey or colour, transparency beside the colours; and written back.

`sigexp.data.images` makes every image RGB for training; here nothing is added, dropped or rounded.

Axes: H W pixels, C = 1 (grey) or 3 (R G B) channels.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageFile

from sigexp.data.images import MAX_PIXELS, by_opencv, has_sixteen_bits, opened, quiet

GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
CARRIED = ("icc_profile", "exif", "dpi")  # what says how the pixels are to be seen
COMPRESSION = 3  # of PNG: half the time of the usual 6 for a few percent more


@dataclass(frozen=True)
class Picture:
    """Pixels [H, W, C], uint8, uint16 or float32; alpha [H, W] of the same depth; metadata for writing; remarks."""

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """Extent, depth and channels in words."""
        (height, width, channels), kind = self.pixels.shape, self.pixels.dtype
        depth = "float" if kind.kind == "f" else f"{8 * kind.itemsize} bit"
        colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        return f"{width}x{height}, {depth} {colours}{' + alpha' if self.alpha is not None else ''}"


def read_picture(path: Path, most: int = MAX_PIXELS) -> Picture:
    """A picture of at most `most` pixels. Raises ValueError, naming the file, for one that is broken or too large."""
    with quiet(), opened(path, most) as image:
        sixteen = has_sixteen_bits(path, image)
        pages = getattr(image, "n_frames", 1)
        grey = image.mode in GREY_MODES
        metadata = {key: image.info[key] for key in CARRIED if key in image.info}
        try:
            image.load()
            planes = None if sixteen and image.mode not in GREY_MODES[4:] else _eight_bits(image)
        except Exception as error:
            raise ValueError(f"{path}: broken or truncated image ({error})") from error
    planes = _by_opencv(path, grey) if planes is None else planes
    colours = planes.shape[2] - (planes.shape[2] % 2 == 0)
    alpha = planes[..., colours] if colours < planes.shape[2] else None
    lost = planes.dtype == np.uint16 and bool({"icc_profile", "exif"} & metadata.keys())
    remarks = [f"the first of {pages} pages"] * (pages > 1) + ["without its metadata"] * lost
    return Picture(planes[..., :colours], alpha, metadata, tuple(remarks))


def _eight_bits(image: PIL.ImageFile.ImageFile) -> np.ndarray:
    """What Pillow decoded as [H, W, 1..4], with transparency as the last of 2 or 4 planes; also 16 bits of grey."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    transparent = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    mode = ("LA" if transparent else "L") if image.mode in GREY_MODES else "RGBA" if transparent else "RGB"
    planes = np.asarray(image if image.mode == mode else image.convert(mode))
    return planes if planes.ndim == 3 else planes[..., None]


def _by_opencv(path: Path, grey: bool) -> np.ndarray:
    """16 bits a channel, of which Pillow keeps 8: [H, W, 1..4]."""
    planes = by_opencv(path, cv2.IMREAD_UNCHANGED)
    if planes.ndim == 2:
        return planes[..., None]
    if grey:  # OpenCV repeats grey over the colours where there is transparency
        return np.ascontiguousarray(planes[..., [0, -1] if planes.shape[2] in (2, 4) else [0]])
    order = [2, 1, 0, 3][: planes.shape[2]]
    return np.ascontiguousarray(planes[..., order])


def encode_picture(picture: Picture) -> bytes:
    """A picture of 8 or 16 bits as PNG, which keeps both, transparency and, of 8 bits, the metadata."""
    planes = picture.pixels
    if picture.alpha is not None:
        planes = np.concatenate([planes, picture.alpha[..., None]], axis=2)
    if planes.dtype == np.uint16 and planes.shape[2] == 2:  # no PNG writer at hand has 16 bits of grey and alpha
        planes = planes[..., [0, 0, 0, 1]]
    if planes.dtype == np.uint16:
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[planes.shape[2]]
        return cv2.imencode(".png", planes[..., order], [cv2.IMWRITE_PNG_COMPRESSION, COMPRESSION])[1].tobytes()
    buffer = io.BytesIO()
    plain = planes[..., 0] if planes.shape[2] == 1 else planes
    PIL.Image.fromarray(np.ascontiguousarray(plain)).save(buffer, "png", compress_level=COMPRESSION, **picture.metadata)
    return buffer.getvalue()


def quantised(values: np.ndarray, like: np.dtype) -> np.ndarray:
    """Values in 0..1, clipped, as integers of the full range of a type."""
    most = np.iinfo(like).max
    return (np.clip(values, 0, 1) * np.float32(most) + np.float32(0.5)).astype(like)
