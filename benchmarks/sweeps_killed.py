"""A sweep that is killed again and again: whether every job is in its table once.

    python -m benchmarks.sweeps_killed [--jobs 64] [--kills 10] [--launcher joblib] [-o FILE]

The sweep is started, killed (SIGKILL, the whole process group, at a random moment of a job), and started again by the
same command, so often; the last start comes to its end. Then the runs in the outputs, the last sweep's sweep.jsonl and
the table of `sigexp compare` are counted, and some of the killed runs' results compared with those of undisturbed ones.
"""

import argparse
import csv
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from sigexp.track import sweep

ROUNDING = 1e-4  # relative, between jobs as one population and a run alone
SMALL = [
    "experiment=gaussian", "dataset.image_size=24", "footprint=5", "dataset.size=20", "dataset.test_size=4",
    "search.max_samples=200", "search.members=2", "search.survivors=1", "search.initial_samples=20",
    "search.round_samples=20", "search.valid_samples=20", "trainer.batch_size=5", "trainer.threads=1",
]  # fmt: skip


def command(outputs: Path, words: list[str]) -> list[str]:
    return [sys.executable, "-m", "sigexp", *words, f"outputs={outputs}"]


def finished(outputs: Path) -> int:
    return len(list(outputs.glob("gaussian/*/*/result.json")))


def begun(outputs: Path) -> int:
    return len(list(outputs.glob("gaussian/*/*/composed.yaml")))


def start_and_kill(words: list[str], outputs: Path, after: int, rng: random.Random) -> float:
    """Start the sweep and kill it at a job, after so many are finished in all; how many seconds it ran."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command(outputs, words), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while (finished(outputs) < after or begun(outputs) <= after) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 2))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return time.perf_counter() - began


def in_table(outputs: Path, last: Path) -> int:
    """The runs that the comparison of the last sweep counts."""
    words = [sys.executable, "-m", "sigexp", "compare", str(last), "--csv"]
    rows = csv.DictReader(io.StringIO(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
    return sum(int(row["runs"]) for row in rows if row["kind"] == "learned" and row["metric"] == "mse")


def best(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "result.json").read_text(encoding="utf-8"))["best"]
    return found


def taken_up(folder: Path) -> bool:
    """Whether a run was begun more than once: run.log then has its command twice."""
    return (folder / "run.log").read_text(encoding="utf-8").count(" INFO command: ") > 1


def alike(one: object, other: object, tolerance: float) -> bool:
    """Whether two results are the same but for numbers that differ by a relative tolerance."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name], tolerance) for name in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance)
    return one == other


def undisturbed(folders: list[Path], outputs: Path, tolerance: float) -> list[bool]:
    """For each run whether another one with the same seed, alone and never killed, has the same best member and
    result."""
    same = []
    for folder in folders:
        seed = json.loads((folder / "result.json").read_text(encoding="utf-8"))["seeds"]["seed"]
        subprocess.run(command(outputs / f"seed{seed}", [*SMALL, f"seed={seed}"]), capture_output=True, check=True)
        (alone,) = (outputs / f"seed{seed}").glob("gaussian/*/*/")
        same.append(alike(best(alone), best(folder), tolerance))
    return same


def report(given: argparse.Namespace, place: Path) -> list[str]:
    rng, outputs = random.Random(0), place / "outputs"
    launcher = [f"hydra/launcher={given.launcher}"] if given.launcher else []
    words = ["-m", *SMALL, f"seed=range({given.jobs})", *launcher]
    lines = []
    for number in range(given.kills):
        seconds = start_and_kill(words, outputs, round(number * given.jobs / given.kills), rng)
        lines.append(f"| kill {number + 1} | {seconds:.0f} | {finished(outputs)} |")
    began = time.perf_counter()
    code = subprocess.run(command(outputs, words), capture_output=True).returncode
    lines.append(f"| to the end, exit code {code} | {time.perf_counter() - began:.0f} | {finished(outputs)} |")
    folders = sorted(path for path in outputs.glob("gaussian/*/*") if path.is_dir())
    last = max(outputs.glob("sweeps/*"), key=lambda path: path.stat().st_mtime)
    jobs = sweep.read(last)
    again = [folder for folder in folders if (folder / "run.log").is_file() and taken_up(folder)]
    tolerance = ROUNDING if given.launcher in ("", "fused") else 0.0
    same = undisturbed(again[: given.repeat], place / "alone", tolerance)
    return [
        "# A sweep that is killed again and again",
        "",
        f"`python -m benchmarks.sweeps_killed --jobs {given.jobs} --kills {given.kills}"
        f"{f' --launcher {given.launcher}' if given.launcher else ''}`, {date.today()}, {os.cpu_count()} cores.",
        "",
        "| start | seconds | jobs finished |",
        "|---|---:|---:|",
        *lines,
        "",
        "| | count |",
        "|---|---:|",
        f"| jobs | {given.jobs} |",
        f"| jobs of the last sweep.jsonl that are finished | {sum(job.status == 'finished' for job in jobs)} |",
        f"| different folders that they name | {len({job.folder for job in jobs})} |",
        f"| runs in the table of `sigexp compare` | {in_table(outputs, last)} |",
        f"| folders of runs in the outputs, finished or not | {len(folders)} |",
        f"| of them finished | {finished(outputs)} |",
        f"| runs that a kill hit and a later start took up | {len(again)} |",
        f"| of {len(same)} of these, with the best member and result of a run alone and never killed, "
        f"{f'within {tolerance:g}' if tolerance else 'to the last bit'} | {sum(same)} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--launcher", default="", help="hydra/launcher: basic, joblib; by default the one of -m, fused")
    parser.add_argument("--repeat", type=int, default=4, help="killed runs to compare with undisturbed ones")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/sweeps_killed.md"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        lines = report(given, Path(place))
    given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
