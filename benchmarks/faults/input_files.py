"""Damaged input files: truncated, with flipped bits, mislabelled, bombs, of a wrong kind. None may bring a reader down.

Good files are made, each is damaged in many ways, and every reader has to give what it promises or a ValueError that
names the file, within `MOST_BYTES` more memory than before. `sigexp apply` then goes over all of them at once.
"""

import gzip
import io
import os
import pickle
import random
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.io.wavfile
from PIL import Image

from benchmarks.faults.config_fuzz import SMALL, TINY
from benchmarks.faults.inprocess import bounded, command
from benchmarks.faults.table import Row
from sigexp import machine
from sigexp.data import cifar, idx, images, pictures, recordings

MOST_BYTES = 600_000_000
Read = Callable[[Path], object]
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


def survives(read: Read, path: Path) -> tuple[str | None, int]:
    """What is wrong with how a reader takes a file, None where it gives a value or a ValueError that names it; and the
    bytes of memory it took."""
    machine.reset_peak_memory()
    before = machine.peak_memory_bytes()
    try:
        read(path)
    except ValueError as error:
        lines = str(error).splitlines()
        if not (path.name in lines[0] or str(path.parent) in lines[0]) or len(lines) > 2:
            return f"unclear: {lines}", 0
    except Exception as error:
        return f"{type(error).__name__}: {error}", 0
    used = machine.peak_memory_bytes() - before
    return None if used <= MOST_BYTES else f"{used / 1e9:.1f} GB", used


def tried(what: str, good: Files, extra: Files, read: Read, count: int, folder: Path) -> Row:
    """Damage the good files in turn until `count` were tried, the chosen damage first."""
    draw, passed, number, most = random.Random(0), 0, 0, 0
    streams = {name: damages(content, draw) for name, content in good.items()}

    def cases() -> Iterator[tuple[str, str, bytes]]:
        yield from ((name, "chosen", content) for name, content in extra.items())
        while True:
            for name, stream in streams.items():
                yield (name, *next(stream))

    for (name, how, content), number in zip(cases(), range(count), strict=False):
        place = folder / f"{number:03}"
        place.mkdir(parents=True)
        path = place / name
        path.write_bytes(content)
        wrong, used = survives(read, path)
        most = max(most, used)
        passed += wrong is None
        if wrong:
            print(f"{what}: {name}, {how}: {wrong[:300]}")
    return Row(f"{what}, damaged", number + 1, passed, f"{most / 1e6:.0f} MB of memory at most")


def beside(good: Files, read: Read) -> Read:
    """A reader of a folder of several files, one of which is damaged and the others are good."""

    def reader(path: Path) -> object:
        for name, content in good.items():
            if not (path.parent / name).exists():
                (path.parent / name).write_bytes(content)
        return read(path.parent)

    return reader


def places(folder: Path, good: Files) -> Row:
    """What is no file: folders with a file's name, loops of links, devices, pipes, words that name nothing."""
    (folder / "a.png").mkdir(parents=True)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "gone.png").symlink_to(folder / "nothing")
    (folder / "device.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    words = [
        *map(str, sorted(folder.iterdir())),
        str(folder),
        "",
        "\0",
        "x" * 5000,
        "~nosuchuser/x",
        "/dev/null",
        "\x1b[2J",
    ]
    passed = 0
    for word in words:
        try:
            images.image_source(word)
        except (ValueError, OSError):
            passed += 1
        except Exception as error:
            print(f"dataset.images={word[:40]!a}: {type(error).__name__}: {error}")
    return Row("places that hold no images", len(words), passed, "links, devices, pipes, odd names")


def applied(folder: Path, work: Path) -> Row:
    """`sigexp apply` over every damaged file at once, and over the places: a line for each that cannot be used."""
    run = command(["experiment=color", "model=conv1x1", *TINY, *SMALL["color"], f"outputs={work}"], files=work)
    (record,) = {path.parent for path in work.rglob("model.json")}
    words = ["apply", str(record), str(folder), str(work / "nothing.png"), "-o", str(work / "out")]
    outcome = command(words, seconds=300, files=work)
    said = [line for line in outcome.err.splitlines() if line.startswith("sigexp: ")]
    count = sum(path.is_file() and path.suffix in {*images.SUFFIXES, ".npy", ".wav"} for path in folder.rglob("*"))
    results = sum(name.startswith("out/") and (work / name).is_file() for name in outcome.left)
    fine = run.ran() and outcome.code == 2 and "Traceback" not in outcome.err and "Error (" not in outcome.err
    fine = fine and len(said) + results == count + 1
    note = f"{count} files: {results} results, {len(said)} lines on standard error, exit code {outcome.code}"
    if not fine:
        print(outcome.err[-20000:])
    return Row("`sigexp apply` on all of them", 1, int(fine), note)


def rows(short: bool) -> list[Row]:
    share = 20 if short else 1
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name, bounded(), images.quiet():
        folder, work = Path(name) / "files", Path(name) / "work"
        work.mkdir(parents=True)
        extra = chosen(Path(name) / "harm")
        readers: dict[str, tuple[Files, Read, int]] = {
            "pictures": (good_pictures(rng), lambda path: (pictures.read_picture(path), images.read_image(path)), 220),
            "arrays": (good_arrays(rng), lambda path: np.asarray(recordings.read_array(path)), 80),
            "sounds": (good_sounds(rng), recordings.read_sound, 60),
            "IDX files": (good_idx(rng), idx.read_idx, 60),
        }
        found = []
        for what, (good, read, count) in readers.items():
            most = max(2, count // share)
            chosen_first = dict(list(extra[what].items())[: most if short else None])
            found.append(tried(what, good, chosen_first, read, most, folder / what))
        digits, batches = good_idx(rng), good_cifar(rng)
        plain = {stem: content for stem, content in digits.items() if not stem.endswith(".gz")}
        found.append(
            tried(
                "folders of digits", plain, {}, beside(plain, idx.read_digit_folder), 40 // share, Path(name) / "digits"
            )
        )
        loose = {stem: content for stem, content in batches.items() if stem != cifar.ARCHIVE}
        archive = {cifar.ARCHIVE: batches[cifar.ARCHIVE]}
        found.append(tried("CIFAR-10", loose, {}, beside(loose, cifar.read_cifar10), 30 // share, Path(name) / "cifar"))
        found.append(
            tried(
                "CIFAR-10 archives",
                archive,
                {},
                lambda path: cifar.read_cifar10(path.parent),
                30 // share,
                Path(name) / "tar",
            )
        )
        found.append(places(Path(name) / "places", {}))
        found.append(applied(folder, work))
        harmless = not (Path(name) / "harm").exists()
    return [*found, Row("pickles that would make a file", 2, 2 * harmless, "nothing was unpickled")]
