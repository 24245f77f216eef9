"""What was measured, as a table: each peer, and below it the searches of sigexp that stand against it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.peers.task import CASES, PEERS, Spec

MOST_SHARE = 4  # times that a peer has to take longer
ROUNDING = 1e-3  # relative: what sums in another order make of a loss
COLUMNS = (
    "problem", "side", "how", "members", "member-samples", "start-up s", "calibration s", "training s", "steps s",
    "peer / ours", "strict", "peak MB", "test MSE", "± over seeds", "holds",
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A run and what `measuring.measured` gave; found: None where it failed, and why."""

    spec: Spec
    found: Mapping[str, Any] | None
    error: str = ""


def of_side(runs: Sequence[Done], problem: str, side: str, layers: str = "") -> dict[int, Mapping[str, Any]]:
    """What a side came to: seed -> found."""
    return {
        run.spec.seed: run.found
        for run in runs
        if run.found and (run.spec.problem, run.spec.side, run.spec.layers) == (problem, side, layers)
    }


def average(runs: Mapping[int, Mapping[str, Any]], name: str) -> float:
    return mean(float(found[name]) for found in runs.values())


def spread(values: Sequence[float]) -> float:
    """The standard deviation; nan of a single value."""
    return stdev(values) if len(values) > 1 else math.nan


def shown(value: float, digits: int = 1) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def row(problem: str, title: str, runs: Mapping[int, Mapping[str, Any]], verdict: Sequence[str]) -> str:
    """A side's line. verdict: both ratios and whether the claim holds, for a search of sigexp."""
    ratio, strict, holds = verdict
    tests = [float(found["test"]) for found in runs.values()]
    cells = [
        problem, title, next(iter(runs.values()))["how"], shown(average(runs, "trials"), 0),
        shown(average(runs, "samples"), 0), shown(average(runs, "start")), shown(average(runs, "calibration")),
        shown(average(runs, "training")), shown(average(runs, "steps")), ratio, strict,
        shown(max(float(found["peak_bytes"]) for found in runs.values()) / 1e6, 0), f"{mean(tests):.4g}",
        "" if len(tests) < 2 else f"{spread(tests):.2g}", holds,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def verdict(peer: Mapping[int, Mapping[str, Any]], ours: Mapping[int, Mapping[str, Any]]) -> tuple[str, str, str]:
    """Peer's training over ours, its steps over our training and calibration, and whether the claim holds; over the
    seeds that both have."""
    both = sorted(peer.keys() & ours.keys())
    if not both:
        return "", "", ""
    theirs, own = ({seed: side[seed] for seed in both} for side in (peer, ours))
    ratio = average(theirs, "training") / average(own, "training")
    strict = average(theirs, "steps") / (average(own, "training") + average(own, "calibration"))
    apart = [float(own[seed]["test"]) - float(theirs[seed]["test"]) for seed in both]
    near = max(ROUNDING * average(theirs, "test"), spread(apart) if len(both) > 1 else 0.0)
    wrong = []
    if ratio < MOST_SHARE:
        wrong.append("time")
    if mean(apart) > near:
        wrong.append("loss")
    if any(not 0.99 <= own[s]["samples"] / theirs[s]["samples"] <= 1.01 for s in both):
        wrong.append("other budgets")
    return f"{ratio:.1f}", f"{strict:.1f}", f"no: {', '.join(wrong)}" if wrong else "yes"


def table(runs: Sequence[Done]) -> list[str]:
    """The lines of the table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---" + "|---:" * (len(COLUMNS) - 4) + "|---|"]
    for problem, case in CASES.items():
        for name, peer in PEERS.items():
            for layers in case.layers:
                theirs = of_side(runs, problem, name, layers)
                if not theirs:
                    continue
                own_layers = len(case.layers) > 1
                title = peer.title + (f", {layers}'s convolution" if own_layers else "")
                lines.append(row(problem, title, theirs, ("", "", "")))
                for search in peer.searches:
                    if ours := of_side(runs, problem, search):
                        lines.append(row(problem, f"sigexp, {search}", ours, verdict(theirs, ours)))
    failed = [f"{r.spec.problem}, {r.spec.side}, seed {r.spec.seed}: {r.error}" for r in runs if r.found is None]
    return [*lines, *(["", "Failed: " + "; ".join(failed) + "."] if failed else [])]
