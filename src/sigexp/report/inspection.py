"""What `sigexp inspect` prints: the files of a run's folder, its config in short, its best result, its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sigexp.report.tables import number, ranked
from sigexp.track.record import mapping, numbers, printable

if TYPE_CHECKING:
    from sigexp.inspecting import File, Weight

MOST_ROWS = 200
MOST_CHARACTERS = 2000  # of one value
Documents = Mapping[str, Mapping[str, Any]]


def show(
    folder: Path,
    files: Sequence["File"],
    documents: Documents,
    weights: Sequence["Weight"],
    unoffered: Sequence[str],
) -> None:
    """Print all of it on standard output. unoffered: targets that no conf in force offers."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(f"[bold]{text(folder)}[/bold]", soft_wrap=True)
    console.print(summary(documents, unoffered))
    console.print(file_table(files))
    best = best_table(documents["result.json"])
    if best:
        console.print(best)
    if weights:
        console.print(weight_table(weights))
    damaged = [file for file in files if file.problem]
    if damaged:
        said = "; ".join(f"{text(file.name)} {text(file.problem)}" for file in damaged)
        console.print(f"[red]{len(damaged)} wrong[/red]: {said}", soft_wrap=True)


def text(value: object) -> str:
    """A value out of the folder, harmless to the terminal and to rich's markup, its first part where it is long."""
    words = printable(str(value))
    return escape(words if len(words) <= MOST_CHARACTERS else f"{words[:MOST_CHARACTERS]}...")


def short(value: Any) -> str:
    """Fields of a config node as NAME=VALUE, its target first."""
    node = mapping(value)
    fields = " ".join(f"{key}={item}" for key, item in node.items() if not key.startswith("_"))
    return text(f"{node.get('_target_', '?')} {fields}"[:400])


def summary(documents: Documents, unoffered: Sequence[str]) -> Table:
    """The run in a few lines."""
    config, result, composed = documents["config.yaml"], documents["result.json"], documents["composed.yaml"]
    names = mapping(config.get("names")) or mapping(composed.get("choices"))
    chosen = ", ".join(f"{key} {value}" for key, value in names.items())
    trainer, search = mapping(config.get("trainer")), mapping(config.get("search"))
    optimizer = mapping(trainer.get("optimizer"))
    state = f"finished: {result.get('stopped', '?')}" if result else "not finished (run.log says how far it came)"
    overrides = composed.get("overrides")
    words = map(str, overrides) if isinstance(overrides, list) else ()
    rows = {
        "state": text(state),
        "chosen": text(chosen),
        "command": text(result.get("command", "")),
        "overrides": text(" ".join(words)),
        "dataset": short(config.get("dataset")),
        "source": text(
            "; ".join(f"{k}: {v}" for k, v in mapping(mapping(result.get("dataset")).get("source")).items())
        ),
        "model": short(documents["model.json"].get("model") or config.get("model")),
        "search": text(
            f"{search.get('_target_')} {search.get('members')} members, {search.get('max_samples')} member-samples"
        ),
        "trainer": text(
            f"{optimizer.get('name')} lr {optimizer.get('lr')}, batch size {trainer.get('batch_size')}, "
            f"{trainer.get('schedule')} schedule"
        ),
        "not offered": text(", ".join(unoffered)),
        "seeds": text(f"seed {config.get('seed')}, dataset.seed {mapping(config.get('dataset')).get('seed')}"),
        "device": text(result.get("device", config.get("device", ""))),
        "versions": text(", ".join(f"{name} {value}" for name, value in mapping(result.get("versions")).items())),
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            grid.add_row(name, value)
    return grid


def file_table(files: Sequence["File"]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for file in files:
        what = f"[red]{text(file.problem)}[/red]" if file.problem else text(file.meaning)
        table.add_row(text(file.name), "" if file.size is None else f"{file.size:,}", what)
    return table


def best_table(result: Mapping[str, Any]) -> Table | None:
    """The best member's test metrics beside the references, by the first metric."""
    best = mapping(result.get("best"))
    test = numbers(best.get("test"))
    if not test:
        return None
    name = f"{mapping(result.get('model')).get('name')} (learned)"
    rows = {name: test, **{key: numbers(row) for key, row in mapping(result.get("references")).items()}}
    hparams = ", ".join(f"{key} {value:.3g}" for key, value in numbers(best.get("hyperparameters")).items() if value)
    said = f"test data; best member {best.get('id')} of round {best.get('round')}: {hparams}"
    table = Table(title=text(said), min_width=60, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("predictor", overflow="fold")
    metrics = [metric for metric in test if "/" not in metric][:4] or list(test)[:4]
    for metric in metrics:
        table.add_column(text(metric), justify="right", no_wrap=True)
    for row in ranked(rows, metrics[0])[:MOST_ROWS]:
        values = [text(number(rows[row].get(metric), metric)) for metric in metrics]
        table.add_row(text(row), *values, style="green" if row == name else None)
    return table


def weight_table(weights: Sequence["Weight"]) -> Table:
    total = sum(weight.count for weight in weights)
    table = Table(title=f"weights: {total:,} values", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    table.add_column("values", justify="right", no_wrap=True)
    for weight in weights[:MOST_ROWS]:
        shape = " x ".join(map(str, weight.shape)) or "one number"
        table.add_row(text(weight.name), shape, text(weight.dtype), f"{weight.count:,}")
    if len(weights) > MOST_ROWS:
        table.add_row(f"and {len(weights) - MOST_ROWS} more")
    return table
