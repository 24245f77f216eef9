"""Files of a folder that may be a stranger's: data, in bounded amounts, no links, no pipes, nothing computed.

A link inside the folder could lead to any file of this machine, and what it holds then stands in a table or a page.
YAML is read without aliases, with which a few lines stand for a tree without end. Imports no torch.
"""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MOST_JSON_BYTES = 10_000_000
MOST_ROUNDS_BYTES = 100_000_000  # a line of 300 for each of 256 members in 1000 rounds
MOST_YAML_BYTES = 100_000  # YAML takes far more time than it takes bytes
MOST_NESTING = 100  # of YAML
MOST_PICTURE_BYTES = 50_000_000
MOST_REASON = 120  # characters
# What the standard library and PyYAML raise for odd input, explicit tags such as `!!timestamp x` among it.
ODD = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, yaml.YAMLError,
)  # fmt: skip
# libyaml's, where PyYAML has them, take a tenth of the time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Unreadable(ValueError):
    """A folder that is no finished run, or a file of it that cannot be read; the message is one line."""


def regular(path: Path, most: int) -> Path:
    """The path of a file of its own, at most so many bytes long. Raises ValueError for a link, a pipe, a folder, and
    OSError where it is missing."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise ValueError("a link, which is not followed")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no file")
    if found.st_size > most:
        raise ValueError(f"{found.st_size:,} bytes, more than {most:,}")
    return path


def content(path: Path, most: int) -> bytes:
    """What a file holds, as `regular`, also where another one takes its place meanwhile; of one that grows, what was
    there."""
    regular(path, most)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        return file.read(min(os.fstat(file.fileno()).st_size, most))


def text(path: Path, most: int, errors: str = "strict") -> str:
    """A file of UTF-8, as `content`."""
    return content(path, most).decode("utf-8", errors)


def load_json(path: Path, most: int = MOST_JSON_BYTES) -> Any:
    """A JSON file. Raises `Unreadable` with a line that begins with its folder."""
    return _parsed(path, most, json.loads, "JSON")


def load_yaml(folder: Path, name: str, most: int = MOST_YAML_BYTES) -> Any:
    """A YAML file of plain values, not longer than ours are; None where it is missing. Raises `Unreadable`."""
    path = folder / name
    if not os.path.lexists(path):
        return None
    return _parsed(path, most, _plain_yaml, "YAML")


def _plain_yaml(text: str) -> Any:
    """Without aliases: our files have none, and with them a small file can stand for a tree without end."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which no file of sigexp's has")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTING:
            raise yaml.YAMLError(f"it is nested more than {MOST_NESTING} deep")
    return yaml.load(text, Loader=_LOADER)


def dump_yaml(value: Any) -> str:
    """Plain values as YAML, in their own order."""
    found: str = yaml.dump(value, Dumper=_DUMPER, sort_keys=False)
    return found


def _parsed(path: Path, most: int, parse: Callable[[str], Any], kind: str) -> Any:
    try:
        data = text(path, most)
        try:
            return parse(data)
        except ODD as error:
            raise ValueError(f"not {kind}: {reason(error)}") from error
    except (ValueError, OSError) as error:
        raise Unreadable(f"{path.parent}: {path.name} cannot be read ({reason(error)})") from error


def png(path: Path) -> bytes:
    """A PNG by its first bytes; none where it is missing, a link, too large or anything else."""
    try:
        data = content(path, MOST_PICTURE_BYTES)
    except (ValueError, OSError):
        return b""
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") else b""


def reason(error: BaseException) -> str:
    """Why something cannot be read, in one line that steers no terminal."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = printable(said or type(error).__name__)
    return words if len(words) <= MOST_REASON else f"{words[:MOST_REASON]}..."


def printable(words: str) -> str:
    """The text on one line, without what would steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())
