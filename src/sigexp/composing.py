"""The configs of a sweep's jobs: Hydra composes one for all that differ in single values, because that takes a quarter
of a second."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from sigexp.config import plain

SECTIONS = ("dataset.", "model.", "search.", "trainer.")  # of fields; groups have slashes in their names
ALONE = ("seed", "footprint", "device")


@dataclass(frozen=True)
class Composed:
    """What a job's run needs to know: its config, the choices of groups, and its own overrides."""

    config: dict[str, Any]
    choices: dict[str, str]
    task: list[str]

    @classmethod
    def of(cls, cfg: DictConfig) -> "Composed":
        """Of all that Hydra composes."""
        return cls(plain(cfg), dict(cfg.hydra.runtime.choices), list(cfg.hydra.overrides.task))


class Composer:
    """Composes jobs as the sweeper's loader does."""

    def __init__(self, sweeper: Any) -> None:
        self.loader, self.master = sweeper.hydra_context.config_loader, sweeper.config
        self.parser = OverridesParser.create(config_loader=self.loader)
        # What is left of the overrides -> the config without the sections that `plain` leaves out, and the choices.
        self.known: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Raises whatever Hydra raises for overrides that cannot be."""
        if "${" in "".join(overrides):  # which Hydra resolves in the overrides themselves
            return self.composed(overrides)
        try:
            parsed = self.parser.parse_overrides(list(overrides))
            values = [one for one in parsed if is_value(one) and not any(meets(one, o) for o in parsed if o is not one)]
            rest = tuple(str(one.input_line) for one in parsed if one not in values)
            if rest not in self.known:
                cfg = self.loader.load_sweep_config(self.master, list(rest))
                choices = dict(cfg.hydra.runtime.choices)
                with read_write(cfg), open_dict(cfg):
                    del cfg["hydra"], cfg["sweep"]
                self.known[rest] = cfg, choices
            ours, choices = self.known[rest]
            found = copy.deepcopy(ours)
            for one in values:
                OmegaConf.update(found, str(one.key_or_group), one.value())
            task = [str(one.input_line) for one in parsed if not one.is_hydra_override()]
            return Composed(plain(found), choices, task)
        except Exception:  # Hydra says what is wrong with the overrides as they were given
            return self.composed(overrides)

    def composed(self, overrides: Sequence[str]) -> Composed:
        """By Hydra alone."""
        return Composed.of(self.loader.load_sweep_config(self.master, list(overrides)))


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
