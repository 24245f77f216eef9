"""What is checked of every job of a sweep before the first one runs."""

import json
from collections.abc import Mapping
from typing import Any

from sigexp import config as configuration
from sigexp import machine, training
from sigexp.names import Names
from sigexp.problem import Problem


class Checks:
    """What a run checks before it begins, each dataset built and each model tried on it once."""

    def __init__(self) -> None:
        self.sources: dict[str, Mapping[str, str]] = {}
        self.tried: dict[str, ValueError | None] = {}  # what is wrong with a pair of dataset and model
        self.latest: tuple[str, Problem] | None = None  # one alone: problems may hold their data

    def source(self, config: Mapping[str, Any], names: Names) -> Mapping[str, str]:
        """Where a config's data come from; raises what its run would raise before it begins."""
        configuration.check(config)
        machine.pick_device(config["device"])
        dataset = key(config["dataset"])
        if dataset not in self.sources:
            self.sources[dataset] = self.problem(config, dataset).source
        setting = {name: value for name, value in config["dataset"].items() if name != "seed"}
        pair = key([setting, *(config[name] for name in ("model", "search", "trainer"))])
        if pair not in self.tried:
            self.tried[pair] = None
            try:
                settings = training.build_search(config)
                training.first_member(config, names, self.problem(config, dataset), settings)
            except ValueError as error:
                self.tried[pair] = error
        if (wrong := self.tried[pair]) is not None:
            raise wrong
        return self.sources[dataset]

    def problem(self, config: Mapping[str, Any], dataset: str) -> Problem:
        if self.latest is None or self.latest[0] != dataset:
            self.latest = dataset, training.build_problem(config)
        return self.latest[1]


def key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
