"""The report's pictures: the slider, single cases, the run's own pictures, each within what the page may hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigexp.report import plot
from sigexp.report.markup import Html, decoded, element, join, picture
from sigexp.report.tables import number
from sigexp.report.verdicts import claim_numbers as spelled_claim
from sigexp.track import documents, record

OWN = {
    "kernels": "the first layer's kernels, zero in white",
    "response": "what the model looks at: receptive field, impulse and frequency response",
    "examples": "input, target, output and references of test examples",
}
MOST_CASES = 6  # of a kind; what a damaged cases.json holds beyond is not shown
MOST_POINTS = 2000


class Pictures:
    """Pictures as data inside the page, as long as there is room for them."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.left = folder, most_bytes

    def show(self, png: bytes, text: str, **attributes: object) -> Html:
        cost = len(png) * 4 // 3
        if cost > self.left:
            return element("p", f"{text}: left out, {cost / 1e6:.1f} MB", class_="note")
        self.left -= cost
        return picture(png, text, **attributes)


def pictures(shown: Pictures, folder: Path, cases: Mapping[str, Any]) -> Html:
    """The run's own pictures, drawn on white."""
    found = []
    for name, text in OWN.items():
        data = documents.png(folder / f"{name}.png")
        if data:
            if name == "examples" and cases.get("kind") == "class":
                text = "test examples: what they are, and what the model said"
            image = shown.show(data, text, class_="paper")
            found.append(element("figure", image, element("figcaption", text)))
    heading = "Kernels, responses, examples"
    return element("section", element("h2", heading), *found) if found else Html()


def slider(cases: Mapping[str, Any], shown: Pictures) -> Html:
    """Two pictures over each other with a divider to drag; side by side on paper and without JavaScript."""
    found = record.mapping(cases.get("slider"))
    kept, drawn = record.mapping(found.get("pictures")), lines(record.mapping(found.get("lines")))
    title, note = element("h2", "Before and after"), f"Test example {found.get('index', '')}. "
    if drawn:
        return element("section", title, element("p", note), element("div", drawn, class_="charts"))
    if "output" not in kept:
        return Html()
    names = ["input", *(name for name in kept if name not in ("input", "output", "target")), "output", "target"]
    figures = []
    for name in (name for name in names if name in kept):
        image = shown.show(decoded(kept[name]), name, class_="pixels")
        figures.append(element("figure", image, element("figcaption", name), data_name=name))
    return element(
        "section", title,
        element("p", note, "The model's output beside its input, the best classical reference and the target."),
        element("div", *figures, class_="slider"),
    )  # fmt: skip


def cases(found: Mapping[str, Any], shown: Pictures) -> Html:
    """The test examples with the least and the greatest error."""
    metric, window = str(found.get("metric", "")), found.get("window")
    groups = []
    for name, title in (("worst", "Greatest error"), ("best", "Least error")):
        kept = found.get(name)
        items = [
            case(record.mapping(one), metric, shown) for one in (kept if isinstance(kept, list) else [])[:MOST_CASES]
        ]
        if items:
            groups += [element("h3", title), element("div", *items, class_="cases")]
    if not groups:
        return Html()
    spread = found.get("quantiles")
    numbers = [record.finite(value) for value in spread] if isinstance(spread, list) else []
    what = f"windows of {window} x {window} pixels" if window else "test examples"
    told = f"{metric} of {record.finite(found.get('count')) or 0:,.0f} {what}"
    # Of a metric that is 0 or 1, such as a class's error, quantiles say nothing.
    if len(numbers) == 3 and None not in numbers and not set(numbers) <= {0.0, 1.0}:
        low, middle, high = (number(value, metric) for value in numbers)
        told += f": median {middle}, nine in ten between {low} and {high}"
    return element("section", element("h2", "Best and worst cases"), element("p", f"{told}."), *groups)


def case(one: Mapping[str, Any], metric: str, shown: Pictures) -> Html:
    """One case: its pictures or lines, its error, what the model said."""
    said = record.mapping(one.get("said"))
    caption = f"example {one.get('index', '')}"
    if isinstance(one.get("corner"), list):
        caption += f" at {', '.join(map(str, one['corner'][:2]))}"
    caption += f": {metric} {number(record.finite(one.get('value')), metric)}"
    if said:
        wrong = said.get("is") != said.get("answer")
        sure = record.finite(said.get("probability"))
        caption = f"example {one.get('index', '')}: {said.get('is')}, said {said.get('answer')}"
        caption += f" ({100 * sure:.1f} % sure)" if sure is not None else ""
        caption += ", wrong" if wrong else ""
    parts = [
        element(
            "figure", shown.show(decoded(png), f"{name} of {caption}", class_="pixels"), element("figcaption", name)
        )
        for name, png in list(record.mapping(one.get("pictures")).items())[:4]
    ]
    return element(
        "div", element("div", *parts, class_="row"), lines(record.mapping(one.get("lines"))),
        element("p", caption, class_="caption"), class_="case",
    )  # fmt: skip


def lines(signals: Mapping[str, Any]) -> Html:
    """Sequences over samples, one chart for each length, their first channels."""
    channels = {name: channel_values(value) for name, value in signals.items()}
    lengths = dict.fromkeys(len(values[0]) for values in channels.values() if values)
    charts = [overlay({n: v for n, v in channels.items() if v and len(v[0]) == length}) for length in lengths]
    return join(element("figure", chart, class_="plot") for chart in charts)


def channel_values(value: Any) -> list[list[float]]:
    """Channels of finite numbers, all of one length; none of what is anything else."""
    found = [
        [record.finite(sample) or 0.0 for sample in channel[:MOST_POINTS]]
        for channel in (value if isinstance(value, list) else [])[:4]
        if isinstance(channel, list) and len(channel) > 1
    ]
    return found if found and len({len(channel) for channel in found}) == 1 else []


def overlay(signals: Mapping[str, Sequence[Sequence[float]]]) -> Html:
    """Input, target and output over each other, with a legend."""
    every = [sample for channels in signals.values() for channel in channels for sample in channel]
    length = max(len(channel) for channels in signals.values() for channel in channels)
    x, y = plot.across([0, length - 1]), plot.upright(every)
    others = [name for name in signals if name not in ("input", "target", "output")]
    order = [name for name in ("input", "target", "output", *others) if name in signals]
    drawn, legend = [], []
    for i, name in enumerate(order):
        style = "reference" if name in others else name
        for channel in signals[name]:
            drawn.append(plot.line([(x.at(n), y.at(v)) for n, v in enumerate(channel)], f"signal {style}"))
        legend.append(plot.text(plot.LEFT + 8 + 62 * i, plot.TOP - 2, name, f"signal-name {style}"))
    return plot.chart(x, y, "sample", "value", *drawn, *legend, label=" and ".join(order))


def claim_numbers(claim: Mapping[str, Any]) -> str:
    """The condition of a claim and what was measured of it."""
    known = {name: record.finite(claim.get(name)) for name in ("measured", "bound")}
    condition = str(claim.get("condition") or "")
    return spelled_claim({**known, "condition": condition}) if condition.split() else ""


def settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
