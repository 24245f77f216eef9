"""Damaged input files: truncated, with flipped bits, mislabelled, bombs, of a wrong kind. None may bring a reader down.

Good files are made, each is damaged in many ways, and every reader has to give what it promises or a ValueError that
names the file, within `MOST_BYTES` more memory than before. `sigexp apply` then goes over all of them at once.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.faults.config_fuzz import SMALL, TINY
from benchmarks.faults.inprocess import bounded, command
from benchmarks.faults.samples import (
    Files,
    chosen,
    damages,
    good_arrays,
    good_cifar,
    good_idx,
    good_pictures,
    good_sounds,
)
from benchmarks.faults.table import Row
from sigexp import machine
from sigexp.data import cifar, idx, images, pictures, recordings

MOST_BYTES = 600_000_000
Read = Callable[[Path], object]


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


def places(folder: Path) -> Row:
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
    with tempfile.TemporaryDirectory() as name, bounded(), images.quiet():
        folder, work, harm = (Path(name) / part for part in ("files", "work", "harm"))
        work.mkdir(parents=True)
        found = [*by_file(folder, chosen(harm), short), *by_folder(Path(name), 20 if short else 1)]
        found += [places(Path(name) / "places"), applied(folder, work)]
        harmless = not harm.exists()
    return [*found, Row("pickles that would make a file", 2, 2 * harmless, "nothing was unpickled")]


def by_file(folder: Path, extra: dict[str, Files], short: bool) -> list[Row]:
    """Pictures, arrays, sounds and IDX files, each by itself."""
    rng = np.random.default_rng(0)
    readers: dict[str, tuple[Files, Read, int]] = {
        "pictures": (good_pictures(rng), lambda path: (pictures.read_picture(path), images.read_image(path)), 220),
        "arrays": (good_arrays(rng), lambda path: np.asarray(recordings.read_array(path)), 80),
        "sounds": (good_sounds(rng), recordings.read_sound, 60),
        "IDX files": (good_idx(rng), idx.read_idx, 60),
    }
    found = []
    for what, (good, read, count) in readers.items():
        most = count // 20 if short else count
        found.append(tried(what, good, dict(list(extra[what].items())[:most]), read, most, folder / what))
    return found


def by_folder(folder: Path, share: int) -> list[Row]:
    """Sets of several files, one of which is damaged."""
    rng = np.random.default_rng(1)
    digits = {name: content for name, content in good_idx(rng).items() if not name.endswith(".gz")}
    batches = good_cifar(rng)
    archive = {cifar.ARCHIVE: batches.pop(cifar.ARCHIVE)}
    sets: dict[str, tuple[Files, Read, int]] = {
        "folders of digits": (digits, beside(digits, idx.read_digit_folder), 40),
        "CIFAR-10": (batches, beside(batches, cifar.read_cifar10), 30),
        "CIFAR-10 archives": (archive, lambda path: cifar.read_cifar10(path.parent), 30),
    }
    return [tried(what, good, {}, read, count // share, folder / what) for what, (good, read, count) in sets.items()]
