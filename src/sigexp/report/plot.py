"""Line charts as SVG: axes with round numbers, linear or logarithmic. Colours come from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sigexp.report.markup import Html, element, join

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 12, 44
APART_PX = 13  # between the names of two levels
LEAST, MOST = 1e-300, 1e300  # that an axis can show; a record may hold any number


@dataclass(frozen=True)
class Axis:
    """Values low..high to pixels start..end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, here = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def inside(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self) -> list[float]:
        """Four to eight round numbers: 1, 2 or 5 times a power of ten; on a logarithmic axis powers of ten."""
        if self.log:
            return self._decades()
        step = round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _decades(self) -> list[float]:
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        step = max(1, (high - low) // 6)
        whole = [10.0**k for k in range(low, high + 1, step)]
        between = [m * 10.0**k for k in range(low, high + 1) for m in (1, 2, 5)]
        found = [v for v in whole if self.inside(v)]
        return found if len(found) >= 3 else [v for v in between if self.inside(v)]


def round_step(rough: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is no less."""
    rough = max(rough, LEAST)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def axis(values: Sequence[float], start: float, end: float, *, log: bool = False, from_zero: bool = False) -> Axis:
    """An axis that holds the values with a margin; logarithmic only where all of them are positive."""
    low, high = (min(max(value, -MOST), MOST) for value in (min(values), max(values)))
    if log and low > 0:
        margin = max(10 ** (0.06 * (math.log10(high) - math.log10(low))), 1.1)
        return Axis(max(low / margin, LEAST), min(high * margin, MOST), start, end, log=True)
    if from_zero:
        return Axis(0.0, high if high > LEAST else 1.0, start, end)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - margin, high + margin, start, end)


def across(values: Sequence[float], *, from_zero: bool = False) -> Axis:
    if from_zero:
        return axis(values, LEFT, WIDTH - RIGHT - 6, from_zero=True)
    return Axis(min(values), max(values) if max(values) > min(values) else min(values) + 1, LEFT, WIDTH - RIGHT)


def upright(values: Sequence[float], *, log: bool = False) -> Axis:
    return axis(values, HEIGHT - BOTTOM, TOP, log=log)


def short(value: float) -> str:
    """A number beside a tick: 20k, 1.5M, 0.03, 2e-5."""
    if abs(value) >= 1e4:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    text = f"{value:.6g}"
    return text.replace("e-0", "e-").replace("e+0", "e") if "e" in text else text


def chart(x: Axis, y: Axis, x_name: str, y_name: str, *content: Html, label: str) -> Html:
    """A chart with its axes and grid. `label` says in words what is seen."""
    grid = []
    for tick in y.ticks():
        grid.append(line([(LEFT, y.at(tick)), (WIDTH - RIGHT, y.at(tick))], "grid"))
        grid.append(text(LEFT - 6, y.at(tick) + 4, short(tick), "tick end"))
    for tick in x.ticks():
        grid.append(text(x.at(tick), HEIGHT - BOTTOM + 17, short(tick), "tick middle"))
    names = [
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "name middle"),
        element(
            "text", y_name, class_="name middle", transform=f"translate(12 {(HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)"
        ),
    ]
    box = f"0 0 {WIDTH} {HEIGHT}"
    return element("svg", *grid, *names, *content, viewBox=box, class_="chart", role="img", aria_label=label)


def line(points: Sequence[tuple[float, float]], style: str, **attributes: object) -> Html:
    """A polyline through pixels."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", points=path, class_=style, **attributes)


def dot(x: float, y: float, style: str, radius: float = 4, hint: str = "", **attributes: object) -> Html:
    """A point; the hint is what a browser shows when the pointer rests on it."""
    inside = [element("title", hint)] if hint else []
    return element("circle", *inside, cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius:g}", class_=style, **attributes)


def text(x: float, y: float, words: str, style: str) -> Html:
    return element("text", words, x=f"{x:.1f}", y=f"{y:.1f}", class_=style)


def levels(y: Axis, named: Sequence[tuple[str, float]]) -> Html:
    """Dashed lines with their names above; a name that would lie on another one is left out."""
    drawn, taken = [], list[float]()
    for name, value in named:
        if not y.inside(value):
            continue
        here = y.at(value)
        drawn.append(line([(LEFT, here), (WIDTH - RIGHT, here)], "level"))
        if all(abs(here - other) >= APART_PX for other in taken) and here > TOP + 8:
            taken.append(here)
            drawn.append(text(WIDTH - RIGHT, here - 4, name, "level-name end"))
    return join(drawn)
