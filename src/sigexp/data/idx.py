"""The IDX format of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist), plain or gzipped.

A header of two zero bytes, a type code, the number of dimensions, and every size as a big-endian 32-bit number; then
the values, the last dimension fastest, big-endian. Nothing is believed before it is checked: a header cannot make
this reader hold more than the file really contains.
"""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

LIMIT_BYTES = 1 << 30
DEFLATE_RATIO = 1032  # no deflate stream expands further
CHUNK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

DIGIT_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def read_idx(path: Path | str) -> np.ndarray:
    """The array of an IDX file in native byte order; raises ValueError naming the file where it is not a sound one."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an IDX file such as train-images-idx3-ubyte.gz")
    size = path.stat().st_size
    with path.open("rb") as raw:
        zipped = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        try:
            if not zipped:
                return _read(raw, path, size)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read(stream, path, size * DEFLATE_RATIO, exact=False)
        except (EOFError, gzip.BadGzipFile, zlib.error) as reason:
            _refuse(path, f"damaged gzip data ({reason})", "the file as it was published")


def _read(stream: IO[bytes] | gzip.GzipFile, path: Path, available: int, exact: bool = True) -> np.ndarray:
    """Read header and values of a stream that holds `available` bytes, or at most so many."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or not 1 <= start[3] <= 8:
        _refuse(path, f"its first bytes are {start.hex(' ') or 'missing'}", "an IDX header, such as 00 00 08 03")
    header = stream.read(4 * start[3])
    if len(header) < 4 * start[3]:
        _refuse(path, "it ends within its header", f"{start[3]} sizes of 4 bytes")
    dtype = np.dtype(TYPES[start[2]])
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
    wanted = math.prod(shape) * dtype.itemsize
    shown = " x ".join(map(str, shape))
    if wanted > LIMIT_BYTES:
        _refuse(path, f"its header asks for {shown} values", f"at most {LIMIT_BYTES} bytes")
    held = available - 4 - len(header)
    if held < wanted or (exact and held > wanted):
        _refuse(path, f"it has {'' if exact else 'at most '}{held} bytes of values", f"{wanted} for {shown} values")
    values = bytearray()
    while len(values) < wanted and (piece := stream.read(min(CHUNK_BYTES, wanted - len(values)))):
        values += piece
    if len(values) < wanted or stream.read(1):
        found = f"only {len(values)}" if len(values) < wanted else "more"
        _refuse(path, f"it has {found} bytes of values", f"{wanted} for {shown} values")
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _refuse(path: Path, found: str, expected: str) -> NoReturn:
    raise ValueError(f"{path}: {found}; expected {expected}")


def find_digit_file(folder: Path | str, stem: str) -> Path | None:
    """The file of `stem` (one of `DIGIT_FILES`) in a folder, in whichever of its spellings, or None."""
    dotted = stem.replace("-idx", ".idx")
    names = [f"{spelling}-ubyte{ending}" for spelling in (stem, dotted) for ending in ("", ".gz")]
    return next((Path(folder) / name for name in names if (Path(folder) / name).is_file()), None)


def read_digit_folder(folder: Path | str) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Images [N, 28, 28] uint8 and labels [N] uint8 of 'train' and 'test' from the four original files of a folder.

    Raises ValueError naming the file that is missing, damaged, of another shape, or does not match its companion.
    """
    images_train, labels_train, images_test, labels_test = (_read_digit_file(Path(folder), s) for s in DIGIT_FILES)
    found = {"train": (images_train, labels_train), "test": (images_test, labels_test)}
    for split, (images, labels) in found.items():
        if len(images) != len(labels):
            raise ValueError(f"{folder}: {len(images)} {split} images and {len(labels)} labels; expected as many")
    return found


def _read_digit_file(folder: Path, stem: str) -> np.ndarray:
    path = find_digit_file(folder, stem)
    if path is None:
        wanted = ", ".join(f"{s}-ubyte" for s in DIGIT_FILES)
        raise ValueError(f"{folder}: no {stem}-ubyte or {stem}-ubyte.gz; expected {wanted}, each plain or gzipped")
    values = read_idx(path)
    image = stem.endswith("idx3")
    if values.dtype != np.uint8 or values.shape[1:] != ((28, 28) if image else ()) or len(values) == 0:
        shape = " x ".join(map(str, values.shape))
        _refuse(path, f"it holds {shape} values of {values.dtype}", f"N {'x 28 x 28' if image else 'labels'} of uint8")
    return values
