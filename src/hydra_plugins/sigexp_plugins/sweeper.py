"""The sweeper of `sigexp -m`: Hydra's basic one, whose jobs `sigexp.sweeping` checks before the first and runs."""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


class CheckedSweeper(basic_sweeper.BasicSweeper):
    def sweep(self, arguments: list[str]) -> Any:
        from sigexp.sweeping import sweep  # imports torch, which Hydra's scan for plugins must not

        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = parser.parse_overrides([*self._parse_config(), *arguments])
        return sweep(self, [job for batch in self.split_arguments(words, None) for job in batch])


@dataclass
class CheckedSweeperConf(basic_sweeper.BasicSweeperConf):
    _target_: str = "hydra_plugins.sigexp_plugins.sweeper.CheckedSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="sigexp", node=CheckedSweeperConf, provider="sigexp")
