"""Results as tables for the terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from sigexp.metrics import higher_is_better

NEGLIGIBLE = 1e-3  # of a sum


def number(value: float | None, metric: str = "") -> str:
    """A measured value in four digits; dB and shares in their customary form."""
    if value is None:
        return ""
    name = metric.rpartition("/")[2]
    if name.startswith(("psnr", "cpsnr")):
        return f"{value:.2f} dB"
    if name in ("error", "pixel_error", "hit_rate"):
        return f"{100 * value:.4g} %"
    if name in ("ssim", "iou"):
        return f"{value:.4f}"
    return f"{value:.3e}"


def result_tables(result: Mapping[str, Any]) -> list[Table]:
    """The model's test metrics beside every reference, a table for each test set, sorted by the first metric."""
    test: dict[str, float] = result["best"]["test"]
    rows = {f"{result['model']['name']} (learned)": test, **result["references"]}
    notes = {"": split_in_words(result)}
    return [
        set_table(f"{result['experiment']}: test data{name and ', ' + name}", rows, metrics, notes.get(name))
        for name, metrics in test_sets(test).items()
    ]


def addend(value: float, total: float) -> float:
    """A part of a sum, 0 where it is so small that the rounding of the other parts decides it."""
    return 0.0 if abs(value) < NEGLIGIBLE * abs(total) else value


def test_sets(test: Iterable[str]) -> dict[str, list[str]]:
    """The metrics of a result by test set: '' and those whose metrics have a prefix."""
    sets: dict[str, list[str]] = {}
    for metric in test:
        sets.setdefault(metric.rpartition("/")[0], []).append(metric)
    return sets


def split_in_words(result: Mapping[str, Any]) -> str | None:
    """The distance of a linear model's loss to the best known one in three parts; None where they are not known."""
    parts: dict[str, float] | None = result.get("excess")
    if parts is None:
        return None
    total = sum(parts.values())
    shown = {name: addend(value, total) for name, value in parts.items()}
    lines = [f"excess loss {number(total)}", *(f"  {name} {number(v) if v else 0}" for name, v in shown.items())]
    curve = result.get("learning_curve")
    if curve is not None:
        count, most = curve["passes_linear_at"], curve["examples"][-1]
        passes = f"with {count} examples" if count else f"not with {most} examples"
        lines += ["a full matrix passes the convolution", f"  {passes}"]
    return "\n".join(lines)


def set_table(
    title: str, rows: Mapping[str, Mapping[str, float]], metrics: list[str], note: str | None = None
) -> Table:
    """Predictors by metrics, the best value of each metric in bold, the learned model in green, a note below."""
    rows = {name: values for name, values in rows.items() if any(metric in values for metric in metrics)}
    said = escape(note) if note else None
    table = Table(title=escape(title), title_justify="left", title_style="bold", caption=said, caption_justify="left")
    table.add_column("predictor", no_wrap=True)
    for metric in metrics:
        table.add_column(escape(metric.rpartition("/")[2]), justify="right", no_wrap=True)
    best = {metric: best_value(rows, metric) for metric in metrics}
    for name in ranked(rows, metrics[0]):
        cells = []
        for metric in metrics:
            value = rows[name].get(metric)
            text = number(value, metric)
            cells.append(f"[bold]{text}[/bold]" if value is not None and value == best[metric] else text)
        table.add_row(escape(name), *cells, style="green" if name.endswith("(learned)") else None)
    return table


def ranked(rows: Mapping[str, Mapping[str, float | None]], metric: str) -> list[str]:
    """The names of the rows, the best value of a metric first, those without one last."""

    def rank(name: str) -> float:
        value = rows[name].get(metric)
        return float("inf") if value is None else -value if higher_is_better(metric) else value

    return sorted(rows, key=rank)


def best_value(rows: Mapping[str, Mapping[str, float | None]], metric: str) -> float | None:
    values = [value for row in rows.values() if (value := row.get(metric)) is not None]
    return (max if higher_is_better(metric) else min)(values) if values else None


def class_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """File names with the most probable class of each, and the probability of every class."""
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("class", no_wrap=True)
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    for name in names:
        table.add_column(escape(f"P({name})"), justify="right", no_wrap=True)
    for file, found in rows.items():
        likely = max(found, key=found.__getitem__)
        table.add_row(escape(file), escape(likely), *(f"{100 * found.get(name, 0):.4g} %" for name in names))
    return table
