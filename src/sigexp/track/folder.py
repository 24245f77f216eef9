"""A run's folder: its name, its exclusive creation, and files that are written whole or not at all."""

import errno
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sigexp.machine import versions

log = logging.getLogger("sigexp")

UNSIGNED = ("outputs", "device", "models")  # settings that do not determine the result


def signature(config: Mapping[str, Any], source: Mapping[str, str], version: str) -> str:
    """Eight hex digits of what determines the result: config, data source, version."""
    what = {
        "config": {k: v for k, v in config.items() if k not in UNSIGNED},
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
    """Replace a file by one rename, so that readers see the old or the new one and never a part."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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


@contextmanager
def logging_to(folder: Path, command: str) -> Iterator[None]:
    """run.log in the run's folder: the command and the versions first, the traceback last where a run ends early."""
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    log.info("command: %s", command)
    log.info("versions: %s", versions())
    try:
        yield
    except KeyboardInterrupt as stop:
        log.exception("the run was interrupted")
        stop.args = (str(folder),)
        raise
    except BaseException:
        log.exception("the run ended early")
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
