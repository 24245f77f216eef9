"""A user's own `./conf` extends the packaged one; appended, so it may not replace a file of it."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class UserConf(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from sigexp.catalog import user_conf

        if conf := user_conf():
            search_path.append(provider="sigexp-user", path=f"file://{conf}")
