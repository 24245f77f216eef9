"""One table over runs: every experiment and model found in a folder, beside the trivial and the best predictor known.

    python -m benchmarks.overview outputs [--output FILE]

Where a pair was run several times, the newest counts.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from sigexp.metrics import higher_is_better
from sigexp.report.tables import number
from sigexp.report.terminal import samples

TRIVIAL = ("identity", "constant", "chance")
HEAD = "| experiment | model | metric | test | best trivial | best reference | samples | lecture's | s | samples/s |"


def newest(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(experiment, model) -> the result of its newest finished run."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*/*/*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[result["experiment"], result["model"]["name"]] = result
    return found


def best_of(references: dict[str, dict[str, float]], metric: str) -> str:
    known = {name: values[metric] for name, values in references.items() if metric in values}
    if not known:
        return ""
    name = (max if higher_is_better(metric) else min)(known, key=known.__getitem__)
    return f"{name} {number(known[name], metric)}"


def row(result: dict[str, Any]) -> str:
    test, references = result["best"]["test"], result["references"]
    metric = next(iter(test))
    trivial = {name: values for name, values in references.items() if name in TRIVIAL}
    others = {name: values for name, values in references.items() if name not in TRIVIAL}
    cells = (
        result["experiment"],
        result["model"]["name"],
        metric,
        f"**{number(test[metric], metric)}**",
        best_of(trivial, metric),
        best_of(others, metric),
        samples(result["samples"]),
        samples(result["budget"]["lecture_max_samples"] or 0),
        f"{result['seconds']:.0f}",
        samples(result["member_samples_per_second"]),
    )
    return f"| {' | '.join(cells)} |"


def table(folder: Path) -> str:
    found = newest(folder)
    if not found:
        raise SystemExit(f"{folder}: no finished run in it")
    devices = ", ".join(sorted({result["device"] for result in found.values()}))
    head = [f"{date.today()}, {devices}, torch {next(iter(found.values()))['versions']['torch']}, one seed.", ""]
    return "\n".join(
        [*head, HEAD, "|" + "---|" * HEAD.count(" | ") + "---|", *[row(found[pair]) for pair in sorted(found)]]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    text = table(arguments.folder)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
