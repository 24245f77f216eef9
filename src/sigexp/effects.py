"""Settings that were given and change nothing: refused where they are a slip, else said."""

from collections.abc import Mapping, Sequence
from typing import Any

from sigexp import catalog
from sigexp.config import ConfigError, target_of
from sigexp.fields import did_you_mean
from sigexp.names import Names

OPTIONAL = ("tune", "lecture")  # groups whose files Hydra leaves out in silence where they are not there


def without_effect(config: Mapping[str, Any], names: Names, overrides: Sequence[str]) -> list[str]:
    """What to say of overrides that change nothing, a line each; raises `ConfigError` for a file that is not there."""
    said = []
    unused: Sequence[str] = getattr(target_of(config["search"], "search"), "unused", ())
    for word in overrides:
        name, _, value = word.lstrip("+").partition("=")
        group, _, field = name.partition(".")
        if name in OPTIONAL and not catalog.digest(f"{name}/{value}.yaml"):
            known = [choice.name for choice in catalog.choices(name)]
            raise ConfigError(f"{name}={value}: no such {name}{did_you_mean(value, known)}")
        if group == "lecture" and field and names.search != "lecture":
            said.append(f"{name} has no effect: it is what search=lecture uses")
        if group == "search" and field in unused:
            said.append(f"{name} has no effect with search={names.search}")
    return said
