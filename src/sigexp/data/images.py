"""Colour images to learn from: photographs that need no network, CIFAR-10, or a folder of the user's own.

`image_source('photographs')` reads the photographs that ship inside scikit-image, `image_source('cifar10')` the
original CIFAR-10 files, and any other word names a folder. Splits are by whole image, so that no patch of a test
photograph is ever trained on. There is no fallback from one source to another.
"""

import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageFile

from sigexp.data.cache import fetch
from sigexp.data.cifar import read_cifar10

# motorcycle_left and _right are a stereo pair: they stay in one split.
PHOTOGRAPHS = {
    "train": (
        "astronaut.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
        "ihc.png",
        "hubble_deep_field.jpg",
    ),
    "valid": ("rocket.jpg",),
    "test": ("chelsea.png", "coffee.png"),
}
SPLITS = tuple(PHOTOGRAPHS)
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
TIFF_BITS = 258  # the tag BitsPerSample
MAX_PIXELS = 150_000_000  # of one image: a larger one is a mistake or a decompression bomb
MAX_TOTAL_PIXELS = 500_000_000  # of a folder, which is held in memory: 1.5 GB at 8 bits

Shape = tuple[int, int]  # rows, columns
Images = Sequence[np.ndarray] | np.ndarray  # [H, W, 3] each, uint8 or uint16


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Images in three splits, decoded when first asked for and then kept.

    names: what each image is called; shapes: its rows and columns, known before decoding.
    source: where the images came from, for the result.
    ragged: the images differ in size and are whole photographs, to be taken one by one.
    """

    names: Mapping[str, Sequence[str]]
    shapes: Mapping[str, Sequence[Shape]]
    source: Mapping[str, str]
    ragged: bool
    load: Callable[[], Mapping[str, Images]]

    def images(self, split: str) -> Images:
        """RGB images [H, W, 3] of one split, uint8 or uint16, in the order of `names`."""
        return self.load()[split]


def image_source(images: str) -> ImageSource:
    """The source that `dataset.images` names: 'photographs', 'cifar10', or a folder.

    A folder is searched with all its subfolders. If it has train/, valid/ and test/, these are the splits and what
    lies beside them is left out; else its images are split 70, 10 and 20 % in the order of their names.

    Raises ValueError, naming the file, for a folder that is missing or holds fewer than 3 images, and for images
    that cannot be read (all are decoded at the first use, so that a broken one is found before any training).
    """
    if images == "photographs":
        return _photographs()
    if images == "cifar10":
        return _cifar10()
    return _folder(images)


@lru_cache(maxsize=1)
def _photographs() -> ImageSource:
    where = Path(str(files("skimage") / "data"))
    release = f"scikit-image {version('scikit-image')}"
    if missing := [name for names in PHOTOGRAPHS.values() for name in names if not (where / name).is_file()]:
        raise ValueError(
            f"dataset.images=photographs: {release} comes without {', '.join(missing)}; "
            "install another release of scikit-image, or name a folder of images"
        )
    paths = {split: [where / name for name in names] for split, names in PHOTOGRAPHS.items()}
    return _from_files(where, paths, {"images": f"photographs of {release}"})


@lru_cache(maxsize=1)
def _cifar10() -> ImageSource:
    arrays = read_cifar10(fetch("cifar10"))
    kept = len(arrays["train"]) - max(1, len(arrays["train"]) // 10)
    images: dict[str, Images] = {
        "train": arrays["train"][:kept],
        "valid": arrays["train"][kept:],
        "test": arrays["test"],
    }
    counts = ", ".join(f"{split} {len(stack)}" for split, stack in images.items())
    return ImageSource(
        names={split: [f"{split} {i}" for i in range(len(stack))] for split, stack in images.items()},
        shapes={split: [(32, 32)] * len(stack) for split, stack in images.items()},
        source={"images": f"CIFAR-10 ({counts})"},
        ragged=False,
        load=lambda: images,
    )


def _folder(name: str) -> ImageSource:
    folder = Path(os.path.expanduser(name))
    if not name or not os.path.isdir(folder):  # `Path.is_dir` raises where a name is too long
        close = get_close_matches(name, ["photographs", "cifar10"], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"dataset.images={name}: no such folder; expected 'photographs', 'cifar10' or a folder of images{hint}"
        )
    present = [split for split in SPLITS if (folder / split).is_dir()]
    if present and len(present) < len(SPLITS):
        raise ValueError(
            f"{folder}: has {', '.join(f'{split}/' for split in present)} but not all of train/, valid/ and test/; "
            "make the others, or put all images into folders of other names to have them split"
        )
    if present:
        paths = {split: _image_files(folder / split) for split in SPLITS}
        for split, found in paths.items():
            if not found:
                raise ValueError(f"{folder / split}: no images ({_suffixes()}); every split needs at least one")
    else:
        paths = _split(folder, _image_files(folder))
    everything = [path for found in paths.values() for path in found]
    digest = hashlib.sha256()
    for path in everything:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    label = f"folder {folder.resolve().name}, {len(everything)} images, sha256 {digest.hexdigest()[:16]}"
    return _from_files(folder, paths, {"images": label})


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))


def _image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden ones are left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    visible = (p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(visible, key=lambda p: p.relative_to(folder).as_posix())


def _split(folder: Path, paths: list[Path]) -> dict[str, list[Path]]:
    """The first 70 % train, the next 10 % valid, the rest test: neighbours, often of one scene, stay together."""
    if not paths:
        raise ValueError(f"{folder}: no images; expected files ending in {_suffixes()}, also in subfolders")
    if len(paths) < len(SPLITS):
        raise ValueError(
            f"{folder}: {len(paths)} image{'s' * (len(paths) > 1)} ({', '.join(p.name for p in paths)}); "
            "expected at least 3, one each to train, validate and test"
        )
    valid, test = max(1, round(0.1 * len(paths))), max(1, round(0.2 * len(paths)))
    train = len(paths) - valid - test
    return {"train": paths[:train], "valid": paths[train : train + valid], "test": paths[train + valid :]}


def _from_files(folder: Path, paths: Mapping[str, Sequence[Path]], source: Mapping[str, str]) -> ImageSource:
    """A source that has read every header and decodes all files at the first call of `images`."""
    with quiet():
        shapes = {split: [read_shape(path) for path in found] for split, found in paths.items()}
    total = sum(rows * columns for found in shapes.values() for rows, columns in found)
    if total > MAX_TOTAL_PIXELS:
        raise ValueError(
            f"{folder}: {total / 1e6:.0f} million pixels in all, expected at most "
            f"{MAX_TOTAL_PIXELS / 1e6:.0f} million, which are held in memory; take fewer or smaller images"
        )
    lock = threading.Lock()
    decoded: dict[str, list[np.ndarray]] = {}

    def load() -> Mapping[str, Images]:
        with lock:
            if not decoded:
                with quiet(), ThreadPoolExecutor() as pool:
                    decoded.update({split: list(pool.map(read_image, found)) for split, found in paths.items()})
        return decoded

    names = {split: [path.relative_to(folder).as_posix() for path in found] for split, found in paths.items()}
    listed = {split: ", ".join(some) if len(some) <= 12 else f"{len(some)} images" for split, some in names.items()}
    return ImageSource(names=names, shapes=shapes, source={**source, **listed}, ragged=True, load=load)


def quiet() -> warnings.catch_warnings:
    """Pillow's warnings (odd metadata, more pixels than its own limit) concern nothing that is used here."""
    return warnings.catch_warnings(action="ignore")


def read_shape(path: Path) -> Shape:
    """Rows and columns out of the header of an image file, nothing decoded."""
    with opened(path) as image:
        columns, rows = image.size
        return rows, columns


def read_image(path: Path) -> np.ndarray:
    """One RGB image [H, W, 3], uint8 or uint16; grey is repeated over the channels, transparency dropped."""
    with opened(path) as image:
        sixteen = has_sixteen_bits(path, image)
        try:
            image.load()
            if not sixteen:
                opaque = image.convert("RGBA") if "transparency" in image.info else image
                return np.array(opaque.convert("RGB"))
        except Exception as error:
            raise ValueError(f"{path}: broken or truncated image ({error})") from error
    # Pillow has 8 bits a channel and no more, so it only checks such a file, and OpenCV decodes it.
    pixels = by_opencv(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.ascontiguousarray(pixels[..., ::-1])


def by_opencv(path: Path, flags: int) -> np.ndarray:
    """An image of 16 bits a channel as OpenCV decodes it, which says nothing of its own on standard error."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except cv2.error:
        pixels = None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError(f"{path}: 16 bits a channel in a form that OpenCV cannot read; save it as PNG")
    return pixels


def has_sixteen_bits(path: Path, image: PIL.ImageFile.ImageFile) -> bool:
    """Whether an opened image has 16 bits a channel, which Pillow would halve; raises ValueError for 32."""
    sixteen = ";16" in str(image.tile) or 16 in getattr(image, "tag_v2", {}).get(TIFF_BITS, ())
    if image.mode in ("I", "F") and not sixteen:
        raise ValueError(f"{path}: 32 bits a channel; expected an image of 8 or 16 bits")
    return sixteen


@contextmanager
def opened(path: Path, most: int = MAX_PIXELS) -> Iterator[PIL.ImageFile.ImageFile]:
    """An image file whose header is read and whose size is checked, nothing decoded; `most` pixels at most."""
    try:
        image = PIL.Image.open(path, formats=FORMATS)
    except PermissionError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too many pixels; expected at most {most / 1e6:.3g} million") from error
    except Exception as error:
        empty = path.stat().st_size == 0
        what = "the file is empty" if empty else "not a readable PNG, JPEG, TIFF, BMP or WebP image"
        raise ValueError(f"{path}: {what}; remove it, or save it anew") from error
    with image:
        columns, rows = image.size
        if rows * columns > most:
            raise ValueError(f"{path}: {columns}x{rows} pixels, too many; expected at most {most / 1e6:.3g} million")
        if rows * columns == 0:
            raise ValueError(f"{path}: {columns}x{rows} pixels, an empty image; remove it")
        yield image
