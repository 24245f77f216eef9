"""A run's folder: its name, its exclusive creation, and files that are written whole or not at all."""

import errno
import hashlib
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sigexp.machine import versions

log = logging.getLogger("sigexp")

# Settings that do not determine the result.
UNSIGNED = ("outputs", "device", "models")
UNSIGNED_TRAINER = ("processes", "tune_allocator", "engine")


def signature(config: Mapping[str, Any], source: Mapping[str, str], version: str) -> str:
    """Eight hex digits of what determines the result: config, data source, version."""
    trainer = {k: v for k, v in config["trainer"].items() if k not in UNSIGNED_TRAINER}
    what = {
        "config": {**{k: v for k, v in config.items() if k not in UNSIGNED}, "trainer": trainer},
        "source": dict(source),
        "version": version,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:8]


def create(root: Path, experiment: str, model: str, sign: str) -> Path:
    """Make `root/experiment/model/time-signature` exclusively; -2, -3, ... where another run was quicker."""
    parent = root / experiment / model
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # a place that takes no folders, such as /proc
        raise PermissionError(errno.EACCES, "no folder can be made there", str(parent)) from error
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{sign}"
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def write(path: Path, content: str | bytes) -> None:
    """Replace a file by one rename, so that readers see the old or the new one and never a part, whatever happens."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode_of(path))
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def mode_of(path: Path) -> int:
    """A file's permissions, or those of a new one."""
    with suppress(FileNotFoundError):
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def sync(folder: Path) -> None:
    """Have the disk know a folder's names, without which a rename does not survive a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def jsonable(value: Any) -> Any:
    """The value with numbers that JSON lacks (NaN, infinities) as null, and floats unrounded."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(jsonable(value), indent=indent, allow_nan=False)


class InUse(ValueError):
    """Another process is at a run."""


class RunLog(logging.FileHandler):
    """run.log, which one process has at a time. A disk that fails ends the run, as with every other of its files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "run.log", encoding="utf-8")
        assert self.stream is not None
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self.stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise InUse(f"{folder}: another process is at this run; end that one first") from None
            except OSError:  # a file system without locks
                log.debug("no lock on run.log")

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


@contextmanager
def logging_to(folder: Path, command: str) -> Iterator[None]:
    """run.log in the run's folder: the command and the versions first, the traceback last where a run ends early.

    Raises `InUse` where another process is at the run.
    """
    handler = RunLog(folder)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        log.info("command: %s", command)
        log.info("versions: %s", versions())
        yield
    except KeyboardInterrupt as stop:
        stop.args = (str(folder), *stop.args)
        with suppress(OSError):
            log.warning("interrupted")
        raise
    except BaseException:
        with suppress(OSError):  # the disk that ended the run
            log.exception("the run ended early")
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
