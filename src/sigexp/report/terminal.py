"""What a person sees of a run: a live table while it trains and the results in colour, plain where output is piped.

rich leaves colours out where `NO_COLOR` is set.
"""

import logging
import math
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from sigexp.metrics import higher_is_better
from sigexp.report.console import progress_console
from sigexp.report.tables import number, result_tables
from sigexp.report.verdicts import claim_numbers
from sigexp.report.wording import EQUAL, LEAST_DB, counted, phases
from sigexp.search.records import MemberRecord, RoundRecord
from sigexp.track.record import finite, mapping, printable

log = logging.getLogger("sigexp")
REFRESH_S = 0.25  # of the live table, at least
DONE = "training done"
CAPTION = ContextVar("CAPTION", default="")  # of one of several runs: stands in its table, no line that stays
LINE_S = 1.0  # between two lines where output is piped
TOP, BOTTOM = 5, 2  # members of a round that the table shows
EXACT = 1e-5  # a replay's relative deviation that is rounding
PIPED_WIDTH = 1000  # characters: no line is cut or wrapped where no terminal is


def samples(count: float) -> str:
    """A number of samples in three digits: 940, 12.3k, 1.20M."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"


class Terminal:
    """Progress of one run on standard error: a live table in a terminal, else a line a round, at most one a second."""

    def __init__(
        self,
        title: str,
        metric: str,
        best_reference: tuple[str, float] | None,
        budget: int,
        decides: str | None = None,
        before: int = 0,
    ) -> None:
        """decides: by which loss the best is chosen, 'valid' or 'train', where the metric is not that loss.

        before: member-samples that the run had when it was taken up again.
        """
        self.title, self.metric, self.budget, self.known = title, metric, budget, best_reference
        self.began, self.done, self.before, self.waiting = time.perf_counter(), before, before, ""
        self.decides, self.ended = decides, False
        self.next = 0.0  # when something may be shown again
        self.latest: RoundRecord | None = None  # that the table does not show yet
        self.table: Segments | str = ""
        self.console = progress_console()
        self.reference = f" ({best_reference[0]} {number(best_reference[1], metric)})" if best_reference else ""
        self.live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            # Refreshed by hand: a thread would compete with training.
            self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Terminal":
        taken_up = f"goes on after {samples(self.before)} of" if self.before else "budget"
        if not CAPTION.get():
            said = f"{self.title}, {taken_up} {samples(self.budget)} member-samples"
            self.console.print(said, soft_wrap=True, markup=False)
        if self.live:
            self.live.start()
        self.began = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()
        said = [self.waiting] if self.waiting and (error or not self.live) else []
        said += [] if error or self.live or self.ended else [DONE]
        if said:
            self.console.print(", ".join(said), soft_wrap=True)

    def step(self, total_samples: int) -> None:
        self.done = total_samples
        if self.live and time.perf_counter() >= self.next:
            self.show()

    def show(self) -> None:
        """Draw the table anew, so seldom that it takes less than a hundredth of the time."""
        assert self.live is not None
        began = time.thread_time()
        if self.latest:
            table = round_table(self.latest, self.metric, self.known, self.decides)
            self.table, self.latest = Segments(self.console.render(table)), None
        share = self.done / self.budget
        bar = ProgressBar(total=self.budget, completed=self.done, width=20)
        head = Table.grid(padding=(0, 2))
        head.add_row(bar, f"{100 * share:.0f} %", f"{samples(self.speed())} samples/s", self.left_in_words())
        caption = [Text(CAPTION.get(), no_wrap=True)] if CAPTION.get() else []
        self.live.update(Group(*caption, head, self.table), refresh=True)
        self.next = time.perf_counter() + max(REFRESH_S, 120 * (time.thread_time() - began))

    def speed(self) -> float:
        return (self.done - self.before) / max(time.perf_counter() - self.began, 1e-9)

    def left(self) -> float:
        """Seconds to the end of the budget."""
        return max(0, self.budget - self.done) / max(self.speed(), 1e-9)

    def left_in_words(self) -> str:
        return DONE if self.done >= self.budget else f"{duration(self.left())} left"

    def standing(self, best: MemberRecord) -> str:
        """The best member on validation data: the loss that chose it, and the headline metric where that is another."""
        metric = f"{self.metric} {number(best.valid, self.metric)}{self.reference}"
        if self.decides == "train":
            return f"train loss {number(best.train_loss)}, valid {metric}"
        return f"valid loss {number(best.valid_loss)}, {metric}" if self.decides else f"valid {metric}"

    def round(self, record: RoundRecord) -> None:
        diverged = sum(member.diverged for member in record.members)
        note = f", {diverged} diverged" if diverged else ""
        self.done = record.total_samples
        line = (
            f"round {record.round}: best {self.standing(record.best)}, "
            f"lr {record.best.hparams['lr']:.2g}, "
            f"{samples(record.total_samples)} of {samples(self.budget)} samples, {samples(self.speed())}/s{note}"
        )
        log.info(line)
        self.waiting = line
        now = time.perf_counter()
        if self.live:
            self.latest = record
        if now < self.next:
            return
        if self.live:
            self.show()
        else:
            self.console.print(f"{line}, {self.left_in_words()}", soft_wrap=True)
            self.ended = self.done >= self.budget
            self.waiting, self.next = "", now + LINE_S


def duration(seconds: float) -> str:
    """A time in the coarsest units that tell it: 8 s, 2:05 min, 1:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02} h"


def round_table(
    record: RoundRecord, metric: str, reference: tuple[str, float] | None, decides: str | None = None
) -> Table:
    """The best members of a round and the worst, beside the best of the search and the best reference.

    decides: by which loss the best is chosen, 'valid' or 'train', where the metric is not that loss.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="")
    higher = higher_is_better(metric)
    table.title = f"round {record.round}: {counted(len(record.members), 'member')}"
    for name in ("", "member", "lr", "batch", f"{decides or 'train'} loss", f"valid {metric}"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    told = reference and (higher or reference[1] > 0)
    table.add_column(f"to {reference[0]}" if reference and told else "", justify="right", no_wrap=True)

    def rank(member: MemberRecord) -> float:
        if member.diverged:
            return math.inf
        if decides:
            return member.valid_loss if decides == "valid" else member.train_loss
        return -member.valid if higher else member.valid

    def add(name: str, member: MemberRecord, style: str | None = None) -> None:
        size = f"{member.hparams['batch_size']:.0f}"
        cells = ["", "diverged", ""]
        if not member.diverged:
            cells = [
                number(member.valid_loss if decides == "valid" else member.train_loss),
                number(member.valid, metric),
                distance(member.valid, metric, reference),
            ]
        table.add_row(name, str(member.id), f"{member.hparams['lr']:.3g}", size, *cells, style=style)

    add("best so far", record.best, "green")
    ordered = sorted(record.members, key=rank)
    shown = ordered if len(ordered) <= TOP + BOTTOM else [*ordered[:TOP], *ordered[-BOTTOM:]]
    for place, member in enumerate(shown):
        name = "this round" if place == 0 else "worst" if member is ordered[-1] else ""
        if len(shown) < len(ordered) and place == TOP:
            table.add_row(f"{len(ordered) - len(shown)} more", style="dim")
        add(name, member, "red" if member.diverged else None)
    if reference:
        table.add_row(reference[0], "", "", "", "", number(reference[1], metric), style="cyan")
    return table


def distance(value: float, metric: str, reference: tuple[str, float] | None) -> str:
    """How far a value is from a reference: a difference where more is better, else a ratio."""
    if reference is None or not math.isfinite(value):
        return ""
    if higher_is_better(metric):
        unit = " dB" if "psnr" in metric else ""
        if unit and abs(value - reference[1]) < LEAST_DB:
            return EQUAL
        return f"{value - reference[1]:+.3g}{unit}"
    return f"x {value / reference[1]:.3g}" if reference[1] > 0 else ""


def best_reference(references: Mapping[str, Mapping[str, float]], metric: str) -> tuple[str, float] | None:
    """The reference with the best value of a metric."""
    known = {name: values[metric] for name, values in references.items() if metric in values}
    if not known:
        return None
    name = (max if higher_is_better(metric) else min)(known, key=known.__getitem__)
    return name, known[name]


def result_console() -> Console:
    """Standard output: as wide as the terminal; where there is none, plain text that nothing cuts."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH, no_color=True)


def print_table(console: Console, table: Table) -> None:
    """A table without the last columns where the terminal is too narrow for all, and without lines where there is no
    terminal."""
    if not console.is_terminal:
        table.box, table.pad_edge = None, False
    left_out: list[str] = []
    while len(table.columns) > 2 and table.__rich_measure__(console, console.options).maximum > console.width:
        left_out.insert(0, str(table.columns.pop().header))
    console.print(table)
    if left_out:
        console.print(f"not shown for want of width: {', '.join(left_out)} (report.html has all)", style="dim")


def show_result(result: Mapping, folder: str) -> None:
    """The final table, what it cost, and where the run lies."""
    console = result_console()
    for table in result_tables(result):
        print_table(console, table)
    budget, lecture = result["samples"], result["budget"]["lecture_max_samples"]
    best = result["best"]
    hparams = ", ".join(f"{name} {value:.3g}" for name, value in best["hyperparameters"].items())
    rest = phases(result.get("phases", {}))
    console.print(
        f"{escape(result['model']['name'])}: {result['parameters']:,} parameters; {samples(budget)} member-samples in "
        f"{result['train_seconds']:.0f} s training, {result['seconds']:.0f} s in all"
        f"{rest and f' ({rest})'}; {samples(result['member_samples_per_second'])}/s"
        + (f"; the lecture's budget is {samples(lecture)}" if lecture else ""),
        soft_wrap=True,
    )
    metric = next(iter(best["test"]))
    value, floor = best["test"][metric], result["references"].get("constant", {}).get(metric)
    if floor is not None and (value < floor if higher_is_better(metric) else value > floor):
        console.print(
            "[yellow]worse than the best constant: raise search.max_samples, or change the learning rate[/yellow]"
        )
    console.print(f"best member: {hparams}; stopped: {result['stopped']}", soft_wrap=True)
    if source := result["dataset"]["source"]:
        said = "; ".join(f"{key}: {value}" for key, value in source.items())
        console.print(f"data: {printable(said)}", soft_wrap=True, markup=False)
    for claim in result["claims"]:
        word = {True: "[green]holds[/green]", False: "[red]does not hold[/red]", None: "measured"}[claim["holds"]]
        console.print(f"claim {word}: {escape(claim['text'])} ({escape(claim_numbers(claim))})", soft_wrap=True)
    console.print(f"[bold]run[/bold] {escape(folder)} (report.html shows it)", soft_wrap=True)


def show_replay(recorded: Mapping, replayed: Mapping) -> None:
    """What the line came to in its search, and alone."""
    metric = next(iter(replayed["best"]["test"]))
    values = [
        [number(finite(mapping(found["best"].get(part)).get(metric)), metric) for part in ("valid", "test")]
        for found in (recorded, replayed)
    ]
    (valid, test), (valid_alone, test_alone) = values
    before, after = (finite(mapping(found["best"].get("valid")).get("loss")) for found in (recorded, replayed))
    off = after / before - 1 if before and after else 0.0
    side = "above" if off > 0 else "below"
    deviation = f"validation loss {100 * abs(off):.2g} % {side} the search's"
    deviation = "the same up to rounding" if abs(off) < EXACT else deviation
    seen = samples(finite(recorded.get("samples")) or 0)
    Console(highlight=False).print(
        f"replayed {samples(replayed['samples'])} of the search's {seen} member-samples: "
        f"valid {metric} {valid_alone} ({valid} in the search), test {test_alone} ({test}); {deviation}",
        soft_wrap=True,
    )
