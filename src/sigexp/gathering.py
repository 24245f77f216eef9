"""What `sigexp apply` can know before it loads a model: the files, the results that are there already, and which run is
which. Imports no torch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sigexp.track.documents import load_json
from sigexp.track.find import STAMP
from sigexp.track.record import Unreadable, mapping, printable, read


@dataclass(frozen=True)
class Input:
    """A file, and its place below OUT."""

    path: Path
    relative: Path


def gather(words: Sequence[Path], output: Path | None) -> tuple[list[Input], list[str]]:
    """All files that are named, or lie in named folders, and what is wrong with the other words.

    Of a folder, files with a known suffix are taken, hidden ones and what lies in OUT left out.
    """
    from sigexp.data.images import SUFFIXES

    known = {*SUFFIXES, ".npy", ".wav"}
    found: dict[Path, Input] = {}
    problems = []
    for word in words:
        if not word.is_dir():
            found.setdefault(word.resolve(), Input(word, Path(word.name)))
            continue
        inside = [path for path in sorted(word.rglob("*")) if path.suffix.lower() in known and path.is_file()]
        inside = [path for path in inside if not any(p.startswith(".") for p in path.relative_to(word).parts)]
        if output is not None and output.resolve() != word.resolve():
            inside = [path for path in inside if not path.resolve().is_relative_to(output.resolve())]
        for path in inside:
            found.setdefault(path.resolve(), Input(path, path.relative_to(word)))
        if not inside:
            problems.append(f"{word}: a folder without files to use ({', '.join(sorted(known))})")
    return list(found.values()), problems


def there_already(inputs: Sequence[Input], run: Path, output: Path, as_array: bool) -> dict[Input, str]:
    """The inputs whose result, where it is certain what it will be called, lies in OUT already: what to say of each.

    It is certain for the one run's pictures and sounds that are named once; the others are looked at when they are
    written.
    """
    try:
        described = mapping(load_json(run / "model.json"))
    except Unreadable:
        return {}  # loading it says why
    shape = described.get("target_shape")
    if described.get("kind") == "class" or not isinstance(shape, list) or not shape or shape[0] not in (1, 3):
        return {}
    found = {}
    for one in inputs:
        kind = one.path.suffix.lower()
        suffix = ".npy" if as_array or kind == ".npy" else ".wav" if kind == ".wav" else ".png"
        place = output / one.relative.with_suffix(suffix)
        if place.exists() and place.resolve() != one.path.resolve():
            found[one] = f"{one.path}: {place} is there already; give --overwrite or another folder"
    return found


def which_is_which(labels: Mapping[str, Path]) -> Iterator[str]:
    """A line for each of several runs: what it is called, model, seed, samples, folder."""
    width = max(map(len, labels), default=0)
    for label, folder in labels.items():
        try:
            record = read(folder)
        except Unreadable:
            yield printable(f"{label:<{width}}  {folder}")
            continue
        seed, samples = mapping(record.result.get("seeds")).get("seed"), record.result.get("samples")
        said = f"{record.model}, seed {seed}, {samples:,} samples" if isinstance(samples, int) else record.model
        yield f"{label:<{width}}  {printable(f'{said}: {folder}')}"


def labels(names: Sequence[str], runs: Sequence[Path]) -> list[str]:
    """What models are called, in tables and as folders: their names, and the signature of the run where these repeat.

    The names may be a stranger's: they become words that no terminal and no file system acts on.
    """
    found: list[str] = []
    for name, run in zip(names, runs, strict=True):
        place = run.resolve().name
        signature = f"-{place[STAMP:].lstrip('-') or place}" if names.count(name) > 1 else ""
        word = re.sub(r"[^\w.+-]+", "_", f"{name[:40]}{signature}").lstrip(".") or "model"
        found.append(word if word not in found else f"{word}-{len(found) + 1}")
    return found
