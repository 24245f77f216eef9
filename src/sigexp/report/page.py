"""report.html: a finished run on one page that needs no network, for a screen, a phone, paper and the dark.

Everything comes from the run's folder, so that `sigexp report` writes it again for an old one. The folder may be
somebody else's: all text is escaped, pictures are PNGs by their bytes, and the page's policy lets nothing be loaded.
"""

import base64
import hashlib
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from sigexp.metrics import higher_is_better
from sigexp.report import lineage, views
from sigexp.report.markup import Html, element, join
from sigexp.report.tables import addend, best_value, number, ranked, test_sets
from sigexp.report.wording import beside, duration, meaning, phases, verdict
from sigexp.track import documents
from sigexp.track import folder as folders
from sigexp.track.record import Record, Unreadable, cases, finite, mapping, members, numbers, read

MOST_BYTES = 2_900_000
MOST_TEXT_BYTES = 4 * MOST_BYTES
LEARNED = ""  # the model's row; its name may be a reference's too
MOST_CONFIG = 40_000  # characters of config.yaml shown


def write(folder: Path, output: Path | None = None) -> Path:
    """Write report.html into a run's folder, or elsewhere. Raises `Unreadable` (a ValueError) for what is no run."""
    path = output or folder / "report.html"
    folders.write(path, build(read(folder)))
    return path


def build(record: Record) -> str:
    """The page. Pictures for which there is no room left are named instead. Raises `Unreadable` where the record's
    texts alone are far longer than any run's."""
    most = MOST_BYTES
    while True:
        text = page(f"{record.experiment}: {record.model}", body(record, views.Pictures(record.folder, most)))
        size = len(text.encode())
        if size - most > MOST_TEXT_BYTES:
            raise Unreadable(f"{record.folder}: its texts make a page of {size / 1e6:.0f} MB; damaged")
        if size <= MOST_BYTES or most < 1000:
            return text
        most //= 2


def page(title: str, content: Html) -> str:
    """A page of the house: one style sheet, one script, which is the only one that its policy lets run."""
    web = files("sigexp.report") / "web"
    script, style, whole = ((web / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css", "html"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(whole).substitute(
        title=str(element("title", title)), style=style, script=script, digest=digest, body=content
    )


def body(record: Record, pictures: views.Pictures) -> Html:
    seen = cases(record.folder)
    return join(
        [
            header(record),
            section("Result", *result_tables(record), excess(record), claims(record)),
            views.slider(seen, pictures),
            curves(record),
            views.pictures(pictures, record.folder, seen),
            views.cases(seen, pictures),
            section("Data", facts(data_of(record))),
            section("Environment", facts(environment(record))),
            rerun(record),
        ]
    )


def section(title: str, *content: object) -> Html:
    """A section; none where it has no content."""
    full = [part for part in content if part]
    return element("section", element("h2", title), *full) if full else Html()


def header(record: Record) -> Html:
    found = verdict(record.model, record.test, record.references)
    result = record.result
    cost = [
        f"{finite(result.get('parameters')) or 0:,.0f} parameters",
        f"{finite(result.get('samples')) or 0:,.0f} member-samples",
        duration(finite(result.get("seconds"))),
        ", ".join(f"{name} {value}" for name, value in seeds(record).items()),
        record.folder.resolve().name,
    ]
    return element(
        "header",
        element("p", "sigexp", class_="brand"),
        element("h1", record.experiment, element("span", f" {record.model}", class_="model")),
        element("p", found.text, class_=f"verdict {found.state}"),
        element("ul", *(element("li", part) for part in cost if part), class_="chips"),
    )


def seeds(record: Record) -> dict[str, Any]:
    found = mapping(record.result.get("seeds"))
    names = {"seed": "seed", "dataset": "dataset.seed"}
    return {names.get(name, name): value for name, value in found.items() if value is not None}


def result_tables(record: Record) -> list[Html]:
    """Model and references on every test set, the best first, with how far the model is from each."""
    return [result_table(record, name, metrics) for name, metrics in test_sets(record.test).items()]


def result_table(record: Record, test_set: str, metrics: list[str]) -> Html:
    test, headline = record.test, metrics[0]
    rows: dict[str, Mapping[str, float | None]] = {LEARNED: test}
    rows |= {name: values for name, values in record.references.items() if any(m in values for m in metrics)}
    best = {metric: best_value(rows, metric) for metric in metrics}
    # The distance comes second, where a phone shows it without scrolling.
    heads = [m.rpartition("/")[2] for m in metrics]
    heads = ["predictor", heads[0], "the model against it", *heads[1:]]
    lines = []
    for name in ranked(rows, headline):
        learned = name == LEARNED
        title, what = (record.model, "learned") if learned else (name, meaning(name))
        cells = [element("th", title, element("small", what) if what else "", scope="row")]
        for metric in metrics:
            value = rows[name].get(metric)
            mark = "best" if value is not None and value == best[metric] else None
            cells.append(element("td", number(value, metric), class_=mark))
        distance = "" if learned else beside(test.get(headline), rows[name].get(headline), headline)
        cells.insert(2, element("td", distance))
        lines.append(element("tr", *cells, class_="learned" if learned else None))
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    title = f"test data{test_set and ', ' + test_set}"
    return element("div", element("table", element("caption", title), head, element("tbody", *lines)), class_="wide")


def excess(record: Record) -> Html:
    """A linear model's distance to the best predictor known, in its three parts."""
    parts = {name: value for name, value in numbers(record.result.get("excess")).items() if value is not None}
    total = sum(parts.values())
    if not parts:
        return Html()
    said = {
        "approximation": "the family of models: what none of them can do",
        "estimation": "the training set: fitted to it instead of to the test data",
        "optimisation": "the search: what is left to the best of its form",
    }
    lines = []
    for name, value in parts.items():
        value = addend(value, total)
        share = value / total if total > 0 else 0.0
        bar = element("div", class_="bar", style=f"width: {100 * min(max(share, 0), 1):.1f}%")
        cells = [
            element("th", name, element("small", said.get(name, "")), scope="row"),
            element("td", number(value) if value else "0"),
        ]
        lines.append(element("tr", *cells, element("td", bar, f"{100 * share:.3g} %", class_="share")))
    title = f"excess loss {number(total)}: the distance to the best predictor known, in parts"
    table = element("table", element("caption", title), element("tbody", *lines))
    return element("div", table, class_="wide")


def claims(record: Record) -> Html:
    found = record.result.get("claims")
    lines = []
    for claim in found if isinstance(found, list) else []:
        claim = mapping(claim)
        words = {"True": ("holds", "yes"), "False": ("does not hold", "no")}
        word, style = words.get(str(claim.get("holds")), ("measured", "told"))
        values = views.claim_numbers(claim)
        lines.append(
            element("li", element("b", word, class_=style), f" {claim.get('text', '')} ", element("small", values))
        )
    return join([element("h3", "Claims"), element("ul", *lines, class_="claims")]) if lines else Html()


def curves(record: Record) -> Html:
    """The population while it learned, and the line that won."""
    everyone = members(record.folder)
    if not everyone:
        return Html()
    line = lineage.winning_line(everyone, record.result["best"].get("id"))
    metric = next((name for name in mapping(record.result["best"].get("valid")) if name != "loss"), "loss")
    levels = {
        name: value
        for name, values in mapping(record.result.get("references_valid")).items()
        if (value := numbers(values).get(metric)) is not None
    }
    drawn, names = lineage.few(everyone, line), lineage.varied(everyone)
    charts = [lineage.metric_chart(drawn, line, metric, levels)]
    charts += [lineage.hparam_chart(drawn, line, name) for name in names]
    few = "" if len(drawn) == len(everyone) else f" Drawn are the best of every round, {len(drawn)} of {len(everyone)}."
    better = "higher" if higher_is_better(metric) else "lower"
    told = (
        f"{len(everyone)} members over {max(m.round for m in everyone)} rounds: every dot is a member after a round, "
        f"every line leads from a parent to its child; a {better} {metric} is better.{few} "
    )
    legend = element("span", "The line of the best member", class_="key-winner")
    hint = element("p", "Point at a dot, or tap it, to see its ancestors.", class_="readout", aria_live="polite")
    shown = [element("figure", chart, class_="plot") for chart in charts]
    table = element(
        "details", element("summary", "The winning line in numbers"),
        lineage.line_table(line, metric, names or ["lr"]), open=len(line) <= 12,
    )  # fmt: skip
    return section(
        "Learning curves and lineage", element("p", told, legend, " is drawn bold."),
        element("div", *shown, class_="charts lineage"), hint, table if line else "",
    )  # fmt: skip


def facts(found: Mapping[str, Any]) -> Html:
    """A list of names and values; those that are missing are left out."""
    pairs = [(name, value) for name, value in found.items() if value not in (None, "", {}, [])]
    return element("dl", *(part for name, value in pairs for part in (element("dt", name), element("dd", str(value)))))


def data_of(record: Record) -> dict[str, Any]:
    dataset = mapping(record.result.get("dataset"))
    source = mapping(dataset.pop("source", None))
    return {"dataset": dataset.pop("name", ""), **source, "settings": views.settings(dataset)}


def environment(record: Record) -> dict[str, Any]:
    result, plan = record.result, mapping(record.result.get("plan"))
    memory, speed = finite(result.get("peak_memory_bytes")), finite(result.get("member_samples_per_second"))
    rest = phases(numbers(result.get("phases")))
    way = [str(plan.get("way", "")), f"{plan.get('processes', 1)} processes, {plan.get('threads', 1)} threads"]
    return {
        "device": result.get("device"),
        "time": f"{duration(finite(result.get('seconds')))}, of which training "
        f"{duration(finite(result.get('train_seconds')))}{rest and f', {rest}'}",
        "speed": f"{speed:,.0f} member-samples/s" if speed is not None else "",
        "memory": f"{memory / 1e9:.2f} GB at most" if memory is not None else "",
        "plan": ", ".join(part for part in way if part) if plan else "",
        "search": f"{result.get('search', '')}, stopped: {result.get('stopped', '')}",
        "versions": views.settings(mapping(result.get("versions"))),
    }


def rerun(record: Record) -> Html:
    """The exact command, and all settings."""
    words = record.overrides
    command = f"sigexp {shlex.join(words)}" if words else str(record.result.get("command", ""))
    version = mapping(record.result.get("versions")).get("sigexp", "")
    note = f"With sigexp {version}, on the same data; the same plan gives the same bits on a CPU." if version else ""
    try:
        config = documents.text(record.folder / "config.yaml", documents.MOST_YAML_BYTES, errors="replace")
    except (ValueError, OSError):
        config = ""
    cut = config[:MOST_CONFIG] + ("\n(cut here)" if len(config) > MOST_CONFIG else "")
    details = element("details", element("summary", "All settings (config.yaml)"), element("pre", cut)) if cut else ""
    return section("Run it again", element("pre", command, class_="command"), element("p", note), details)
