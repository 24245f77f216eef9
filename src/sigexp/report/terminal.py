"""What a person sees while a run goes on: a live line in a terminal, plain lines where output is piped."""

import logging
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sigexp.metrics import higher_is_better
from sigexp.report.tables import number, result_tables
from sigexp.report.verdicts import claim_numbers
from sigexp.search.rounds import RoundRecord

log = logging.getLogger("sigexp")


def samples(count: float) -> str:
    """A number of samples in three digits: 940, 12.3k, 1.20M."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"


class Terminal:
    """Progress of one run on standard error, its result on standard output."""

    def __init__(self, title: str, metric: str, best_reference: tuple[str, float] | None, budget: int) -> None:
        self.title = title
        self.metric, self.budget, self.began = metric, budget, time.perf_counter()
        self.console = Console(stderr=True, highlight=False)
        self.reference = ""
        if best_reference is not None:
            self.reference = f" ({best_reference[0]} {number(best_reference[1], metric)})"
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.done = 0
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.task = self.progress.add_task("round 1", total=budget, speed="")

    def __enter__(self) -> "Terminal":
        self.console.print(f"{self.title}, budget {samples(self.budget)} member-samples", soft_wrap=True)
        if self.progress:
            self.progress.start()
        self.began = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.progress:
            self.progress.stop()

    def step(self, total_samples: int) -> None:
        self.done = total_samples
        if self.progress:
            self.progress.update(self.task, completed=total_samples, speed=f"{samples(self.speed())}/s")

    def speed(self) -> float:
        return self.done / max(time.perf_counter() - self.began, 1e-9)

    def round(self, record: RoundRecord) -> None:
        best = number(record.best.valid, self.metric)
        diverged = sum(member.diverged for member in record.members)
        note = f", {diverged} diverged" if diverged else ""
        line = (
            f"round {record.round}: best valid {self.metric} {best}{self.reference}, "
            f"lr {record.best.hparams['lr']:.2g}, "
            f"{samples(record.total_samples)} of {samples(self.budget)} samples, {samples(self.speed())}/s{note}"
        )
        log.info(line)
        if self.progress:
            text = f"round {record.round + 1} · best valid {self.metric} [bold]{best}[/bold]{self.reference}"
            self.progress.update(self.task, description=text)
        else:
            left = (self.budget - record.total_samples) / max(self.speed(), 1e-9)
            self.console.print(f"{line}, {left:.1f} s left" if left > 0 else line, soft_wrap=True)


def best_reference(references: Mapping[str, Mapping[str, float]], metric: str) -> tuple[str, float] | None:
    """The reference with the best value of a metric."""
    known = {name: values[metric] for name, values in references.items() if metric in values}
    if not known:
        return None
    name = (max if higher_is_better(metric) else min)(known, key=known.__getitem__)
    return name, known[name]


def show_result(result: Mapping, folder: str) -> None:
    """The final table, what it cost, and where the run lies."""
    console = Console(highlight=False)
    for table in result_tables(result):
        console.print(table)
    budget, lecture = result["samples"], result["budget"]["lecture_max_samples"]
    best = result["best"]
    hparams = ", ".join(f"{name} {value:.3g}" for name, value in best["hyperparameters"].items())
    console.print(
        f"{result['model']['name']}: {result['parameters']:,} parameters; {samples(budget)} member-samples in "
        f"{result['train_seconds']:.0f} s training, {result['seconds']:.0f} s in all "
        f"({samples(result['member_samples_per_second'])}/s)"
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
    console.print(
        "data: " + "; ".join(f"{key}: {value}" for key, value in result["dataset"]["source"].items()), soft_wrap=True
    )
    for claim in result["claims"]:
        word = {True: "[green]holds[/green]", False: "[red]does not hold[/red]", None: "measured"}[claim["holds"]]
        console.print(f"claim {word}: {escape(claim['text'])} ({escape(claim_numbers(claim))})", soft_wrap=True)
    console.print(f"[bold]run[/bold] {folder} (report.html shows it)", soft_wrap=True)


def show_replay(recorded: Mapping, replayed: Mapping) -> None:
    """What the line came to in its search, and alone."""
    metric = next(iter(replayed["best"]["test"]))
    values = [
        [number(found["best"][part].get(metric), metric) for part in ("valid", "test")]
        for found in (recorded, replayed)
    ]
    (valid, test), (valid_alone, test_alone) = values
    Console(highlight=False).print(
        f"replayed {samples(replayed['samples'])} of the search's {samples(recorded['samples'])} member-samples: "
        f"valid {metric} {valid_alone} ({valid} in the search), test {test_alone} ({test})",
        soft_wrap=True,
    )
