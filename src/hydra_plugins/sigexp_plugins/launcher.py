"""The launcher of `sigexp -m`: Hydra's basic one, but jobs that can be one population are carried out as one.

`sigexp.sweeping` forms the groups; hydra/launcher=basic runs one job after another.
"""

from dataclasses import dataclass

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore


class FusedLauncher(BasicLauncher):
    """Jobs that are in no group run one after another."""

    fuses = True


@dataclass
class FusedLauncherConf:
    _target_: str = "hydra_plugins.sigexp_plugins.launcher.FusedLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="fused", node=FusedLauncherConf, provider="sigexp")
