"""Claims judged by results: the mean over seeds with its interval, whether a claim holds, and the table of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.special import stdtrit

from sigexp.report.claims import Claim, Condition, Threshold
from sigexp.report.tables import number


class Missing(LookupError):
    """A result that lacks the number a claim is about; the message names it."""


@dataclass(frozen=True)
class Measured:
    """A condition over seeds: its value and bound for each, None where that run failed."""

    condition: Condition
    values: tuple[float | None, ...]
    bounds: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        return mean(self.values)

    @property
    def bound(self) -> float | None:
        return mean(self.bounds)

    @property
    def holds(self) -> bool | None:
        """Whether the mean is within the mean bound; None where there is nothing to compare."""
        return None if self.mean is None else self.condition.met(self.mean, self.bound)


@dataclass(frozen=True)
class Verdict:
    """What was measured of a claim, its own condition first. `problems` say what kept a seed from being measured."""

    claim: Claim
    measured: tuple[Measured, ...]
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool | None:
        """False where a condition or a run failed; None where the claim sets no bound."""
        found = [part.holds for part in self.measured]
        if self.problems or False in found:
            return False
        return None if all(part is None for part in found) else True


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def half_interval(values: Sequence[float | None]) -> float | None:
    """Half of the 95 % interval of the mean by Student's t, t(0.975, n - 1) s / sqrt(n); None for fewer than two."""
    known = [value for value in values if value is not None]
    n = len(known)
    if n < 2:
        return None
    centre = math.fsum(known) / n
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in known) / (n - 1))
    return float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)


def document(result: Mapping[str, Any]) -> dict[str, Any]:
    """result.json as claims see it: `test` and `train` are the best member's."""
    return {**result, "test": result["best"]["test"], "train": result["best"].get("train", {})}


def lookup(found: Mapping[str, Any], path: str) -> float:
    """The number at a path of dots; raises `Missing` where there is none."""
    node: Any = found
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise Missing(f"the result has no {path}")
        node = node[part]
    if isinstance(node, bool) or not isinstance(node, (int, float)) or not math.isfinite(node):
        raise Missing(f"{path} is {node}, not a number")
    return float(node)


def bound_of(threshold: Threshold | None, found: Mapping[str, Any]) -> float | None:
    if threshold is None:
        return None
    return threshold.offset + (threshold.factor * lookup(found, threshold.path) if threshold.path else 0.0)


def judge(claim: Claim, runs: Sequence[Mapping[str, Any] | str]) -> Verdict:
    """A claim over the documents of its runs, one for each seed; words stand for a run that failed, and say why."""
    problems: list[str] = []

    def one(condition: Condition, found: Mapping[str, Any] | str) -> tuple[float | None, float | None]:
        if isinstance(found, str):
            problems.append(found)
            return None, None
        try:
            return lookup(found, condition.metric), bound_of(condition.threshold, found)
        except Missing as error:
            problems.append(str(error))
            return None, None

    measured = []
    for condition in claim.conditions:
        pairs = [one(condition, found) for found in runs]
        measured.append(Measured(condition, tuple(v for v, _ in pairs), tuple(b for _, b in pairs)))
    return Verdict(claim, tuple(measured), tuple(dict.fromkeys(problems)))


def of_result(claims: Sequence[Claim], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `claims` of result.json: each claim judged by this one run."""
    verdicts = [judge(claim, [document(result)]) for claim in claims]
    return [
        {
            "id": verdict.claim.id,
            "text": verdict.claim.text,
            "holds": verdict.holds,
            "measured": verdict.measured[0].mean,
            "bound": verdict.measured[0].bound,
            "condition": " and ".join(str(part.condition) for part in verdict.measured),
        }
        for verdict in verdicts
    ]


def as_dict(verdict: Verdict) -> dict[str, Any]:
    """A verdict as claims.json has it."""
    claim = verdict.claim
    return {
        "experiment": claim.experiment,
        "id": claim.id,
        "text": claim.text,
        "lecture": claim.lecture,
        "run": claim.run,
        "tested_on": claim.tested_on,
        "holds": verdict.holds,
        "conditions": [
            {
                "metric": part.condition.metric,
                "comparison": part.condition.comparison,
                "threshold": str(part.condition.threshold) if part.condition.threshold else None,
                "bound": part.bound,
                "mean": part.mean,
                "half_interval_95": half_interval(part.values),
                "values": list(part.values),
                "bounds": list(part.bounds),
                "holds": part.holds,
            }
            for part in verdict.measured
        ],
        "problems": list(verdict.problems),
    }


def shown(part: Measured) -> tuple[str, str]:
    """Bound and measured value of a condition in words."""
    path, condition = part.condition.metric, part.condition
    bound = f"{path} told"
    if condition.threshold is not None:
        limit = str(condition.threshold) if part.bound is None else spelled_number(part.bound, path)
        rule = f" ({condition.threshold})" if condition.threshold.reference and part.bound is not None else ""
        bound = f"{path} {condition.comparison.replace('_', ' ')} {limit}{rule}"
    half = half_interval(part.values)
    around = "" if half is None else f" ± {spelled_number(half, path)}"
    return bound, "nothing" if part.mean is None else f"{spelled_number(part.mean, path)}{around}"


def spelled_number(value: float, path: str) -> str:
    """A number of the result in the form that its name asks for."""
    name = path.rpartition(".")[2]
    if name.endswith("seconds"):
        return f"{value:.1f} s"
    if name in ("gabor_residual", "gabor_share", "white_residual"):
        return f"{value:.3f}"
    return (
        f"{value:,.0f}"
        if name in ("samples", "parameters", "peak_memory_bytes", "passes_linear_at")
        else number(value, name)
    )


def claim_numbers(claim: Mapping) -> str:
    """The condition of a claim of result.json and what was measured of it."""
    path = claim["condition"].split()[0]
    bound = f", bound {spelled_number(claim['bound'], path)}" if claim["bound"] is not None else ""
    measured = "nothing" if claim["measured"] is None else spelled_number(claim["measured"], path)
    return f"{claim['condition']}: measured {measured}{bound}"


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    """The table: as wide as the terminal; where output is piped, a line for each condition, fields between tabs."""
    if not console.is_terminal:
        lines = [("claim", "lecture", "bound", "measured", "holds", "meaning")]
        lines += [line for verdict in verdicts for line in plain_rows(verdict)]
        console.file.write("".join("\t".join(line) + "\n" for line in lines))
        return
    table = Table(expand=True)
    for name, ratio in (("claim", 10), ("lecture", 6), ("bound", 9), ("measured", 6), ("holds", None)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for verdict in verdicts:
        style = {True: "green", False: "red", None: None}[verdict.holds]
        for i, (name, lecture, bound, measured, holds, text) in enumerate(plain_rows(verdict)):
            words = (f"[bold]{name}[/bold]\n{escape(text)}", escape(lecture)) if i == 0 else ("", "")
            table.add_row(*words, escape(bound), escape(measured), holds, style=style)
        table.add_section()
    console.print(table)


def plain_rows(verdict: Verdict) -> list[tuple[str, str, str, str, str, str]]:
    """Claim, lecture, bound, measured, holds, meaning: a row for each condition; what went wrong is in the first."""
    claim, found = verdict.claim, []
    for i, part in enumerate(verdict.measured):
        bound, measured = shown(part)
        if i == 0 and verdict.problems:
            measured += f" ({'; '.join(verdict.problems)})"
        holds = False if verdict.problems else part.holds
        word = {True: "yes", False: "NO", None: "told"}[holds]
        found.append((claim.name, claim.lecture, bound, measured, word, claim.text))
    return found
