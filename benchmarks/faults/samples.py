"""Good files of every kind that sigexp reads, ways to damage them, and files that are made to do harm."""

import gzip
import io
import pickle
import random
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io.wavfile
from PIL import Image

from sigexp.data import cifar, idx, pictures, recordings

Files = dict[str, bytes]


class Harm:
    """Unpickled, it would make a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return (open, (str(self.place), "w"))


def good_pictures(rng: np.random.Generator) -> Files:
    """Encoded pictures of every format and depth that is read."""
    grey, rgb = rng.integers(0, 256, (37, 51), np.uint8), rng.integers(0, 256, (37, 51, 3), np.uint8)
    alpha = np.dstack([rgb, grey])
    found: Files = {}

    def add(name: str, array: np.ndarray, mode: str | None = None, **options: object) -> None:
        buffer = io.BytesIO()
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(buffer, **options)
        found[name] = buffer.getvalue()

    for kind in ("png", "jpeg", "bmp", "webp", "tiff"):
        add(f"rgb.{kind}", rgb, format=kind)
    add("grey.png", grey, format="png")
    add("grey.jpg", grey, format="jpeg")
    add("alpha.png", alpha, format="png")
    add("palette.png", rgb, "P", format="png", transparency=3)
    add("bit.png", grey, "1", format="png")
    add("sixteen.png", grey.astype(np.uint16) * 257, format="png")
    add("sixteen.tif", grey.astype(np.uint16) * 257, format="tiff")
    add("lzw.tif", rgb, format="tiff", compression="tiff_lzw")
    add("cmyk.jpg", rgb, "CMYK", format="jpeg")
    colours = pictures.Picture(rgb.astype(np.uint16) * 257)
    found["sixteen_rgb.png"] = pictures.encode_picture(colours)
    return found


def good_arrays(rng: np.random.Generator) -> Files:
    return {
        f"{name}.npy": recordings.encode_array(array)
        for name, array in {
            "floats": rng.random((20, 24)).astype(np.float32),
            "colour": rng.random((20, 24, 3)),
            "bytes": rng.integers(0, 256, (20, 24), np.uint8),
            "sequence": rng.random(200),
        }.items()
    }


def good_sounds(rng: np.random.Generator) -> Files:
    found = {}
    for kind in ("int16", "uint8", "float32", "int32"):
        samples = rng.random((300, 2)) * 100
        buffer = io.BytesIO()
        scipy.io.wavfile.write(buffer, 8000, samples.astype(kind))
        found[f"{kind}.wav"] = buffer.getvalue()
    return found


def good_idx(rng: np.random.Generator) -> Files:
    digits = b"\0\0\x08\x03" + struct.pack(">III", 30, 28, 28) + rng.bytes(30 * 784)
    labels = b"\0\0\x08\x01" + struct.pack(">I", 30) + bytes(i % 10 for i in range(30))
    found = {f"{stem}-ubyte": digits if "idx3" in stem else labels for stem in idx.DIGIT_FILES}
    return found | {f"{stem}-ubyte.gz": gzip.compress(content) for stem, content in list(found.items())[:2]}


def good_cifar(rng: np.random.Generator) -> Files:
    record = lambda: bytes([int(rng.integers(10))]) + rng.bytes(3072)  # noqa: E731
    found = {name: record() + record() for name in cifar.FILES}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in found.items():
            member = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return found | {cifar.ARCHIVE: buffer.getvalue()}


def damages(content: bytes, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Ways to damage any file, for ever."""
    yield "empty", b""
    yield "zeros", bytes(len(content))
    yield "a page of HTML", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "twice", content * 2
    while True:
        yield "truncated", content[: draw.randrange(len(content))]
        changed = bytearray(content)
        for _ in range(draw.choice([1, 3, 20])):
            at = draw.randrange(min(len(content), draw.choice([32, 200, 10**9])))
            changed[at] ^= 1 << draw.randrange(8)
        yield "bits flipped", bytes(changed)
        start = draw.randrange(len(content))
        yield "a part missing", content[:start] + content[start + draw.randrange(1, 40) :]
        at = draw.randrange(max(1, min(len(content), 120) - 4))
        yield (
            "a length of 4 GB",
            content[:at] + draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]) + content[at + 4 :],
        )


def png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header says so many pixels, all checksums right, with hardly any data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def array_bomb(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(64)


def chosen(harm: Path) -> dict[str, Files]:
    """Damage that is no accident: bombs, pickles, NaN, wrong types and shapes, by the reader they are for."""
    arrays = {
        "nan": np.array([[0.1, np.nan]]), "infinite": np.array([np.inf, 1.0]), "none": np.zeros((0, 3)),
        "complex": np.ones((4, 4), complex), "words": np.array(["a", "b"]), "dates": np.array(["2020"], "M8[Y]"),
        "fields": np.zeros(3, [("a", "f4")]), "axes": np.zeros((1, 1, 1, 1, 1)), "channels": np.zeros((4, 4, 7)),
        "scalar": np.array(3.0), "large": np.full((5, 5), 1e30), "signed": np.zeros((5, 5), np.int64),
    }  # fmt: skip
    encoded = {f"{name}.npy": recordings.encode_array(array) for name, array in arrays.items()}
    buffer = io.BytesIO()
    np.save(buffer, np.array([Harm(harm)], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, a=np.ones(3))
    encoded |= {
        "objects.npy": buffer.getvalue(),
        "archive.npy": archive.getvalue(),
        "pickle.npy": pickle.dumps(Harm(harm)),
    }
    encoded |= {f"bomb{i}.npy": array_bomb(shape) for i, shape in enumerate([(10**6, 10**6), (2**62, 4), (10**30,)])}
    bombs = {
        f"bomb{i}.png": png_bomb(*size) for i, size in enumerate([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 5)])
    }
    bombs |= {
        "bomb.bmp": b"BM" + bytes(12) + b"\x36\0\0\0\x28\0\0\0" + struct.pack("<iiHH", 60000, 60000, 1, 24) + bytes(24)
    }
    wave = (
        b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0@\x1f\0\0\x80>\0\0\x02\0\x10\0data\xff\xff\xff\xff"
        + bytes(64)
    )
    sizes = {"bomb1": (2**32 - 1,) * 3, "bomb2": (10**6, 28, 28)}
    heads = {f"{name}-ubyte": b"\0\0\x08\x03" + struct.pack(">III", *size) for name, size in sizes.items()}
    heads |= {f"{name}.gz": gzip.compress(content + bytes(10**8)) for name, content in list(heads.items())}
    return {
        "pictures": bombs,
        "arrays": encoded,
        "sounds": {"bomb.wav": wave, "nan.wav": not_numbers()},
        "IDX files": heads,
    }


def not_numbers() -> bytes:
    buffer = io.BytesIO()
    scipy.io.wavfile.write(buffer, 8000, np.array([np.nan, 0.5], np.float32))
    return buffer.getvalue()
