"""A sweep by the fused launcher, by Hydra's basic one and by joblib's: wall-clock, and whether the results are equal.

    python -m benchmarks.fused [--rates 4] [--seeds 8] [--repeat 1] [--launchers fused,joblib,basic] [--warm] [-o FILE]
        [WORDS]

The launchers take turns, so that other work on the machine meets all of them. Every sweep has outputs and a cache of
compiled kernels and plans of its own, as the first one of a user has; with --warm they have those of runs before them,
as the later ones have. The time is that of the whole command. WORDS are further settings.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import yaml

LAUNCHERS = {"fused": [], "basic": ["hydra/launcher=basic"], "joblib": ["hydra/launcher=joblib"]}
WORDS = ["experiment=gaussian", "search=fixed"]
LOSSES = ("train_loss", "valid_loss", "valid")


def sweep(outputs: Path, launcher: str, words: list[str], cache: Path | None = None) -> float:
    """The seconds that a sweep takes; cache: other than its own. Raises SystemExit with what a failing one says."""
    command = [sys.executable, "-m", "sigexp", "-m", *words, f"outputs={outputs}", *LAUNCHERS[launcher]]
    environment = {**os.environ, "SIGEXP_DATA": str(cache or outputs / "cache")}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        seconds = time.perf_counter() - began
        if done.returncode:
            said.seek(0)
            raise SystemExit(said.read())
    return seconds


def results(outputs: Path) -> dict[tuple[float, int], Path]:
    """Learning rate and seed of every finished job -> its folder."""
    found = {}
    for path in outputs.glob("gaussian/*/*/result.json"):
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        found[config["trainer"]["optimizer"]["lr"], config["seed"]] = path.parent
    return found


def record(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


def difference(folder: Path, other: Path) -> float:
    """The largest relative difference of two runs' losses in any round and of their test metrics; infinite where they
    have other rounds."""
    one, two = record(folder), record(other)
    if [line["samples"] for line in one] != [line["samples"] for line in two]:
        return math.inf
    pairs = [(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in LOSSES]
    tests = [json.loads((run / "result.json").read_text(encoding="utf-8"))["best"]["test"] for run in (folder, other)]
    pairs += [(tests[0][name], tests[1][name]) for name in tests[0]]
    return max(abs(a - b) / max(abs(b), 1e-30) for a, b in pairs)


def report(given: argparse.Namespace, place: Path) -> list[str]:
    rates = ",".join(f"{0.8 * (n + 1) / given.rates:.3g}" for n in range(given.rates))
    words = [*WORDS, f"trainer.optimizer.lr={rates}", f"seed=range({given.seeds})", *given.words]
    seconds: dict[str, list[float]] = {launcher: [] for launcher in given.launchers}
    cache = place / "cache" if given.warm else None
    for launcher in given.launchers if given.warm else ():  # the plan of one population depends on how many jobs it has
        few = words if launcher == "fused" else [*WORDS, *given.words, "seed=0,1"]
        sweep(place / f"{launcher}-before", launcher, few, cache)
    for number in range(given.repeat):
        for launcher in given.launchers:
            seconds[launcher].append(sweep(place / f"{launcher}-{number}", launcher, words, cache))
            print(launcher, f"{seconds[launcher][-1]:.1f} s", flush=True)
    least = {launcher: min(times) for launcher, times in seconds.items()}
    jobs = {launcher: results(place / f"{launcher}-0") for launcher in given.launchers}
    lines = [
        "# The fused launcher",
        "",
        f"`python -m benchmarks.fused --rates {given.rates} --seeds {given.seeds} --repeat {given.repeat}"
        f"{' --warm' * given.warm}{''.join(f' {word}' for word in given.words)}`, {date.today()}, {os.cpu_count()} "
        f"cores, load {os.getloadavg()[2]:.1f} in the last quarter of an hour; `sigexp -m {' '.join(words)}`.",
        "",
        "| launcher | seconds, start included | against fused | folders with a result |",
        "|---|---:|---:|---:|",
    ]
    for launcher, times in seconds.items():
        ratio = f"{least[launcher] / least['fused']:.1f}" if "fused" in least else ""
        taken = " / ".join(f"{value:.1f}" for value in times)
        lines.append(f"| {launcher} | {taken} | {ratio} | {len(jobs[launcher])} |")
    for launcher in sorted(set(jobs) - {"fused"} if "fused" in jobs else ()):
        both = jobs["fused"].keys() & jobs[launcher].keys()
        apart = sorted(difference(jobs["fused"][one], jobs[launcher][one]) for one in both)
        other = sum(math.isinf(value) for value in apart)
        most = max((value for value in apart if math.isfinite(value)), default=math.nan)
        lines += [
            "",
            f"Losses of every round and test metrics, fused against {launcher}: at most {most:.1e} apart, relative, "
            f"over {len(both) - other} of {len(both)} jobs; {other} stopped in another round.",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rates", type=int, default=4, help="learning rates up to 0.8")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--launchers", type=lambda names: names.split(","), default=["fused", "joblib", "basic"])
    parser.add_argument("--warm", action="store_true", help="with kernels compiled and plans known")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/fused.md"))
    parser.add_argument("words", nargs="*", metavar="WORDS", help="further settings of the sweep")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        lines = report(given, Path(place))
    given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
