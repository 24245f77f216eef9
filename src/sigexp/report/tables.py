"""Results as tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from sigexp.problem import higher_is_better


def number(value: float | None, metric: str = "") -> str:
    """A measured value in four digits; dB and shares in their customary form."""
    if value is None:
        return ""
    name = metric.rpartition("/")[2]
    if name.startswith("psnr"):
        return f"{value:.2f} dB"
    if name in ("error", "pixel_error", "hit_rate"):
        return f"{100 * value:.4g} %"
    if name in ("ssim", "iou"):
        return f"{value:.4f}"
    return f"{value:.3e}"


def result_table(result: Mapping[str, Any]) -> Table:
    """The model's test metrics beside every reference, sorted by the headline metric, the best of each in bold."""
    test: dict[str, float] = result["best"]["test"]
    headline = next(iter(test))
    rows = {f"{result['model']['name']} (learned)": test, **result["references"]}
    worst = -float("inf") if higher_is_better(headline) else float("inf")

    def key(item: tuple[str, Mapping[str, float]]) -> float:
        value = item[1].get(headline)
        value = worst if value is None else value
        return -value if higher_is_better(headline) else value

    table = Table(title=f"{result['experiment']}: test data", title_justify="left", title_style="bold")
    table.add_column("predictor")
    for metric in test:
        table.add_column(metric, justify="right", no_wrap=True)
    best = {}
    for metric in test:
        values = [row[metric] for row in rows.values() if row.get(metric) is not None]
        best[metric] = (max if higher_is_better(metric) else min)(values) if values else None
    for name, row in sorted(rows.items(), key=key):
        learned = name.endswith("(learned)")
        cells = []
        for metric in test:
            value = row.get(metric)
            text = number(value, metric)
            cells.append(f"[bold]{text}[/bold]" if value is not None and value == best[metric] else text)
        table.add_row(name, *cells, style="green" if learned else None)
    return table
