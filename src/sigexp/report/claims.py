"""Claims: what an experiment states to show, and the runs that it takes to see it. `claims_file` reads them.

A claim is about the best member of one run for each of several seeds. It sets bounds to numbers of result.json, and
holds where each number's mean over seeds is within the mean of its bound.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sigexp.fields import override_text

Settings = dict[str, Any]  # override -> value, as in `sigexp experiment=NAME override=value`
UNMATCHED = frozenset(
    {"experiment", "seed", "dataset.seed", "outputs", "device", "trainer.threads", "trainer.processes"}
    | {"trainer.execution", "trainer.memory_limit"}
)  # settings that leave a claim what it is


@dataclass(frozen=True)
class Threshold:
    """A number, or a reference's value times `factor` plus `offset`."""

    offset: float = 0.0
    factor: float = 1.0
    reference: str | None = None
    metric: str = ""  # of the reference

    @property
    def path(self) -> str | None:
        return f"references.{self.reference}.{self.metric}" if self.reference else None

    def __str__(self) -> str:
        if not self.reference:
            return f"{self.offset:g}"
        factor = f"{self.factor:g} x " if self.factor != 1 else ""
        offset = f" {'+' if self.offset > 0 else '-'} {abs(self.offset):g}" if self.offset else ""
        return f"{factor}{self.reference}{offset}"


@dataclass(frozen=True)
class Condition:
    """One metric and its bound; `threshold` is None where the value is only told."""

    metric: str
    comparison: str
    threshold: Threshold | None = None

    def __str__(self) -> str:
        bound = f"{self.comparison.replace('_', ' ')} {self.threshold}" if self.threshold else "told"
        return f"{self.metric} {bound}"

    def met(self, measured: float, bound: float | None) -> bool | None:
        """Whether a value is within its bound; None where there is none."""
        if bound is None:
            return None
        return measured <= bound if self.comparison == "at_most" else measured >= bound


@dataclass(frozen=True)
class Claim:
    experiment: str
    id: str
    text: str
    run: Settings
    conditions: tuple[Condition, ...]  # the first one is the claim's own, the others its `also`
    tested_on: Settings
    lecture: str
    own: bool = False  # from the user's ./conf

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.id}"


def words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as overrides of the command line."""
    return [f"{name}={override_text(value)}" for name, value in settings.items()]


@dataclass(frozen=True)
class Planned:
    """One configuration that is run for every seed, and the claims that look at it."""

    experiment: str
    settings: Settings
    claims: tuple[Claim, ...]

    def overrides(self, seed: int | None = None, seeded_data: bool = True) -> list[str]:
        """What is run, as words of the command line; seed and dataset.seed vary together."""
        seeds = {} if seed is None else {"seed": seed, **({"dataset.seed": seed} if seeded_data else {})}
        return [f"experiment={self.experiment}", *words(self.settings), *words(seeds)]

    def __str__(self) -> str:
        return " ".join([self.experiment, *words(self.settings)])


def plan(claims: Sequence[Claim]) -> list[Planned]:
    """The distinct configurations of claims, in the order of their first claim."""
    found: dict[tuple[str, frozenset[str]], list[Claim]] = {}
    for claim in claims:
        found.setdefault((claim.experiment, frozenset(words(claim.run))), []).append(claim)
    return [Planned(group[0].experiment, group[0].run, tuple(group)) for group in found.values()]


def listing(claims: Sequence[Claim], seeds: int) -> str:
    """What would be run, and the claims that each run is for."""
    planned = plan(claims)
    lines = []
    for run in planned:
        lines.append(f"sigexp {shlex.join(run.overrides())}")
        for claim in run.claims:
            where = f", tested on {' '.join(words(claim.tested_on))}" if claim.tested_on else ""
            lines.append(f"    {claim.id}: {' and '.join(map(str, claim.conditions))}{where}")
    total = f"{len(claims)} claims; {len(planned)} runs, each for {seeds} seeds (seed and dataset.seed from 0)"
    return "\n".join([*lines, total])


def matching(claims: Sequence[Claim], overrides: Sequence[str], choices: Mapping[str, str]) -> list[Claim]:
    """The claims that a run with these overrides can judge: those of the same settings, seeds and machine aside.

    choices: what was chosen for model, dataset and search, whether by an override or by default.
    """
    typed = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    if "experiment" not in typed:  # a dataset without the experiment's own settings
        return []

    def compared(settings: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in settings.items() if name not in UNMATCHED}

    def same(claim: Claim) -> bool:
        stated = {name.lstrip("+"): override_text(value) for name, value in claim.run.items()}
        default = {group: choice for group, choice in choices.items() if group in stated}
        return not claim.tested_on and compared({**default, **typed}) == compared(stated)

    return [claim for claim in claims if same(claim)]
