"""A population's curves: every member of every round by its line of descent, and the line that won.

Shown are the metric on validation data and the hyperparameters that differed, over the samples of the whole search.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from sigexp.metrics import higher_is_better
from sigexp.report import plot
from sigexp.report.markup import Html, element, join
from sigexp.report.tables import number
from sigexp.track.record import Member

MOST_DRAWN = 1200  # members; a page with more would be neither small nor readable
MOST_HPARAMS = 12  # looked at; a search has four
LOG_FROM = 20.0  # ratio of the largest value to the least from which an error's axis is logarithmic
HPARAM_LOG_FROM = 4.0  # the same for hyperparameters, which a search multiplies


def winning_line(members: Sequence[Member], best: object) -> list[Member]:
    """The best member and its ancestors, the first one first; none where the record does not hold the best."""
    by_id = {member.id: member for member in members}
    line: list[Member] = []
    here = by_id.get(best) if isinstance(best, int) else None
    while here is not None:
        line.append(here)
        # A child is younger than its parent, so that a damaged record cannot lead round in a ring.
        older = here.parent is not None and here.parent < here.id
        here = by_id.get(here.parent) if older and here.parent is not None else None
    return line[::-1]


def few(members: Sequence[Member], line: Sequence[Member], most: int = MOST_DRAWN) -> list[Member]:
    """The members that are drawn: all, or of every round the best ones and those of the winning line."""
    if len(members) <= most:
        return list(members)
    kept = {member.id for member in line}
    rounds: dict[int, list[Member]] = {}
    for member in members:
        rounds.setdefault(member.round, []).append(member)
    share = max(1, most // len(rounds))
    for group in list(rounds.values())[:: max(1, len(rounds) // most)]:
        healthy = [member for member in group if member.valid_loss is not None]
        kept |= {member.id for member in sorted(healthy, key=lambda m: m.valid_loss or 0.0)[:share]}
    return [member for member in members if member.id in kept]


def varied(members: Sequence[Member]) -> list[str]:
    """The hyperparameters that are not the same in all members, the first few."""
    names = dict.fromkeys(name for member in members for name in member.hparams)
    return [name for name in islice(names, MOST_HPARAMS) if len({member.hparams.get(name) for member in members}) > 1]


def metric_chart(
    members: Sequence[Member], line: Sequence[Member], metric: str, references: Mapping[str, float]
) -> Html:
    """The metric on validation data, with the references that lie near."""
    values = [m.valid for m in members if m.valid is not None]
    near = nearest(references, values, metric)
    return population_chart(
        members, line, lambda m: None if m.diverged else m.valid, f"{metric}, validation data",
        [value for _, value in near], near,
    )  # fmt: skip


def nearest(references: Mapping[str, float], values: Sequence[float], metric: str) -> list[tuple[str, float]]:
    """References within the values' range, and beyond it the best one and the next, the best first."""
    if not values:
        return []
    sign = 1 if higher_is_better(metric) else -1
    ordered = sorted(references.items(), key=lambda item: -sign * item[1])
    shown = [item for item in ordered if min(values) <= item[1] <= max(values)]
    above = [item for item in ordered if sign * item[1] > max(sign * v for v in values)]
    # On a logarithmic axis a level far below would flatten all that happened above it.
    reachable = [item for item in above if sign > 0 or item[1] > min(values) / 100]
    return list(dict.fromkeys(reachable[:1] + reachable[-1:])) + shown


def hparam_chart(members: Sequence[Member], line: Sequence[Member], name: str) -> Html:
    return population_chart(members, line, lambda m: m.hparams.get(name), name, log_from=HPARAM_LOG_FROM)


def population_chart(
    members: Sequence[Member],
    line: Sequence[Member],
    value_of: Callable[[Member], float | None],
    name: str,
    also: Sequence[float] = (),
    levels: Sequence[tuple[str, float]] = (),
    log_from: float = LOG_FROM,
) -> Html:
    """Every member a point, a line from its parent to it, the winning line on top; a diverged one a cross above."""
    known = {m.id: v for m in members if (v := value_of(m)) is not None}
    if not known:
        return element("p", f"{name}: nothing was recorded.")
    every = [*known.values(), *also]
    log = min(every) > 0 and max(every) > log_from * min(every)
    x = plot.across([m.total_samples for m in members], from_zero=True)
    y = plot.upright(every, log=log)
    place = {m.id: (x.at(m.total_samples), y.at(known[m.id])) for m in members if m.id in known}
    winners = {m.id for m in line}
    back, front = [plot.levels(y, levels)], list[Html]()
    for member in members:
        won = member.id in winners
        if member.id not in place:
            back.append(plot.text(x.at(member.total_samples), plot.TOP + 8, "×", "diverged middle"))
            continue
        to = front if won else back
        if member.parent in place:
            ends = [place[member.parent], place[member.id]]
            to.append(plot.line(ends, "winner" if won else "descent", data_to=member.id))
        style = ("best" if member is line[-1] else "won") if won else "member"
        to.append(
            plot.dot(
                *place[member.id], style, 5 if style == "best" else 3.5, described(member), data_id=member.id,
                data_parent=member.parent,
            )
        )  # fmt: skip
    label = f"{name} of {len(known)} members over {len({m.round for m in members})} rounds"
    return plot.chart(x, y, "member-samples of the whole search", name, *back, *front, label=label)


def described(member: Member) -> str:
    parent = "a fresh start" if member.parent is None else f"a child of {member.parent}"
    hparams = ", ".join(f"{name} {value:.3g}" for name, value in member.hparams.items())
    valid = "diverged" if member.diverged else f"validation {number(member.valid)}"
    return f"member {member.id}, round {member.round}, {parent}: {valid}; {hparams}"


def line_table(line: Sequence[Member], metric: str, names: Sequence[str]) -> Html:
    """The winning line, round by round: its hyperparameters and what they came to."""
    heads = ["round", "member", *names, "samples learned from", "training loss", f"validation {metric}"]
    rows = []
    for member in line:
        cells = [member.round, member.id, *(f"{member.hparams.get(name, float('nan')):.4g}" for name in names)]
        cells += [f"{member.samples:,.0f}", number(member.train_loss), number(member.valid, metric)]
        rows.append(element("tr", *(element("td", cell) for cell in cells)))
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in heads)))
    return element("div", element("table", head, element("tbody", join(rows))), class_="wide")
