"""The configs of a sweep's jobs: Hydra composes one for all that differ in single values, because that takes a quarter
of a second."""

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

SECTIONS = ("dataset.", "model.", "search.", "trainer.")  # of fields; groups have slashes in their names
ALONE = ("seed", "footprint", "device")


class Composer:
    """Composes jobs as the sweeper's loader does."""

    def __init__(self, sweeper: Any) -> None:
        self.loader, self.master = sweeper.hydra_context.config_loader, sweeper.config
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.known: dict[tuple[str, ...], DictConfig] = {}  # what is left of the overrides -> config

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Raises whatever Hydra raises for overrides that cannot be."""
        try:
            parsed = self.parser.parse_overrides(list(overrides))
            values = [one for one in parsed if is_value(one) and not any(meets(one, o) for o in parsed if o is not one)]
            rest = tuple(str(one.input_line) for one in parsed if one not in values)
            if rest not in self.known:
                self.known[rest] = self.loader.load_sweep_config(self.master, list(rest))
            found = copy.deepcopy(self.known[rest])
            for one in values:
                OmegaConf.update(found, str(one.key_or_group), one.value())
            found.hydra.overrides.task = [str(one.input_line) for one in parsed if not one.is_hydra_override()]
            return found
        except Exception:  # Hydra says what is wrong with the overrides as they were given
            whole: DictConfig = self.loader.load_sweep_config(self.master, list(overrides))
            return whole


def is_value(one: Override) -> bool:
    """Whether an override gives another number or word to a field that is there."""
    if one.package is not None or one.is_add() or one.is_force_add() or one.is_delete() or one.is_sweep_override():
        return False
    key = str(one.key_or_group)
    return (key in ALONE or key.startswith(SECTIONS)) and not isinstance(one.value(), dict | list)


def meets(one: Override, other: Override) -> bool:
    """Whether the order of two overrides may matter: one is for the other's field, or for what that lies in."""
    short, long = sorted((str(one.key_or_group), str(other.key_or_group)), key=len)
    return short == long or long.startswith(f"{short}.")
