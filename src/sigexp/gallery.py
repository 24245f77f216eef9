"""The gallery: a page for every experiment, with what its claims measured, its tables, pictures and commands.

`sigexp reproduce --gallery experiments` writes it from claims.json and the runs behind it. What stands above the mark
in experiments/NAME/README.md is written by hand and stays as it is.
"""

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from sigexp import pages, saved
from sigexp.metrics import higher_is_better
from sigexp.report import figures, response, seeds
from sigexp.report.tables import number
from sigexp.report.verdicts import half_interval, spelled_number
from sigexp.signal.response import NEARLY_LINEAR

WORDS = {True: "yes", False: "**no**", None: "told"}
PICTURES = {
    "examples": "input, target, output and references of test examples",
    "kernels": "the first layer's kernels",
    "response": "impulse and frequency response",
}

Document = Mapping[str, Any]


def write(found: Document, root: Path) -> list[Path]:
    """The pages of claims.json's experiments, and the overview of all pages there are; the files written."""
    experiments = list(dict.fromkeys(claim["experiment"] for claim in found["claims"]))
    written = [page(name, found, root / name) for name in experiments]
    return [*written, pages.overview(root, found)]


def page(experiment: str, found: Document, folder: Path) -> Path:
    """experiments/NAME/README.md and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    claims = [claim for claim in found["claims"] if claim["experiment"] == experiment]
    parts = ["## Claims", claims_table(claims)]
    for claim in claims:
        if problems := "; ".join(claim["problems"]):
            parts.append(f"`{claim['id']}` was not measured in full: {problems}.")
    for name, runs in groups(claims).items():
        parts += section(name, runs, folder, judged_as_trained(name, claims))
    parts.append(footer(found))
    start = f"# {experiment}\n\n{pages.description(experiment)}."
    return pages.write(folder / "README.md", start, "reproduce", parts)


def claims_table(claims: Sequence[Document]) -> str:
    """A row for every condition of every claim."""
    lines = ["| claim | the lecture | bound | measured | holds |", "|---|---|---|---|---|"]
    for claim in claims:
        for i, condition in enumerate(claim["conditions"]):
            first = f"{claim['text'].strip()}" if i == 0 else ""
            lecture = claim["lecture"] if i == 0 else ""
            lines.append(f"| {first} | {lecture} | {bound(condition)} | {measured(condition)} | {holds(claim, i)} |")
    return "\n".join(lines)


def holds(claim: Document, condition: int) -> str:
    return WORDS[False if claim["problems"] else claim["conditions"][condition]["holds"]]


def bound(condition: Document) -> str:
    metric, limit = condition["metric"], condition["bound"]
    if limit is None:
        return f"{metric}, told"
    rule = condition["threshold"]
    source = "" if rule == f"{limit:g}" else f" ({rule})"
    return f"{metric} {condition['comparison'].replace('_', ' ')} {spelled_number(limit, metric)}{source}"


def measured(condition: Document) -> str:
    metric, half = condition["metric"], condition["half_interval_95"]
    if condition["mean"] is None:
        return "nothing"
    around = "" if half is None else f" ± {spelled_number(half, metric)}"
    return f"{spelled_number(condition['mean'], metric)}{around}"


def words(claim: Document) -> str:
    """What a claim runs, as words of the command line."""
    return " ".join(f"{key}={value}" for key, value in claim["run"].items())


def groups(claims: Sequence[Document]) -> dict[str, list[Path]]:
    """The finished runs of the claims by what was run: words of the command line -> a folder for each seed."""
    found: dict[str, list[Path]] = {}
    for claim in claims:
        found.setdefault(words(claim), [Path(run) for run in claim["runs"] if run])
    return {name: runs for name, runs in found.items() if runs}


def judged_as_trained(name: str, claims: Sequence[Document]) -> bool:
    """Whether any claim on a run looks at what training came to; else its net may be trained for form's sake only."""
    roots = {c["metric"].partition(".")[0] for claim in claims if words(claim) == name for c in claim["conditions"]}
    return bool(roots - {"learning_curve", "references"})


def section(name: str, runs: Sequence[Path], folder: Path, trained: bool = True) -> list[str]:
    """One configuration: its command, and of what was trained its table over the seeds, its cost, its pictures."""
    results = [json.loads((run / "result.json").read_text(encoding="utf-8")) for run in runs]
    first, slug = results[0], "".join(c if c.isalnum() else "-" for c in name).strip("-").lower()
    command = [f"## {name}", f"```\n{first['command']}\n```"]
    if not trained:
        return [*command, "In closed form, from the training examples alone; what is trained beside it does not count."]
    parts = [*command, *(table(results, test_set) for test_set in sets(first))]
    seconds = sum(result["seconds"] for result in results) / len(results)
    parts.append(
        f"{first['parameters']:,} parameters; {first['samples']:,} member-samples in {seconds:.0f} s a run "
        f"(the lecture's budget: {lecture_budget(first)}); {first['device']}."
    )
    if first.get("excess"):
        shares = ", ".join(f"{key} {mean_of(results, 'excess', key):.2e}" for key in first["excess"])
        parts.append(f"Distance to the best predictor known, in parts: {shares}.")
    shown = [curves(runs, results, folder / f"{slug}-curves.png")]
    for picture, meaning in PICTURES.items():
        if (runs[0] / f"{picture}.png").is_file():
            shutil.copyfile(runs[0] / f"{picture}.png", folder / f"{slug}-{picture}.png")
            shown.append(f"![{meaning}]({slug}-{picture}.png)")
    return [*parts, *shown, *over_seeds(runs, results, folder, slug)]


def over_seeds(runs: Sequence[Path], results: Sequence[Document], folder: Path, slug: str) -> list[str]:
    """Pictures of what nearly linear models of all seeds came to, as Markdown; none of other models."""
    bent = [(result.get("response") or {}).get("superposition_error") for result in results]
    if any(error is None or error >= NEARLY_LINEAR for error in bent):
        return []
    problems = [saved.load_problem(run, own=True) for run in runs]
    looks = [response.measured(saved.load_model(run), problem) for run, problem in zip(runs, problems, strict=True)]
    known = [look for look in looks if look is not None and look.impulse is not None]
    if len(known) < len(runs):
        return []
    true, labels = problems[0].kernel, problems[0].labels
    drawn = {
        "true-kernel": (seeds.kernel(known, true) if true is not None else None, "learned and true impulse response"),
        "gain": (seeds.band(known, true, labels), "frequency response: median and range over the seeds"),
    }
    shown = []
    for name, (picture, meaning) in drawn.items():
        if picture is not None:
            (folder / f"{slug}-{name}.png").write_bytes(picture)
            shown.append(f"![{meaning}]({slug}-{name}.png)")
    return shown


def lecture_budget(result: Document) -> str:
    most = result["budget"]["lecture_max_samples"]
    return "none" if most is None else f"{most:,}"


def mean_of(results: Sequence[Document], *path: str) -> float:
    values = []
    for result in results:
        node: Any = result
        for part in path:
            node = node[part]
        values.append(float(node))
    return sum(values) / len(values)


def sets(result: Document) -> list[str]:
    """The test sets of a result: '' and those whose metrics have a prefix."""
    return list(dict.fromkeys(metric.rpartition("/")[0] for metric in result["best"]["test"]))


def table(results: Sequence[Document], test_set: str) -> str:
    """The learned model and every reference on one test set, means over the runs, the best first."""
    metrics = [m for m in results[0]["best"]["test"] if m.rpartition("/")[0] == test_set]
    rows = {f"**{results[0]['model']['name']}, learned**": [result["best"]["test"] for result in results]}
    rows |= {name: [result["references"].get(name, {}) for result in results] for name in results[0]["references"]}

    def rank(name: str) -> float:
        values = [row[metrics[0]] for row in rows[name] if row.get(metrics[0]) is not None]
        centre = sum(values) / len(values) if values else float("inf")
        return -centre if values and higher_is_better(metrics[0]) else centre

    title = f"test data{test_set and f', {test_set}'}, {len(results)} seeds"
    lines = [f"| {title} | {' | '.join(m.rpartition('/')[2] for m in metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for name in sorted(rows, key=rank):
        lines.append(f"| {name} | {' | '.join(cell([row.get(m) for row in rows[name]], m) for m in metrics)} |")
    return "\n".join(lines)


def cell(values: Sequence[float | None], metric: str) -> str:
    """Mean and half of the 95 % interval, where the runs differ."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    half = half_interval(known)
    around = f" ± {number(half, metric)}" if half else ""
    return number(sum(known) / len(known), metric) + around


def curves(runs: Sequence[Path], results: Sequence[Document], path: Path) -> str:
    """A picture of the validation metric over samples, a line for each seed, references as levels; its Markdown."""
    metric = next(iter(results[0]["best"]["valid"].keys() - {"loss"}), "loss")
    lines = {f"seed {result['seeds']['seed']}": progress(run) for run, result in zip(runs, results, strict=True)}
    levels = {n: v[metric] for n, v in results[0].get("references_valid", {}).items() if v.get(metric) is not None}
    path.write_bytes(figures.curves(lines, levels, metric))
    return f"![{metric} on validation data while training, references as levels]({path.name})"


def progress(run: Path) -> list[tuple[int, float]]:
    """Samples of the whole search and the best healthy member's validation metric, round by round."""
    rounds: dict[int, list[Document]] = {}
    for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines():
        member = json.loads(line)
        if not member["diverged"]:
            rounds.setdefault(member["total_samples"], []).append(member)
    best = {samples: min(members, key=lambda m: m["valid_loss"]) for samples, members in rounds.items()}
    return [(samples, member["valid"]) for samples, member in best.items()]


def footer(found: Document) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"Measured {date.today()} by `{portable(found['command'])}`: seeds {', '.join(map(str, found['seeds']))}, of "
        f"weights and data; {found['machine']}; {versions}."
    )


def portable(command: str) -> str:
    """A command of `sigexp reproduce` without the folders of the machine that it was given on."""
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        option, equals, _ = word.partition("=")
        if option in ("-o", "--output", "--gallery"):
            if not equals:
                next(words, None)
        elif not re.fullmatch("-o.+", word):
            kept.append(word)
    return shlex.join(kept)
