"""`sigexp inspect RUN`: what a run's folder holds, executing nothing of it.

The folder may be a stranger's: files are read as data, in bounded amounts, links are not followed, and what is printed
cannot steer the terminal. Imports no torch. Weights: the header of the safetensors format, version 0.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigexp.track import record
from sigexp.track.documents import MOST_ROUNDS_BYTES, ODD, Unreadable, content, load_json, load_yaml, regular
from sigexp.track.find import wrong_folder
from sigexp.track.record import mapping
from sigexp.trust import offered_targets, targets
from sigexp.usage import Parser, WrongCommand

MOST_WEIGHTS_BYTES = 2**40
MOST_HEADER_BYTES = 20_000_000  # a hundred thousand tensors; the format would take 100 MB
MOST_AXES = 64  # of a tensor
MOST_ROWS = 200  # of weights, or other files, that are shown
MOST_EVENTS = 1_000_000  # records of TensorBoard's events that are counted
PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
FINISHED = ("result.json", "model.json", "model.safetensors")  # what only a finished run has, and needs


class Damaged(ValueError):
    """A file that is not what its name says."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class File:
    """An entry of the folder: its size in bytes, what it is, and what is wrong with it, '' where nothing is."""

    name: str
    size: int | None
    meaning: str
    problem: str = ""


def inspect(words: list[str]) -> int:
    """Carry out the verb: 0, or 2 where a file is damaged or missing."""
    parser = Parser(prog="sigexp inspect", description="What a run's folder holds; nothing of it is executed.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, finished or not")
    folder: Path = parser.parse_args(words).run
    if not record.is_run(folder):
        raise WrongCommand(wrong_folder(folder))
    found = files(folder)
    from sigexp.report import inspection

    documents, tensors = contents(folder)
    inspection.show(folder, found, documents, tensors, unoffered(documents))
    return 2 if any(file.problem for file in found) else 0


def contents(folder: Path) -> tuple[dict[str, dict[str, Any]], list[Weight]]:
    """What the readable ones of the documents hold, by file name, and the weights."""
    documents = {}
    for name in ("result.json", "config.yaml", "composed.yaml", "model.json"):
        try:
            documents[name] = mapping(read(folder / name))
        except (Damaged, OSError):
            documents[name] = {}
    try:
        tensors = weights(folder / "model.safetensors")
    except (Damaged, OSError):
        tensors = []
    return documents, tensors


def unoffered(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Targets of dataset and model that no conf in force offers, which `apply` would not build."""
    nodes = documents["config.yaml"].get("dataset"), documents["model.json"].get("model")
    known = offered_targets("dataset", "experiment", "model")
    named = {target for node in nodes for target in targets(node)}
    return sorted(target for target in named - known if not target.startswith("torch.nn."))


def files(folder: Path) -> list[File]:
    """Every entry of the folder, those that a run writes first, and those that are missing."""
    found = [look(folder / name, meaning, check) for name, (meaning, check) in KNOWN.items() if there(folder / name)]
    finished = any(there(folder / name) for name in FINISHED)
    needed = ("config.yaml", "composed.yaml", "rounds.jsonl", *(FINISHED if finished else ()))
    found += [File(name, None, KNOWN[name][0], "missing") for name in needed if not there(folder / name)]
    others = sorted(entry.name for entry in os.scandir(folder) if entry.name not in KNOWN)
    for name in others[:MOST_ROWS]:
        events = name.startswith("events.out.tfevents.")
        meaning = "TensorBoard's events" if events else "not one of sigexp's"
        found.append(look(folder / name, meaning, check_events if events else None))
    if len(others) > MOST_ROWS:
        found.append(File(f"and {len(others) - MOST_ROWS} more", None, ""))
    return found


def there(path: Path) -> bool:
    return os.path.lexists(path)


def look(path: Path, meaning: str, check: Callable[[Path], str] | None) -> File:
    """An entry with what its check says of it."""
    if path.is_symlink():
        return File(path.name, None, meaning, "a link, not followed")
    if path.is_dir():
        return File(f"{path.name}/", None, f"{meaning}: {len(os.listdir(path))} entries")
    if not path.is_file():
        return File(path.name, None, meaning, "neither a file nor a folder")
    size = path.stat().st_size
    try:
        said = check(path) if check else ""
    except (Damaged, OSError) as error:
        return File(path.name, size, meaning, f"damaged: {' '.join(str(error).split())[:160]}")
    return File(path.name, size, f"{meaning}: {said}" if said else meaning)


def read(path: Path) -> Any:
    """A file of JSON or YAML. Raises `Damaged`."""
    try:
        return load_json(path) if path.suffix == ".json" else load_yaml(path.parent, path.name)
    except Unreadable as error:
        raise Damaged(str(error).removeprefix(f"{path.parent}: ")) from error


def weights(path: Path) -> list[Weight]:
    """The tensors that a safetensors file's header names; their places are checked, their values not read."""
    try:
        size = regular(path, MOST_WEIGHTS_BYTES).stat().st_size
    except ValueError as error:
        raise Damaged(str(error)) from error
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
            raise Damaged("no header of safetensors")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = [Weight(str(name), entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()]
        places = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
        whole = all(
            len(weight.shape) <= MOST_AXES and all(type(n) is int and 0 <= n <= size for n in weight.shape)
            for weight in found
        )
        if not whole:
            raise Damaged("the header does not fit its tensors")
        bits = [weight.count * DTYPE_BITS[weight.dtype] for weight in found]
        fits = all(
            8 * (e["data_offsets"][1] - e["data_offsets"][0]) == b for e, b in zip(entries.values(), bits, strict=True)
        )
        ends = [0, *(end for _, end in places)]
    except Damaged:
        raise
    except ODD as error:
        raise Damaged("no header of safetensors") from error
    if not (fits and [begin for begin, _ in places] == ends[:-1]):
        raise Damaged("the header does not fit its tensors")
    if ends[-1] != size - 8 - length:
        raise Damaged(f"{size - 8 - length} bytes of weights, the header names {ends[-1]}")
    return found


def check_weights(path: Path) -> str:
    found = weights(path)
    return f"{len(found)} tensors, {sum(weight.count for weight in found):,} values"


def check_document(path: Path) -> str:
    if not isinstance(read(path), Mapping):
        raise Damaged("no mapping")
    return ""


def check_result(path: Path) -> str:
    try:
        record.read(path.parent)
    except Unreadable as error:
        if path.name in str(error):  # config.yaml has a line of its own
            raise Damaged(str(error).partition(": ")[2]) from error
    return ""


def check_rounds(path: Path) -> str:
    """Lines that can be read; the last one of an interrupted run may be cut."""
    try:
        members = record.members(path.parent)
    except Unreadable as error:
        raise Damaged(str(error).removeprefix(f"{path.parent}: ")) from error
    lines = sum(1 for line in content(path, MOST_ROUNDS_BYTES).split(b"\n") if line.strip())
    if len(members) < lines:
        raise Damaged(f"{lines - len(members)} of {lines} lines cannot be read")
    return f"{len(members)} members in {len({member.round for member in members})} rounds"


def check_png(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(24)
        file.seek(max(0, path.stat().st_size - len(PNG_END)))
        end = file.read()
    if not head.startswith(PNG) or head[12:16] != b"IHDR":
        raise Damaged("not PNG")
    if end != PNG_END:
        raise Damaged("cut off")
    width, height = struct.unpack(">II", head[16:24])
    return f"{width} x {height}"


def check_page(path: Path) -> str:
    with path.open("rb") as file:
        if not file.read(100).lstrip().lower().startswith(b"<!doctype html"):
            raise Damaged("not HTML")
    return ""


def check_events(path: Path) -> str:
    """The length of every record of the TFRecord format, in turn; their checksums are TensorBoard's matter."""
    size, place, count = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while place < size and count < MOST_EVENTS:
            file.seek(place)
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            place += 12 + length + 4
            count += 1
            if place > size:
                raise Damaged("its last record is cut off" if count > 1 else "not a file of events")
    return f"{count} records{' and more' if place < size else ''}"


KNOWN: dict[str, tuple[str, Callable[[Path], str] | None]] = {
    "config.yaml": ("the resolved config", check_document),
    "composed.yaml": ("choices and overrides", check_document),
    "rounds.jsonl": ("the record", check_rounds),
    "result.json": ("the result", check_result),
    "model.json": ("what rebuilds the model", check_document),
    "model.safetensors": ("the best member's weights", check_weights),
    "cases.json": ("the best and worst test examples", check_document),
    "examples.png": ("inputs, outputs, targets", check_png),
    "kernels.png": ("the learned kernels", check_png),
    "response.png": ("what the model looks at", check_png),
    "report.html": ("all of it on one page", check_page),
    "run.log": ("the log", None),
    "checkpoints": ("the last two rounds", None),
}
