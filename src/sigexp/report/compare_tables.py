"""Comparisons shown: as tables in a terminal, lines where output is piped, CSV, a page."""

import csv
import io
import os
import sys
import time
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
from sigexp.report.wording import counted, meaning
from sigexp.track.record import Record, finite, mapping, printable

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
    """Whether the row has the best mean of several."""
    several = sum(one.learned for one in found.rows) > 1
    return several and metric in found.metrics and row is found.best(metric)


def sentence(found: Comparison) -> str:
    """Which row is best by the headline metric, and whether its interval and the next one's overlap; '' of one row."""
    metric = found.metrics[0]
    learned = [(row, mean) for row in found.rows if row.learned and (mean := row.mean(metric)) is not None]
    if len(learned) < 2:
        return ""
    (first, best), (second, next_best) = learned[:2]
    apart = abs(best - next_best)
    if apart == 0:
        return f"{first.label} and {second.label} have the same mean {metric}"
    start = f"{first.label} has the best {metric}"
    halves = [half for row in (first, second) if (half := row.half_interval(metric)) is not None]
    if len(halves) < 2:
        return f"{start}; whether {second.label} differs needs more seeds (-m seed=0,1,2)"
    overlap = "overlap" if apart <= sum(halves) else "do not overlap"
    return f"{start}; its interval and {second.label}'s {overlap}"


def show(comparisons: Sequence[Comparison], console: Console) -> None:
    """Tables as wide as the terminal; where output is piped, lines with tabs between their fields, and what explains
    them on standard error."""
    for found in comparisons:
        if console.is_terminal:
            show_table(found, console)
        else:
            console.file.write("".join("\t".join(map(printable, line)) + "\n" for line in plain(found)))
            console.file.flush()
            said = "; ".join(filter(None, [sentence(found), notes(found)]))
            print(f"{printable(found.experiment)}: {printable(said)}", file=sys.stderr)


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
    if said := sentence(found):
        console.print(printable(said), highlight=False, markup=False)
    console.print(table)
    console.print(notes(found, left_out), style="dim", highlight=False, markup=False)


def notes(found: Comparison, left_out: Sequence[str] = ()) -> str:
    """What the table does not say by itself."""
    said = [f"{BEST} best mean of the runs"] if sum(row.learned for row in found.rows) > 1 else []
    said.append("± half of the 95 % interval of the mean, Student's t over seeds")
    if all(row.count < 2 for row in found.rows if row.learned):
        said[-1] = "no interval (±): every row is one run"
    if found.repeated:
        said.append(f"{counted(found.repeated, 'older run')} with the same config and seeds left out")
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
    writer.writerow({name: harmless(name) for name in writer.fieldnames})
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
        "best": int(metric in found.metrics and row is found.best(metric)),
    }


def harmless(value: object) -> object:
    """A text on one line that steers no terminal; one that a spreadsheet would take for a formula, with an apostrophe
    before it."""
    if not isinstance(value, str):
        return value
    value = printable(value)
    if not value.startswith(("=", "+", "-", "@")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def as_page(comparisons: Sequence[Comparison], path: Path, command: str = "") -> str:
    """A page in the form of report.html, with links to the runs' own pages beside it; `command` is what wrote it."""
    parts = [
        section(
            found.experiment, element("p", f"{said}.") if (said := sentence(found)) else "", html_table(found),
            run_links(found, path),
        )
        for found in comparisons
    ]  # fmt: skip
    chips = [element("li", time.strftime("%Y-%m-%d %H:%M")), element("li", element("code", command)) if command else ""]
    top = element(
        "header", element("p", "sigexp", class_="brand"), element("h1", "Runs compared"),
        element("ul", *chips, class_="chips"),
    )  # fmt: skip
    return page("sigexp: runs compared", join([top, *parts]))


def test_data(found: Comparison) -> str:
    """The data that the runs were tested on, by name and source; '' where no run says it."""
    said = dict.fromkeys(words for row in found.rows for run in row.runs if (words := data_in_words(run)))
    return "; or ".join(said)


def data_in_words(run: Record) -> str:
    dataset = mapping(run.result.get("dataset"))
    source = mapping(dataset.get("source"))
    size = finite(dataset.get("test_size"))
    parts = [str(dataset.get("name") or ""), f"{size:,.0f} examples" if size else ""]
    parts += [f"{name}: {value}" for name, value in source.items() if name not in ("train", "valid")]
    return ", ".join(filter(None, parts))


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
    said = notes(found).replace(f"{BEST} best", "bold: best")
    data = test_data(found)
    caption = element("caption", f"test data{data and f' ({data})'}, mean ± half of the 95 % interval")
    table = element("table", caption, element("thead", element("tr", *heads)), element("tbody", *lines))
    return join([element("div", table, class_="wide"), element("p", f"{said}.", class_="note")])


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
    return element("details", element("summary", counted(len(items), "run")), element("ul", *items))
