"""Which search makes the most of a budget?

    python -m benchmarks.searches [CASE ...] [--quick] [--seeds 3] [--share 0.333] [--output FILE]

Every search trains every case with the same number of member-samples, a share of the budget that conf/tune gives the
case, in the rounds of conf/tune made shorter by the same share. A number is the headline metric on test data, its mean
over seeds (initial weights, search and data) with the 95 % interval by Student's t. Two starts: `tuned`, the learning
rate of conf/tune and its range; `low`, a tenth of it with a range of 1.5 decades to both sides, as one who does not
know it would search. `fixed` trains one member with the learning rate it is given: under `tuned` it knows the answer.
`rank` is the mean over cases of a search's place among the others, 1 is the best. `s`: seconds of training, which
include calibration where a plan was not known.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import torch
from scipy.stats import rankdata

from sigexp import cli, machine
from sigexp.metrics import higher_is_better
from sigexp.report.tables import number
from sigexp.report.verdicts import half_interval

CASES = {
    "gaussian-linear": ["experiment=gaussian", "model=linear"],
    "bayer-linear": ["experiment=bayer", "model=linear"],
    "spikes-conv1d": ["experiment=spikes", "model=conv1d"],
    "circle_square-fcn": ["experiment=circle_square", "model=fcn"],
}
SEARCHES = {
    "automlp": ["search=automlp"],
    "halving": ["search=halving"],
    "pbt": ["search=pbt"],
    "optuna": ["search=optuna"],
    "optuna, cmaes": ["search=optuna", "search.sampler=cmaes"],
    "random": ["search=random"],
    "fixed": ["search=fixed"],
}
STARTS = ("tuned", "low")


@dataclass(frozen=True)
class Done:
    """One run: its headline metric on test data, None where all members diverged."""

    metric: str
    value: float | None
    seconds: float


def words_of(case: str, start: str, share: float) -> list[str]:
    """The settings of a case that all searches have in common."""
    config, _ = cli.compose(CASES[case])
    search, lr = config["search"], config["trainer"]["optimizer"]["lr"]
    names = ("initial_samples", "round_samples", "max_samples")
    words = [*CASES[case], *(f"search.{name}={max(1, round(search[name] * share))}" for name in names)]
    words += ["search.patience=null"]
    return words if start == "tuned" else [*words, f"trainer.optimizer.lr={lr / 10}", "search.lr_decades=1.5"]


def run(words: Sequence[str], folder: Path) -> Done:
    """A run as the command line starts it. Raises RuntimeError where it fails for another reason than divergence."""
    command = [sys.executable, "-m", "sigexp", *words, f"outputs={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        return Done("", None, 0.0)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    (path,) = folder.glob("*/*/*/result.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    test = found["best"]["test"]
    metric = next(name for name in test if "/" not in name)
    return Done(metric, test[metric], found["train_seconds"] + found["plan"]["calibration_seconds"])


def cell(runs: Sequence[Done]) -> str:
    values = [done.value for done in runs if done.value is not None]
    if len(values) < len(runs):
        return f"diverged {len(runs) - len(values)} of {len(runs)}"
    half, metric = half_interval(values), runs[0].metric
    interval = f" ± {number(half, metric)}" if half is not None else ""
    return f"{number(mean(values), metric)}{interval}"


def cost(runs: Sequence[Done]) -> float:
    """What ranks a search: its mean, lower is better."""
    if any(done.value is None for done in runs):
        return float("inf")
    sign = -1 if higher_is_better(runs[0].metric) else 1
    return sign * mean(done.value for done in runs if done.value is not None)


def row(case: str, start: str, seeds: int, share: float, extra: Sequence[str]) -> dict[str, list[Done]]:
    """The runs of every search, seed by seed in turn, so that a busy hour does not meet one search alone."""
    found: dict[str, list[Done]] = {name: [] for name in SEARCHES}
    common = [*words_of(case, start, share), *extra]
    for seed in range(seeds):
        for name, words in SEARCHES.items():
            with TemporaryDirectory() as folder:
                words_now = [*common, *words, f"seed={seed}", f"dataset.seed={seed}"]
                found[name].append(run(words_now, Path(folder)))
    return found


def table(cases: Sequence[str], seeds: int, share: float, extra: Sequence[str], say: Callable[[str], None]) -> None:
    say("| case | start | " + " | ".join(SEARCHES) + " |")
    say("|---" * (2 + len(SEARCHES)) + "|")
    ranks: list[Mapping[str, float]] = []
    seconds: dict[str, list[float]] = {name: [] for name in SEARCHES}
    for case in cases:
        for start in STARTS:
            found = row(case, start, seeds, share, extra)
            places = rankdata([cost(runs) for runs in found.values()])
            ranks.append(dict(zip(found, map(float, places), strict=True)))
            best = min(places)
            shown = [f"**{cell(r)}**" if p == best else cell(r) for r, p in zip(found.values(), places, strict=True)]
            say(f"| {case} | {start} | " + " | ".join(shown) + " |")
            for name, runs in found.items():
                seconds[name] += [done.seconds for done in runs]
    say("| rank | | " + " | ".join(f"{mean(r[name] for r in ranks):.1f}" for name in SEARCHES) + " |")
    say("| s | | " + " | ".join(f"{mean(seconds[name]):.1f}" for name in SEARCHES) + " |")
    footer = f"{date.today()}, {machine.describe_device('cpu')}, torch {torch.__version__}"
    say(f"\n{seeds} seeds; {share:.3g} of the budgets of conf/tune. {footer}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"by default all: {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="one seed and a twentieth of the budgets: a rough look")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1 / 3, help="of the budget of conf/tune (0.333)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all runs")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table to a file too")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - set(CASES)):
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    seeds, share = (1, 0.05) if chosen.quick else (chosen.seeds, chosen.share)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        if chosen.output:
            chosen.output.write_text("\n".join(lines) + "\n", encoding="utf-8")

    table(chosen.names or list(CASES), seeds, share, chosen.set, say)


if __name__ == "__main__":
    main()
