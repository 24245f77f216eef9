"""What a folder that is reloaded may name: it may come from a stranger, and nothing in it may run.

Targets are those that a conf in force offers (the packaged one or the user's ./conf), for models the module classes of
torch.nn too, and what the user widens this by: `--trust PREFIX`. Nothing here imports torch before it has to.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import yaml

from sigexp import catalog

MOST_DEPTH = 20  # of a config's nesting


def offered_targets(*groups: str) -> set[str]:
    """Every `_target_` in some groups of the packaged conf and the user's own."""
    found: set[str] = set()
    for conf in (catalog.conf_dir(), catalog.user_conf()):
        for path in (path for group in groups for path in (conf / group).glob("*.yaml")) if conf else ():
            with suppress(yaml.YAMLError, UnicodeDecodeError):  # a broken file offers nothing; composing it says why
                found |= set(targets(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return found


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` anywhere in a config node."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield str(value)
            else:
                yield from targets(value)
    elif isinstance(node, list):
        for item in node:
            yield from targets(item)


def check_targets(named: Iterable[str], groups: Sequence[str], trust: Sequence[str], where: object) -> None:
    """Raise ValueError for the first target that is neither on offer in the groups nor trusted by a prefix."""
    for target in named:
        offered = target in offered_targets(*groups) or ("model" in groups and of_torch(target))
        if not offered and not widened(target, trust):
            raise ValueError(
                f"{where}: names {target!r}, which neither sigexp's conf nor your ./conf offers; "
                "what is your own loads in the folder that holds its ./conf, or by --trust PREFIX"
            )


def of_torch(target: str) -> bool:
    """Whether a target is a module class of torch.nn itself."""
    name = target.removeprefix("torch.nn.")
    if not (target.startswith("torch.nn.") and name.isidentifier()):
        return False
    from torch import nn

    found = getattr(nn, name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def widened(target: str, trust: Sequence[str]) -> bool:
    """Whether a target lies under a prefix that the user trusts, and what it imports is defined there too."""

    def under(name: str) -> bool:
        return any(name == prefix or name.startswith(f"{prefix}.") for prefix in trust)

    if not under(target):
        return False
    from sigexp.config import target_of

    found = target_of({"_target_": target}, "--trust")
    return under(f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}")


def refuse_magic(node: Any, where: object, depth: int = 0) -> None:
    """Refuse what would be computed while a config is built: interpolations, and keys that Hydra acts on.

    And what is nested more deeply than any config, which would exhaust the stack of whatever walks it next.
    """
    if depth > MOST_DEPTH:
        raise ValueError(f"{where}: is nested more than {MOST_DEPTH} levels deep")
    if isinstance(node, Mapping):
        for key, value in node.items():
            if str(key).startswith("_") and key != "_target_":
                raise ValueError(f"{where}: names the key {key!r}, which it has no use for")
            refuse_magic(value, where, depth + 1)
    elif isinstance(node, list):
        for item in node:
            refuse_magic(item, where, depth + 1)
    elif isinstance(node, str) and "${" in node:
        raise ValueError(f"{where}: holds {node!r}; it may have plain values only")


def leads_out(value: Any) -> bool:
    """Whether a value, or one inside it, is a path that leaves the working directory."""
    if isinstance(value, Mapping):
        return any(leads_out(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(leads_out(item) for item in value)
    return isinstance(value, str) and (value.startswith(("/", "~", "\\")) or ".." in PurePath(value).parts)


def own_outputs(folder: Path, outputs: Any) -> str | None:
    """The root of runs that a folder names, where it is the one it lies in itself, three folders up; else None."""
    root = folder.resolve().parents
    return str(outputs) if len(root) > 2 and Path(str(outputs)).resolve() == root[2] else None
