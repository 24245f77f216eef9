"""Runs side by side: grouped by what differs between their configs, mean and 95 % interval over seeds, references.

Runs of one config with different seeds are one group. A run that repeats another one's config and seeds adds nothing to
a mean, so only the newest of them counts. References depend on the data but not on the initial weights: they are
averaged over the data's seeds.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sigexp.metrics import higher_is_better
from sigexp.report.verdicts import half_interval, mean
from sigexp.track.record import Record, finite, mapping

SEEDS = ("seed", "dataset.seed")
ASIDE = (*SEEDS, "outputs")  # settings that make no other group
ASIDE_BELOW = ("models", "lecture", "names")  # of the config: what the run's names or the budget say already
MOST_SETTINGS = 2000  # of one config that are looked at

COSTS = ("parameters", "samples", "seconds")  # of result.json, shown beside the metrics


@dataclass(frozen=True)
class Row:
    """A predictor in a table: its values by metric, one for every seed; `label` is its name and what is its own."""

    name: str
    label: str
    learned: bool
    values: Mapping[str, list[float]]
    settings: Mapping[str, str] = field(default_factory=dict)
    runs: Sequence[Record] = ()

    def mean(self, metric: str) -> float | None:
        return mean(self.values.get(metric, []))

    def half_interval(self, metric: str) -> float | None:
        return half_interval(self.values.get(metric, []))

    @property
    def count(self) -> int:
        return max(map(len, self.values.values()), default=0)


@dataclass(frozen=True)
class Comparison:
    """The runs of one experiment: its metrics, the headline first, and its rows, the best first."""

    experiment: str
    metrics: list[str]
    rows: list[Row]
    repeated: int  # runs left out because newer ones have the same config and seeds

    def best(self, metric: str) -> Row | None:
        """The learned row with the best mean."""
        known = [(value, row) for row in self.rows if row.learned and (value := row.mean(metric)) is not None]
        pick = max if higher_is_better(metric) else min
        return pick(known, key=lambda item: item[0])[1] if known else None


@dataclass(frozen=True)
class Group:
    """Runs of one config; `key` is what they share, seeds aside."""

    key: tuple[tuple[str, str], ...]
    runs: list[Record]

    @property
    def model(self) -> str:
        return self.runs[0].model


def compare(records: Sequence[Record]) -> list[Comparison]:
    """A comparison for every experiment, in the order of the runs."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.experiment, []).append(record)
    return [of_experiment(name, runs) for name, runs in found.items()]


def of_experiment(name: str, records: Sequence[Record]) -> Comparison:
    groups, repeated = grouped(records)
    shown = labels(groups)
    metrics = list(dict.fromkeys(metric for record in records for metric in record.test))
    short = leaves(name for settings in shown for name in settings)
    titles = [
        " ".join([group.model, *(f"{short[name]}={value}" for name, value in settings.items())])
        for group, settings in zip(groups, shown, strict=True)
    ]
    rows = [learned_row(*one) for one in zip(groups, titles, shown, strict=True)]
    rows += reference_rows(groups, titles)
    sign = -1 if higher_is_better(metrics[0]) else 1

    def rank(row: Row) -> float:
        value = row.mean(metrics[0])
        return math.inf if value is None else sign * value

    return Comparison(name, metrics, sorted(rows, key=rank), repeated)


def grouped(records: Sequence[Record]) -> tuple[list[Group], int]:
    """The groups of runs, and how many runs were left out as repetitions."""
    by_key: dict[tuple[tuple[str, str], ...], dict[tuple[str, ...], Record]] = {}
    for record in sorted(records, key=lambda r: r.folder.name):
        settings = settings_of(record)
        key = tuple(sorted((name, value) for name, value in settings.items() if name not in ASIDE))
        by_key.setdefault(key, {})[seeds_of(record)] = record
    groups = [Group(key, list(runs.values())) for key, runs in by_key.items()]
    return groups, len(records) - sum(len(group.runs) for group in groups)


def seeds_of(record: Record) -> tuple[str, ...]:
    seeds = mapping(record.result.get("seeds"))
    return str(seeds.get("seed")), str(seeds.get("dataset"))


def settings_of(record: Record) -> dict[str, str]:
    """Everything that a run was told, by dotted names, and the version that ran it."""
    config = {name: value for name, value in record.config.items() if name not in ASIDE_BELOW}
    found = dict(islice(flat(config), MOST_SETTINGS))
    found["model"], found["search"] = record.model, str(record.result.get("search", ""))
    found["dataset"] = str(mapping(record.result.get("dataset")).get("name", ""))
    found["sigexp"] = str(mapping(record.result.get("versions")).get("sigexp", ""))
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a nested mapping: dotted name and value in words; a list is one value."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif name != "_target_":  # the names of dataset, model and search say it
            yield f"{prefix}{name}", spelled(value)


def spelled(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def labels(groups: Sequence[Group]) -> list[dict[str, str]]:
    """For every group the settings that tell it from others.

    Between groups of one model, search and dataset all that differs counts. Between others only what a user changed
    does: the rest are the defaults that come with the names.
    """
    settings = [dict(group.key) for group in groups]
    names = differing(settings) & {"dataset", "search", "sigexp"}
    found = []
    for group, mine in zip(groups, settings, strict=True):
        alike = [other for other in settings if all(other.get(n) == mine.get(n) for n in ("model", *names))]
        told = {word.lstrip("+").partition("=")[0] for run in group.runs for word in run.overrides}
        shown = (names | differing(alike) | differing(settings) & told) - {"model"}
        found.append({name: mine[name] for name in sorted(shown) if name in mine})
    return found


def differing(settings: Sequence[Mapping[str, str]]) -> set[str]:
    """The settings that are not the same everywhere."""
    return {name for one in settings for name in one if len({other.get(name) for other in settings}) > 1}


def leaves(names: Iterable[str]) -> dict[str, str]:
    """Dotted names by their last parts, where no other one ends alike."""
    every = set(names)
    ends = [name.rpartition(".")[2] for name in every]
    return {name: end if ends.count(end) == 1 else name for name, end in zip(every, ends, strict=True)}


def learned_row(group: Group, title: str, settings: Mapping[str, str]) -> Row:
    values: dict[str, list[float]] = {}
    for run in group.runs:
        for metric, value in run.test.items():
            values.setdefault(metric, []).extend([] if value is None else [value])
        for cost in COSTS:
            number = finite(run.result.get(cost))
            values.setdefault(cost, []).extend([] if number is None else [number])
    return Row(group.model, title, True, values, settings, group.runs)


def reference_rows(groups: Sequence[Group], titles: Sequence[str]) -> list[Row]:
    """The references: one row where the groups agree on its values, else one for each value, named after its groups."""
    names = dict.fromkeys(name for group in groups for run in group.runs for name in run.references)
    return [row for name in names for row in rows_of_reference(name, groups, titles)]


def rows_of_reference(name: str, groups: Sequence[Group], titles: Sequence[str]) -> list[Row]:
    kinds: list[tuple[dict[str, Mapping[str, float | None]], list[str]]] = []  # values by the data's seed, of whom
    for group, title in zip(groups, titles, strict=True):
        found = {seeds_of(run)[1]: run.references[name] for run in group.runs if name in run.references}
        same = next((kind for kind in kinds if agree(kind[0], found)), None)
        if same:
            same[0].update(found)
            same[1].append(title)
        elif found:
            kinds.append((dict(found), [title]))
    rows = []
    for by_seed, whose in kinds:
        metrics = dict.fromkeys(metric for values in by_seed.values() for metric in values)
        values = {m: [v for one in by_seed.values() if (v := one.get(m)) is not None] for m in metrics}
        others = f" and {len(whose) - 1} more" if len(whose) > 1 else ""
        of = f" (of {whose[0]}{others})" if len(kinds) > 1 else ""
        rows.append(Row(name, f"{name}{of}", False, values))
    return rows


def agree(some: Mapping[str, Mapping[str, float | None]], others: Mapping[str, Mapping[str, float | None]]) -> bool:
    """Whether references by the data's seed are the same, but for rounding, on every seed and metric that both have."""
    shared = [(some[seed], others[seed]) for seed in some.keys() & others.keys()]
    pairs = [(one.get(metric), other.get(metric)) for one, other in shared for metric in one.keys() & other.keys()]
    return bool(shared) and all(a == b or (a and b and math.isclose(a, b, rel_tol=1e-6)) for a, b in pairs)
