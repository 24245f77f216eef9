"""CIFAR-10 from its original files, binary version (https://www.cs.toronto.edu/~kriz/cifar.html).

A record is one byte of label and 3072 of image: 32x32 red, then green, then blue, row by row. The Python version of
the set is pickled, and a pickle can run code, so it is not read.
"""

import gzip
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

RECORD_BYTES = 1 + 3 * 32 * 32
FILE_LIMIT_BYTES = 256 << 20  # published: 30,730,000
ARCHIVE_LIMIT_BYTES = 1 << 30  # published: 184,380,000 in the files, unpacked
ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
FILES = (*TRAIN_FILES, TEST_FILE)
PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")


def has_cifar10(folder: Path | str) -> bool:
    """Whether a folder holds the six files, or the archive with them."""
    return _batches(Path(folder)) is not None or (Path(folder) / ARCHIVE).is_file()


def read_cifar10(folder: Path | str) -> Mapping[str, np.ndarray]:
    """Images [N, 32, 32, 3] uint8 of 'train' and 'test'.

    The six files lie in the folder, in `cifar-10-batches-bin` below it, or in `cifar-10-binary.tar.gz`. Raises
    ValueError naming what is missing or damaged.
    """
    folder = Path(folder)
    batches = _batches(folder)
    if batches is not None:
        contents = {name: _read_file(batches / name) for name in FILES}
    elif (folder / ARCHIVE).is_file():
        contents = _read_archive(folder / ARCHIVE)
        batches = folder / ARCHIVE
    else:
        raise ValueError(_what_is_missing(folder))
    images = {name: _images(contents[name], batches / name) for name in FILES}
    return {"train": np.concatenate([images[name] for name in TRAIN_FILES]), "test": images[TEST_FILE]}


def _batches(folder: Path) -> Path | None:
    """The folder in which all six files lie."""
    places = (folder, folder / FOLDER)
    return next((place for place in places if all((place / name).is_file() for name in FILES)), None)


def _what_is_missing(folder: Path) -> str:
    wanted = f"expected {TRAIN_FILES[0]} .. 5 and {TEST_FILE}, there or in {FOLDER}, or {ARCHIVE}"
    for place in (folder, folder / FOLDER):
        missing = [name for name in FILES if not (place / name).is_file()]
        if len(missing) < len(FILES):
            return f"{place}: no {', '.join(missing)}; {wanted}"
    if any((folder / name).exists() for name in PICKLED):
        return f"{folder}: the Python version of CIFAR-10 is pickled and is not read; {wanted} (the binary version)"
    return f"{folder}: no CIFAR-10 files; {wanted}"


def _read_file(path: Path) -> bytes:
    size = path.stat().st_size
    if size > FILE_LIMIT_BYTES:
        raise ValueError(f"{path}: {size} bytes; expected at most {FILE_LIMIT_BYTES}")
    return path.read_bytes()


class _Bounded:
    """A reader that stops where the unpacked archive is larger than it can be."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self.stream, self.path, self.left = stream, path, ARCHIVE_LIMIT_BYTES

    def read(self, size: int) -> bytes:
        piece = self.stream.read(size)
        self.left -= len(piece)
        if self.left < 0:
            raise ValueError(f"{self.path}: more than {ARCHIVE_LIMIT_BYTES} bytes unpacked; expected CIFAR-10's files")
        return piece


def _read_archive(path: Path) -> dict[str, bytes]:
    """The six files out of the archive, by name and in memory: nothing is unpacked to disk."""
    try:
        with gzip.open(path) as stream:
            bounded = _Bounded(stream, path)
            with tarfile.open(fileobj=bounded, mode="r|") as archive:  # type: ignore[call-overload]
                contents = _members(archive, path)
            while bounded.read(1 << 20):  # gzip's checksum stands at its end
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as reason:
        raise ValueError(f"{path}: damaged ({reason}); expected the archive as it was published") from None
    missing = [name for name in FILES if name not in contents]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)} in {FOLDER}; expected the archive as it was published")
    return contents


def _members(archive: tarfile.TarFile, path: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    wanted = {f"{FOLDER}/{name}": name for name in FILES}
    for member in archive:
        name = wanted.get(member.name.removeprefix("./"))
        if name is None or name in contents or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            continue
        if member.size > FILE_LIMIT_BYTES:
            raise ValueError(f"{path}: {name} of {member.size} bytes; expected at most {FILE_LIMIT_BYTES}")
        file = archive.extractfile(member)
        assert file is not None
        contents[name] = file.read()
    return contents


def _images(content: bytes, path: Path) -> np.ndarray:
    if not content or len(content) % RECORD_BYTES:
        raise ValueError(f"{path}: {len(content)} bytes; expected a whole number of records of {RECORD_BYTES}")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    if records[:, 0].max() > 9:
        raise ValueError(f"{path}: a label of {records[:, 0].max()}; expected 0..9 (the binary version of CIFAR-10)")
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
