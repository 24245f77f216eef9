"""What a user is told about an error: one or two lines, and the exit code."""

import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from sigexp.catalog import unused_conf
from sigexp.config import ConfigError
from sigexp.fields import did_you_mean, setting_meant

DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR})


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, outermost first; each once, because contexts can form a ring."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def explanation(error: BaseException) -> tuple[int, str]:
    """Exit code and message. What is not a user's doing is an internal error, code 1, and says how to see more."""
    if isinstance(error, ConfigError):
        return 2, first_lines(error)
    for link in chain(error):
        for rule in (_swept, _configuration, _diverged, _disk, _memory):
            found = rule(link)
            if found:
                return found
    if isinstance(error, OSError):
        return 2, f"{error.filename}: {error.strerror}" if error.filename else first_lines(error)
    if isinstance(error, (ValueError, HydraException)):
        return 2, _in_override(error) + first_lines(error)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return 1, f"{type(error).__name__}{where}: {first_lines(error)}\nHYDRA_FULL_ERROR=1 shows the traceback"


def first_lines(error: BaseException, most: int = 2) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n".join(line[:400] for line in lines[:most]) or type(error).__name__


def _in_override(error: BaseException) -> str:
    """'NAME=VALUE: ' where an override made Hydra raise an error that does not say which one it was."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_apply_overrides_to_config" and "override" in frame.f_locals:
            return f"{frame.f_locals['override'].input_line}: "
        if frame.f_code.co_name == "parse_rule" and "hydra" in frame.f_code.co_filename:
            return f"{str(frame.f_locals.get('s', ''))[:60]}: "
    return ""


def _configuration(error: BaseException) -> tuple[int, str] | None:
    if isinstance(error, MissingConfigException):
        return 2, _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return 2, f"{error.override}: cannot be read as NAME=VALUE ({first_lines(error, 1)})"
    if "Ambiguous value for argument" in str(error) or "requires --multirun" in str(error):
        return 2, f"{first_lines(error, 1)}: several values are a sweep; add -m"
    if isinstance(error, OmegaConfBaseException) and "_dummy_" in str(error):
        named = re.search(r"key '(\w+)'", str(error))
        return 2, f"{named[1] if named else 'a choice'}: expected one name (`sigexp list` shows what there is)"
    if "override must be a string or a list" in str(error):
        return 2, "a choice cannot be null: give experiment=NAME, model=NAME, search=NAME (`sigexp list` shows them)"
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return 2, _unknown_key(error)
    if isinstance(error, ValidationError):
        return 2, f"{error.full_key}: {first_lines(error, 1)}"
    if isinstance(error, MissingMandatoryValue):
        return 2, f"a value is missing: {first_lines(error, 1)}"
    if isinstance(error, yaml.YAMLError):
        return 2, f"not YAML: {' '.join(str(error).split())}"
    if isinstance(error, OmegaConfBaseException) and error.__cause__ is None:
        return 2, first_lines(error)
    return None


def _missing_choice(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return first_lines(error)
    own = "" if Path("conf").is_dir() else " (no ./conf in this folder)"
    if unused_conf():
        own = " (./conf here is a checkout's or a run's, and not used)"
    return f"{group}={name}: no such {group}{own}{did_you_mean(name, error.options or [])}"


def _unknown_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    name = str(error.full_key or error.key)
    if name in ("experiment", "tune"):
        return f"{name}: its YAML must begin with the line '# @package _global_'"
    root = error.parent_node._get_root() if error.parent_node is not None else None
    return f"{name}: no such setting{setting_meant(name, paths_in(root))}"


def paths_in(node: Any, prefix: str = "") -> Iterator[str]:
    """Every setting of a composed config, Hydra's own left out."""
    for key in node if OmegaConf.is_dict(node) else ():
        name = f"{prefix}{key}"
        if name != "hydra" and not str(key).startswith("_"):
            yield name
            yield from paths_in(node._get_node(key), f"{name}.")


def _swept(error: BaseException) -> tuple[int, str] | None:
    return (error.code, str(error)) if type(error).__name__ == "SweepFailed" else None  # type: ignore[attr-defined]


def _diverged(error: BaseException) -> tuple[int, str] | None:
    if type(error).__name__ != "Diverged":
        return None
    return 3, f"{error}\nlower trainer.optimizer.lr or search.lr_decades, or set trainer.clip_norm=1"


def _disk(error: BaseException) -> tuple[int, str] | None:
    if isinstance(error, OSError) and error.errno in DISK:
        where = f" {error.filename}" if error.filename else ""
        return 4, f"cannot use{where}: {error.strerror}; for the run's own folder, choose another with outputs=DIR"
    return None


def _memory(error: BaseException) -> tuple[int, str] | None:
    short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if short or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        what = first_lines(error, 1)[:120]
        return 2, f"not enough memory ({what})\nlower dataset.size, trainer.batch_size or search.members"
    return None
