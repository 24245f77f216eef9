"""python -m benchmarks.peers: the package's docstring says what is measured."""

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import benchmarks.peers as package
from benchmarks.peers.measuring import Failed, measured, versions
from benchmarks.peers.table import Done, table
from benchmarks.peers.task import CASES, PEERS, UNIT, Arrangement, Spec

PACKAGES = {
    "ray": ("ray", "pandas", "pyarrow"),  # the last two are of its extra 'tune'
    "optuna": ("optuna",),
    "joblib": ("hydra_plugins.hydra_joblib_launcher",),
}
NAMES = {
    "torch": "torch", "Ray": "ray", "Optuna": "optuna", "Hydra": "hydra-core",
    "hydra-joblib-launcher": "hydra-joblib-launcher", "joblib": "joblib",
}  # fmt: skip
OVERHEAD_SECONDS = {"ray": 30.0, "optuna": 20.0, "joblib": 20.0, "probe": 30.0}  # beside training, by a guess
OURS_SECONDS = 35.0
LIMIT_SECONDS = 3600.0  # of one run


class Record:
    """Runs that are done, a line of JSON each."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path, self.runs, good = path, list[Done](), list[str]()
        lines = path.read_text(encoding="utf-8").splitlines() if resume and path.is_file() else []
        for line in lines:
            with suppress(json.JSONDecodeError):  # the last one may be half a line
                one = json.loads(line)
                self.runs.append(Done(Spec.of(one["spec"]), one["found"]))
                good.append(line + "\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(good), encoding="utf-8")

    def of(self, spec: Spec) -> Done | None:
        """What a run came to, if it is there; the arrangement is that of an earlier probe."""
        same = (one for one in self.runs if one.found and replace(one.spec, arrangement=spec.arrangement) == spec)
        return next(same, None)

    def add(self, done: Done) -> None:
        self.runs.append(done)
        if done.found is None:
            return  # so that it is tried again
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"spec": done.spec.as_dict(), "found": done.found}) + "\n")


def probes(given: argparse.Namespace) -> list[Spec]:
    """What tells how the peers compute, for each problem and kind of layers."""
    layers = [(problem, kind) for problem in given.problems for kind in CASES[problem].layers]
    return [Spec(problem, "probe", 0, budget(given, problem), kind, extra=given.set) for problem, kind in layers]


def budget(given: argparse.Namespace, problem: str) -> int:
    return max(1, round(CASES[problem].samples * given.share / UNIT)) * UNIT


def runs(given: argparse.Namespace, arrangements: dict[tuple[str, str], Arrangement]) -> Iterator[Spec]:
    """All runs, seed by seed; of a peer and ours the first one alternates."""
    for seed in range(given.seeds):
        for problem in given.problems:
            common = {"problem": problem, "seed": seed, "samples": budget(given, problem), "extra": given.set}
            for name in given.peers:
                theirs = [
                    Spec(side=name, layers=kind, arrangement=arrangements[problem, kind], **common)
                    for kind in CASES[problem].layers
                ]
                ours = [Spec(side=search, **common) for search in PEERS[name].searches]
                yield from [*theirs, *ours] if seed % 2 == 0 else [*ours, *theirs]


def expected(spec: Spec, rates: dict[tuple[str, str], float]) -> float:
    """Seconds that a run may take, by the peers' rate."""
    rate = rates.get((spec.problem, spec.layers or "torch"), math.inf)
    if spec.side in PEERS:
        return OVERHEAD_SECONDS[spec.side] + spec.samples / rate
    return OURS_SECONDS + spec.samples / rate / 5


def title(spec: Spec) -> str:
    side = spec.side if spec.side in (*PEERS, "probe") else f"sigexp {spec.side}"
    return f"{spec.problem}, {side}{', ' + spec.layers if spec.layers else ''}, seed {spec.seed}"


def carried_out(spec: Spec, record: Record, say: Callable[[str], None]) -> Done:
    """A run, or what it came to before."""
    if known := record.of(spec):
        return known
    try:
        done = Done(spec, measured(spec, LIMIT_SECONDS))
    except Failed as error:
        done = Done(spec, None, str(error))
    record.add(done)
    found = done.found
    if found is None:
        say(f"{title(spec)}: failed: {done.error}")
    elif "rates" in found:
        say(f"{title(spec)}: " + ", ".join(f"{way}: {rate:,.0f}/s" for way, rate in found["rates"].items()))
    else:
        say(
            f"{title(spec)}: start-up {found['start']:.1f} s, training {found['training']:.1f} s (steps "
            f"{found['steps']:.1f}), {found['samples']:,} member-samples, {found['peak_bytes'] / 1e6:,.0f} MB, "
            f"test MSE {found['test']:.4g}; {found['seconds']:.0f} s in all"
        )
    return done


def everything(given: argparse.Namespace, record: Record, say: Callable[[str], None]) -> list[Done]:
    """All runs that were asked for, one after the other; the table is written after each."""
    arrangements, rates = {}, {}
    for spec in probes(given):
        done = carried_out(spec, record, say)
        if done.found is None:
            raise SystemExit(1)
        found: Any = done.found
        where = spec.problem, spec.layers
        arrangements[where] = Arrangement(found["workers"], found["threads"], found["channels_last"])
        rates[where] = found["rate"]
    planned = list(runs(given, arrangements))
    missing = [spec for spec in planned if not record.of(spec)]
    minutes = sum(expected(spec, rates) for spec in missing) / 60
    longest = max((spec.samples / rates[spec.problem, spec.layers] for spec in planned if spec.layers), default=0)
    say(
        f"{len(missing)} of {len(planned)} runs to do, some {minutes:.0f} minutes; the slowest peer trains for some "
        f"{longest / 60:.1f} minutes. Seed by seed, so that the first {minutes / given.seeds:.0f} minutes have one of "
        "everything."
    )
    all_done = []
    for number, spec in enumerate(planned, 1):
        all_done.append(carried_out(spec, record, lambda line, n=number: say(f"[{n}/{len(planned)}] {line}")))
        given.output.write_text("\n".join(page(given, all_done)) + "\n", encoding="utf-8")
    return all_done


def page(given: argparse.Namespace, done: Sequence[Done]) -> list[str]:
    """The table, and what it was measured with."""
    from sigexp import machine

    words = [f"--problems {','.join(given.problems)}", f"--peers {','.join(given.peers)}", f"--seeds {given.seeds}"]
    words += [f"--share {given.share:g}"] * (given.share != 1)
    words += [f"--set {' '.join(given.set)}"] * bool(given.set)
    return [
        "# sigexp beside its peers",
        "",
        "What is measured, and how, stands in [benchmarks/peers](../peers/__init__.py).",
        "",
        *table(done),
        "",
        f"`python -m benchmarks.peers {' '.join(words)}`, {date.today()}, {machine.describe_device('cpu')}, load "
        f"{os.getloadavg()[2]:.1f} in the last quarter of an hour; {versions(NAMES)}.",
    ]


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Of an argument: some of what is known, in that order."""

    def parse(text: str) -> list[str]:
        asked = text.split(",")
        if unknown := sorted(set(asked) - set(known)):
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(known)}")
        return [name for name in known if name in asked]

    return parse


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--problems", type=names(list(CASES)), default=list(CASES), metavar="NAME,...")
    parser.add_argument("--peers", type=names(list(PEERS)), default=list(PEERS), metavar="NAME,...")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the budgets, with which the slowest train 3 minutes"
    )
    parser.add_argument("--quick", action="store_const", dest="share", const=0.1, help="as --share 0.1")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all sides")
    parser.add_argument("--resume", action="store_true", help="go on with what the record has")
    parser.add_argument("--record", type=Path, metavar="FILE", help="by default the output with .jsonl for .md")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/peers.md"), metavar="FILE")
    given = parser.parse_args(words)
    given.set, given.record = tuple(given.set), given.record or given.output.with_suffix(".jsonl")
    if missing := [name for name in given.peers if not all(map(installed, PACKAGES[name]))]:
        parser.error(f"{', '.join(missing)}: not installed; pip install -e '.[peers]', or choose others by --peers")
    if given.record.is_file() and given.record.stat().st_size and not given.resume:
        parser.error(f"{given.record} has a record of runs; go on with it by --resume, or remove it")
    return given


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def main(words: Sequence[str] | None = None) -> None:
    given = arguments(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs below is ended too
    done = everything(given, Record(given.record, given.resume), lambda line: print(line, flush=True))
    print("\n" + "\n".join(page(given, done)))
    sys.exit(any(one.found is None for one in done))


if __name__ == "__main__":
    main()
