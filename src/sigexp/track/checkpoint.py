"""Checkpoints of a run: tensors and values, written so that the last whole one survives whatever ends the process.

A checkpoint is two files in `checkpoints/`, NUMBER.safetensors and then NUMBER.json, which has the checksum of both.
Each is written under another name, flushed to the disk and renamed; the two newest are kept. What is read may come
from a stranger: no pickle, nothing that is named is opened.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sigexp import clock, machine
from sigexp.track import documents
from sigexp.track import folder as folders

KEPT = 2
SHARE = 0.05  # of the time that saving may take, between rounds
EVERY_S = 30.0  # seconds between two, inside a round
MOST_JSON_BYTES = 256_000_000
SCHEMA_VERSION = 1
ROUNDS, EVENTS = "rounds.jsonl", "events.out.tfevents."


@dataclass(frozen=True)
class Checkpoint:
    tensors: Mapping[str, Tensor]
    data: Mapping[str, Any]
    files: Mapping[str, int]  # how many bytes of the record belong to it


class Damaged(ValueError):
    """A checkpoint that is not whole, or not of this version."""


class Checkpoints:
    """Those of one run. Raises OSError where the disk does; the older ones stay as they are."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "checkpoints"
        self.began, self.spent = clock.seconds(), 0.0
        self.last: float | None = None  # when one was saved, or when that was first asked for
        self.number = max((int(path.stem) for path in self._found()), default=0)

    def _found(self) -> list[Path]:
        """The JSON of every checkpoint, the newest first."""
        named = [path for path in self.folder.glob("*.json") if path.stem.isdigit() and path.stem.isascii()]
        return sorted(named, key=lambda path: int(path.stem), reverse=True)

    def due(self, round_begins: bool) -> bool:
        """Whether to save now: when a round begins, unless that has cost too much time so far, and inside long ones."""
        self.last = self.last or time.perf_counter()
        if round_begins:
            return self.spent <= SHARE * (clock.seconds() - self.began)
        return time.perf_counter() - self.last >= EVERY_S

    def save(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Write one more, and remove all but the last two."""
        began = clock.seconds()
        self.folder.mkdir(exist_ok=True)
        files = self._recorded()
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        self.number += 1
        stem = self.folder / f"{self.number:06}"
        body = {"files": files, "bytes": len(content), "tensors_sha256": hashlib.sha256(content).hexdigest(), **data}
        folders.write(stem.with_suffix(".safetensors"), content)
        folders.write(stem.with_suffix(".json"), sealed(body))
        for old in self._found()[KEPT:]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)
        self.last = time.perf_counter()
        self.spent += clock.seconds() - began

    def _recorded(self) -> dict[str, int]:
        """The lengths of the files that grow, which the disk has by then."""
        found = {}
        for path in [self.run / ROUNDS, *self.run.glob(f"{EVENTS}*")]:
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    found[path.name] = os.fstat(file.fileno()).st_size
        return found

    def latest(self, tell: Callable[[str], None]) -> Checkpoint | None:
        """The newest that is whole, None where there is none; `tell` gets a line for every damaged one."""
        for path in self._found():
            try:
                return self._read(path)
            except Damaged as error:
                tell(f"{path.parent.name}/{path.name} is damaged ({error}) and left out")
        return None

    def _read(self, path: Path) -> Checkpoint:
        try:
            body = unsealed(documents.content(path, MOST_JSON_BYTES))
            content = documents.content(path.with_suffix(".safetensors"), machine.free_memory_bytes("cpu") // 3)
            files = {str(name): max(0, int(size)) for name, size in body.pop("files").items()}
            digest = hashlib.sha256(content).hexdigest()
            if len(content) != body.pop("bytes") or digest != body.pop("tensors_sha256"):
                raise Damaged(f"{path.stem}.safetensors is not what was written")
            rounds = self.run / ROUNDS
            if (rounds.stat().st_size if rounds.is_file() else 0) < files.get(ROUNDS, 0):
                raise Damaged(f"{ROUNDS} is shorter than it was")
            return Checkpoint(load(content), body, files)
        except (OSError, *documents.ODD, SafetensorError) as error:
            raise Damaged(documents.reason(error)) from error

    def clean(self, files: Mapping[str, int]) -> None:
        """Cut the record to what belongs to a checkpoint, and remove what a killed process left half written."""
        for path in [*self.run.glob(".*.*"), *self.folder.glob(".*.*")]:
            path.unlink(missing_ok=True)
        for path in [self.run / ROUNDS, *self.run.glob(f"{EVENTS}*")]:
            if not path.is_file():
                continue
            if path.name not in files:
                path.unlink()
            elif path.stat().st_size > files[path.name]:
                os.truncate(path, files[path.name])


def sealed(body: Mapping[str, Any]) -> str:
    """The values as JSON, with a checksum of them."""
    text = folders.dumps(body)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"schema_version": {SCHEMA_VERSION}, "sha256": "{digest}", "checkpoint": {text}}}\n'


def unsealed(content: bytes) -> dict[str, Any]:
    """The values of `sealed`. Raises `Damaged` where a single bit is another."""
    try:
        found = json.loads(content)
        body = found["checkpoint"]
        if not isinstance(body, dict) or sealed(body).encode() != content:
            raise Damaged("its checksum is wrong")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(str(error)[:120]) from error
    return body
