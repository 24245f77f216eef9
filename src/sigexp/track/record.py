"""What a run left behind, read back: result.json, rounds.jsonl, config.yaml, composed.yaml, cases.json.

A folder may come from anybody. Nothing that it names is built, imported or opened; what the readers rely on is checked
here, and numbers are numbers from here on. Imports no torch.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigexp.track.documents import (
    MOST_ROUNDS_BYTES,
    MOST_YAML_BYTES,
    Unreadable,
    load_json,
    load_yaml,
    printable,
    reason,
    text,
)

__all__ = ["MOST_YAML_BYTES", "Unreadable", "load_yaml", "printable"]  # for those that read a record
MARKS = ("result.json", "rounds.jsonl", "composed.yaml")  # one of these makes a folder a run's


@dataclass(frozen=True)
class Member:
    """One member at the end of one round: a line of rounds.jsonl. Numbers that were not finite are None."""

    id: int
    parent: int | None
    round: int
    hparams: dict[str, float]
    samples: float
    total_samples: float
    train_loss: float | None
    valid_loss: float | None
    valid: float | None
    diverged: bool


@dataclass(frozen=True)
class Record:
    """A finished run: where it lies, its result, its config ({} where that is missing) and what was overridden."""

    folder: Path
    result: dict[str, Any]
    config: dict[str, Any]
    overrides: list[str]

    @property
    def experiment(self) -> str:
        return str(self.result["experiment"])

    @property
    def model(self) -> str:
        return str(self.result["model"]["name"])

    @property
    def test(self) -> dict[str, float | None]:
        """The best member's metrics on test data, the headline first."""
        return numbers(self.result["best"]["test"])

    @property
    def references(self) -> dict[str, dict[str, float | None]]:
        return {name: numbers(values) for name, values in mapping(self.result.get("references")).items()}


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def finite(value: Any) -> float | None:
    """The value where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond the floats
        return None


def numbers(values: Any) -> dict[str, float | None]:
    """The entries of a mapping that are numbers or null."""
    found = mapping(values)
    return {name: finite(value) for name, value in found.items() if value is None or finite(value) is not None}


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MARKS)


def read(folder: Path) -> Record:
    """A finished run. Raises `Unreadable` with one line for everything else."""
    if not folder.is_dir():
        raise Unreadable(f"{folder}: no such folder")
    if not is_run(folder):
        raise Unreadable(f"{folder}: not the folder of a run (no result.json)")
    if not (folder / "result.json").is_file():
        raise Unreadable(f"{folder}: not finished (no result.json; run.log says how far it came)")
    result = _checked(folder, load_json(folder / "result.json"))
    return Record(folder, result, mapping(load_yaml(folder, "config.yaml")), overrides(folder))


def overrides(folder: Path) -> list[str]:
    """The overrides that a run was started with."""
    found = mapping(load_yaml(folder, "composed.yaml")).get("overrides")
    return [str(word) for word in found] if isinstance(found, list) else []


def members(folder: Path) -> list[Member]:
    """The record of a run's members; lines that are damaged, as the last one of an interrupted run may be, are left
    out. Raises `Unreadable` where it is a link, or longer than a search can make it."""
    path = folder / "rounds.jsonl"
    try:
        return list(_members(text(path, MOST_ROUNDS_BYTES, errors="replace")))
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        raise Unreadable(f"{folder}: {path.name} cannot be read ({reason(error)})") from error


def cases(folder: Path) -> dict[str, Any]:
    """What cases.json holds; {} where there is none or it is damaged."""
    try:
        return mapping(load_json(folder / "cases.json"))
    except Unreadable:
        return {}


def _members(record: str) -> Iterator[Member]:
    for line in record.split("\n"):
        try:
            found = mapping(json.loads(line))
        except (ValueError, RecursionError):
            continue
        id_, parent, round_ = (found.get(name) for name in ("id", "parent", "round"))
        total = finite(found.get("total_samples"))
        if isinstance(id_, int) and isinstance(round_, int) and total is not None:
            yield Member(
                id=id_,
                parent=parent if isinstance(parent, int) else None,
                round=round_,
                hparams={k: v for k, v in numbers(found.get("hparams")).items() if v is not None},
                samples=finite(found.get("samples")) or 0.0,
                total_samples=total,
                train_loss=finite(found.get("train_loss")),
                valid_loss=finite(found.get("valid_loss")),
                valid=finite(found.get("valid")),
                diverged=bool(found.get("diverged")),
            )


def _checked(folder: Path, found: Any) -> dict[str, Any]:
    """result.json with the parts that every reader needs."""
    result = mapping(found)
    best, model = mapping(result.get("best")), mapping(result.get("model"))
    lacking = [
        name
        for name, there in [
            ("experiment", isinstance(result.get("experiment"), str)),
            ("model.name", isinstance(model.get("name"), str)),
            ("best.test", bool(numbers(best.get("test")))),
        ]
        if not there
    ]
    if lacking:
        raise Unreadable(f"{folder}: result.json is damaged or none of sigexp's (no {', '.join(lacking)})")
    return result
