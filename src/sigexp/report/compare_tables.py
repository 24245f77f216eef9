"""Comparisons shown: as tables in a terminal, lines where output is piped, CSV, a page."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sigexp.report.compare import COSTS, Comparison, Row
from sigexp.report.markup import Html, element, join
from sigexp.report.page import page, section
from sigexp.report.tables import number
from sigexp.report.verdicts import spelled_number
from sigexp.report.wording import meaning
from sigexp.track.record import printable

BEST = "*"
CELL_PADDING = 3  # characters between two columns of a terminal's table


def spread(row: Row, metric: str) -> str:
    """Mean and half of the 95 % interval, where there is one."""
    centre, half = row.mean(metric), row.half_interval(metric)
    if centre is None:
        return ""
    if metric == "samples":
        return f"{centre:,.0f}"
    if metric in COSTS:
        return spelled_number(centre, metric)
    return f"{number(centre, metric)} ± {number(half, metric)}" if half else number(centre, metric)


def cell(found: Comparison, row: Row, metric: str) -> str:
    """The same, with a mark where no other run has a better mean."""
    text = spread(row, metric)
    return f"{text} {BEST}" if text and is_best(found, row, metric) else text


def is_best(found: Comparison, row: Row, metric: str) -> bool:
    return metric in found.metrics and row is found.best(metric)


def show(comparisons: Sequence[Comparison], console: Console) -> None:
    """Tables as wide as the terminal; where output is piped, lines with tabs between their fields."""
    for found in comparisons:
        if console.is_terminal:
            show_table(found, console)
        else:
            console.file.write("".join("\t".join(map(printable, line)) + "\n" for line in plain(found)))


def show_table(found: Comparison, console: Console) -> None:
    columns, left_out = fitting(found, console.width)
    table = Table(title=escape(f"{printable(found.experiment)}: test data, mean ± 95 % interval"), title_justify="left")
    table.title_style = "bold"
    table.add_column("predictor", overflow="fold")
    table.add_column("runs", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(escape(printable(column)), justify="right", no_wrap=True)
    for row in found.rows:
        cells = [escape(cell(found, row, column)) for column in columns]
        runs = str(row.count) if row.learned else ""
        name = escape(printable(row.label)) if row.learned else f"[dim]{escape(printable(row.label))}[/dim]"
        table.add_row(name, runs, *cells, style="green" if row.learned else None)
    console.print(table)
    console.print(notes(found, left_out), style="dim", highlight=False, markup=False)


def notes(found: Comparison, left_out: Sequence[str] = ()) -> str:
    """What the table does not say by itself."""
    said = [f"{BEST} best mean of the runs", "interval: Student's t over seeds"]
    if found.repeated:
        said.append(f"{found.repeated} older runs with the same config and seeds left out")
    if left_out:
        said.append(f"not shown for want of width: {', '.join(left_out)} (--csv and --html have all)")
    return "; ".join(said)


def fitting(found: Comparison, width: int) -> tuple[list[str], list[str]]:
    """The metrics and costs that fit into a terminal beside the names, the headline always; and those that do not."""
    names = max(len(row.label) for row in found.rows)
    left = width - min(names, max(24, width // 3)) - len("runs") - 2 * CELL_PADDING - 1
    shown, left_out = list[str](), list[str]()
    for column in (*found.metrics, "seconds", *(cost for cost in COSTS if cost != "seconds")):
        needed = max(len(column), *(len(cell(found, row, column)) for row in found.rows)) + CELL_PADDING
        if not shown or needed <= left:
            shown.append(column)
            left -= needed
        else:
            left_out.append(column)
    return shown, left_out


def plain(found: Comparison) -> list[list[str]]:
    columns = [*found.metrics, *COSTS]
    lines = [["experiment", "predictor", "runs", *columns]]
    for row in found.rows:
        runs = str(row.count) if row.learned else "reference"
        lines.append([found.experiment, row.label, runs, *(cell(found, row, column) for column in columns)])
    return lines


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """A line for every predictor and metric, a column for every setting that differs."""
    names = dict.fromkeys(name for found in comparisons for row in found.rows for name in row.settings)
    fields = ["experiment", "kind", "predictor", *names, "metric", "runs", "mean", "half_interval_95", "min", "max"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*fields, "best"], lineterminator="\n")
    writer.writeheader()
    for found in comparisons:
        for row in found.rows:
            for metric, values in row.values.items():
                if values:
                    writer.writerow({name: harmless(value) for name, value in csv_row(found, row, metric).items()})
    return buffer.getvalue()


def csv_row(found: Comparison, row: Row, metric: str) -> dict[str, object]:
    values, half = row.values[metric], row.half_interval(metric)
    return {
        "experiment": found.experiment,
        "kind": "learned" if row.learned else "reference",
        "predictor": row.name if row.learned else row.label,
        **row.settings,
        "metric": metric,
        "runs": len(values),
        "mean": row.mean(metric),
        "half_interval_95": "" if half is None else half,
        "min": min(values),
        "max": max(values),
        "best": int(is_best(found, row, metric)),
    }


def harmless(value: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def as_page(comparisons: Sequence[Comparison], path: Path) -> str:
    """A page in the form of report.html, with links to the runs' own pages beside it."""
    parts = [section(found.experiment, html_table(found), run_links(found, path)) for found in comparisons]
    top = element("header", element("p", "sigexp", class_="brand"), element("h1", "Runs compared"))
    return page("sigexp: runs compared", join([top, *parts]))


def html_table(found: Comparison) -> Html:
    columns = [*found.metrics, *COSTS]
    heads = [element("th", text, scope="col") for text in ("predictor", "runs", *columns)]
    lines = []
    for row in found.rows:
        name, more = row.label, meaning(row.name)
        if row.learned:
            name, more = row.name, ", ".join(f"{key} {value}" for key, value in row.settings.items())
        cells = [element("th", name, element("small", more) if more else "", scope="row")]
        cells.append(element("td", row.count if row.learned else ""))
        for column in columns:
            best = "best" if is_best(found, row, column) else None
            centre, _, half = spread(row, column).partition(" ± ")
            cells.append(element("td", centre, element("small", f"± {half}") if half else "", class_=best))
        lines.append(element("tr", *cells, class_="learned" if row.learned else None))
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *lines))
    said = notes(found).replace(f"{BEST} best", "bold: best")
    return join([element("div", table, class_="wide"), element("p", f"Mean ± 95 % interval; {said}.", class_="note")])


def run_links(found: Comparison, path: Path) -> Html:
    """Every run's folder, as a link where its own page lies there."""
    items = []
    for row in found.rows:
        for run in row.runs:
            words = f"{row.label}: {run.folder}"
            target = run.folder / "report.html"
            there = target.is_file()
            link = quote(Path(os.path.relpath(target, path.resolve().parent)).as_posix())
            items.append(element("li", element("a", words, href=f"./{link}") if there else words))
    return element("details", element("summary", f"{len(items)} runs"), element("ul", *items))
