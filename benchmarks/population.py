"""How fast does a population train, against its members one after the other?

    python -m benchmarks.population [MODEL ...] [--quick] [--members 8,20] [--output FILE]
    python -m benchmarks.population --time-to-quality [MODEL ...] [--cap SECONDS] [--output FILE]

First form: member-samples (P members x examples) per second on all cores, at the lecture's shapes and batch sizes.

plain: torch.optim.SGD on eager members one after the other, PyTorch as it comes, all cores in one process.
strict: the best of NCHW and channels_last, one process with all threads and a process for each of two halves of the
    members; glibc keeps the memory of freed tensors (`machine.tune_allocator`), and numbers too small to be normal
    are 0, both as in ours.
ours: a population as `search=automlp` trains it, with the plan that its calibration finds among ways that compute
    with the examples. statistics: the same trained from second-order statistics, for models that are linear; for a
    million member-samples on 10,000 examples, the time for their statistics included.

Each side runs in processes of its own, because allocator and threads belong to a process; that of plain is a new one
for every model, because glibc's default allocator depends on what was freed before. The sides take turns: while one
trains for a slice of time, the others wait for a message. A number is the median of the slices. The baselines' rates
do not depend on P, and are measured with 2 members. On all sides real examples are shuffled and gathered by index
inside the timing, and the update is inside it too; the baselines read the loss after every step.
The first minibatch's loss has to be the same on all sides. FLOPs are those of the direct computation, so a quicker
algorithm can have more than the peak, which is that of a float32 matrix product of 2048 x 2048 x 2048 on all cores.

--quick is a rough look, cold in places: two processes in one layout alone, and of plain the step after the first where
a step takes longer than the slice.

Second form: seconds of training until the best member's squared error on test data is at most a given level, for the
lecture's AutoMLP, plainly written, against `search=automlp` as shipped. Same data; drawing them and testing are not
counted; calibration and the start of processes are. The baseline goes on beyond the lecture's budget up to the cap.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from statistics import geometric_mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks import baselines
from sigexp import carrying, cli, config, evaluation, machine, training
from sigexp.bounds import linear_bounds
from sigexp.layers.lstm import LSTM2
from sigexp.models import demosaic, filters, recurrent, shapes, unet
from sigexp.population.calibrate import calibrate
from sigexp.population.feed import Feed
from sigexp.population.moments import Moments
from sigexp.population.plan import Plan, Wanted
from sigexp.population.population import Population
from sigexp.population.race import MOST_MOMENTS
from sigexp.population.shards import Shards
from sigexp.problem import Batch, Problem
from sigexp.search.records import RoundRecord
from sigexp.search.rounds import MINIBATCHES, SearchLoop
from sigexp.signal import quality
from sigexp.signal.quality import mse

ROOT = Path(__file__).parent.parent
COMMAND = """
from sigexp import machine
{tuned} and machine.tune_allocator()
import torch
torch.set_flush_denormal({tuned})
from benchmarks import population
population.serve({descriptor}, {threads})
"""  # the allocator is set before torch is loaded
CPU = torch.device("cpu")
EXAMPLES = 2000
LAYOUTS = ("NCHW", "channels_last")
PLANNED_SECONDS = 900  # a population is calibrated for a run that takes the sequential baseline so long


@dataclass(frozen=True)
class Case:
    """A model of the lecture, or of ours: (input shape, target shape) -> module."""

    dataset: str
    batch_size: int
    model: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]
    images: bool = True
    counted: bool = True  # in the means
    apart: bool = False  # one P at a time: populations of this size do not fit into memory side by side


CASES = {
    "gaussian-linear": Case("gaussian", 100, filters.linear),
    "gaussian-separable": Case("gaussian", 100, filters.separable),
    "gaussian-fc": Case("gaussian", 100, filters.fc, apart=True),
    "color-conv1x1": Case("color", 100, filters.conv1x1),
    "bayer-linear": Case("bayer", 20, partial(filters.linear, kernel_size=5)),
    "bayer-deep": Case("bayer", 200, partial(filters.deep, kernel_size=5)),
    "deblur-deep": Case("deblur", 200, partial(filters.deep, kernel_size=11)),
    "circle_square-vgg": Case("circle_square", 200, partial(shapes.vgg, outputs=10)),
    "boundary-conv_bn": Case("boundary", 200, filters.conv_bn),
    "median-separable_sigmoid": Case("median", 100, filters.separable_sigmoid),
    "spikes-seqlstm": Case("spikes", 200, recurrent.seqlstm, images=False),
    "median-lstm2": Case("median", 200, lambda inputs, targets: LSTM2(1, 8, 1)),
    "fill-unet": Case("fill", 16, unet.unet, counted=False),
    "bayer-polyphase": Case("bayer", 200, demosaic.polyphase, counted=False),
    "circle_square-fcn": Case("circle_square", 32, shapes.fcn, counted=False),
}

# Test MSE to be reached; None: 1.05 x that of the least-squares filter of the training data.
LEVELS = {
    "gaussian-linear": None,
    "gaussian-separable": None,
    "color-conv1x1": None,
    "bayer-linear": None,
    "deblur-linear": None,
    "boundary-conv_bn": 4e-3,  # on clean masks; nets that learn from noisy ones end at 1.8e-3 to 3.3e-3, by seed
    "spikes-seqlstm": 5e-3,
}


class Ours:
    """A population as the search trains it. samples: member-samples of the run that it is calibrated for."""

    def __init__(self, case: Case, problem: Problem, members: Sequence[nn.Module], samples: int) -> None:
        machine.configure_torch(None, deterministic=True)
        self.count, self.batch_size, self.position = len(members), case.batch_size, 0
        self.feed = Feed(problem, seed=0, device=CPU)
        settings = {**sgd_settings(problem), "batch_size": case.batch_size}
        hparams = {name: torch.full((self.count,), value, dtype=torch.float64) for name, value in settings.items()}
        population = Population(members, loss=problem.loss, metrics={}, optimizer="sgd", hparams=hparams)
        wanted = Wanted(threads=machine.cores(), samples=samples, members=self.count)
        population.moments = None  # in a column of its own
        population.use(calibrate(population, self.feed, wanted, cache=None).plan)
        self.plan = str(population.plan)
        self.population, _ = carrying.carry(population, {"processes": "auto"}, 0, True)

    def warm_up(self) -> tuple[float, float]:
        """The first minibatch's loss of the first member, and member-samples per second of the next."""
        self.minibatches = 1
        loss = float(self._advance()[0][0])
        began = time.perf_counter()
        rate = self.step() / (time.perf_counter() - began)
        if self.count * self.batch_size / rate < 0.1:
            self.minibatches = MINIBATCHES  # at a time, as in the search
        return loss, rate

    def step(self) -> int:
        """Train all members: member-samples."""
        self._advance()
        return self.count * self.batch_size * self.minibatches

    def _advance(self) -> list[torch.Tensor]:
        examples = self.batch_size * self.minibatches
        losses = self.population.advance(self.feed, self.position, examples)
        self.position += examples
        return losses

    def close(self) -> None:
        if hasattr(self.population, "close"):
            self.population.close()


def sgd_settings(problem: Problem) -> dict[str, float]:
    return {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0 if problem.classes else 1e-5}


class Server:
    """What a child is asked to do: `load` and `run` sides by name, or one search to a level of quality."""

    def __init__(self) -> None:
        self.sides: dict[str, baselines.Sequential | Ours] = {}

    def load(
        self, side: str, name: str, path: Path, members: int, first: int = 0, samples: int = 0
    ) -> tuple[float, float]:
        """Make and warm up a side: its first loss and a rough rate. samples: of ours, else a baseline is made."""
        case, problem, models = CASES[name], mapped(path), []
        for member in range(first, first + members):
            torch.manual_seed(member)
            models.append(case.model(*problem.shapes()))
        if samples:
            ours = Ours(case, problem, models, samples)
            self.sides[side] = ours
            return ours.warm_up()
        settings, data = sgd_settings(problem), Batch(*torch.load(path, mmap=True)[:2])
        baseline = baselines.Sequential(models, problem.loss, data, case.batch_size, settings, side == "channels_last")
        self.sides[side] = baseline
        first_of_ours = Feed(problem, seed=0, device=CPU).indices(0, case.batch_size)
        return baseline.warm_up(Batch(*(part[first_of_ours] for part in data)))

    def statistics(self, side: str) -> float | None:
        """Member-samples per second from second-order statistics, of the members that a side of ours trains."""
        ours = self.sides[side]
        assert isinstance(ours, Ours)
        moments = Moments.of(ours.population.template, mse)
        data = ours.feed.data()
        if moments is None or moments.values > MOST_MOMENTS * sum(part[0].numel() for part in data):
            return None
        whole = ours.population.whole if isinstance(ours.population, Shards) else ours.population
        trial = whole.twin(Plan(way="moments", threads=machine.cores()))
        trial.load_state(whole.state())
        trial.moments, began = moments, time.perf_counter()
        trial.table = moments.compute(data)
        seconds = (time.perf_counter() - began) * 10_000 / len(data.inputs)
        trial.advance(ours.feed, 0, MINIBATCHES * ours.batch_size)
        position, began = 0, time.perf_counter()
        while time.perf_counter() - began < 0.3:
            trial.advance(ours.feed, position, MINIBATCHES * ours.batch_size)
            position += MINIBATCHES * ours.batch_size
        rate = ours.count * position / (time.perf_counter() - began)
        return 1e6 / (seconds + 1e6 / rate)

    def run(self, side: str, seconds: float) -> float:
        """Member-samples per second over whole steps that take `seconds` or a little more."""
        samples, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            samples += self.sides[side].step()
        return samples / elapsed

    def draw(self, dataset: str, path: Path) -> None:
        draw(dataset, path)

    def plan(self, side: str) -> str:
        return self.sides[side].plan

    def flops(self, side: str) -> float:
        baseline = self.sides[side]
        assert isinstance(baseline, baselines.Sequential)
        return baseline.flops()

    def clear(self) -> None:
        for side in self.sides.values():
            side.close()
        self.sides = {}

    def search(self, name: str, lecture: bool, level: float, cap: float) -> "Reached":
        return lecture_search(name, level, cap) if lecture else our_search(name, level, cap)


def draw(dataset: str, path: Path) -> None:
    """Few training examples of a dataset, into a file."""
    settings, _ = cli.compose([f"dataset={dataset}", f"dataset.size={EXAMPLES}"])
    problem: Problem = config.build(settings["dataset"], what="dataset")
    torch.save((*problem.examples("train"), problem.classes), path)


def mapped(path: Path) -> Problem:
    """The problem of these examples, as they lie in the file.

    Had a process drawn them itself, large arrays that it freed would have changed glibc's allocator for the rest of
    its life: once freed, a size of up to 32 MB is no longer handed back to the kernel.
    """
    inputs, targets, classes = torch.load(path, mmap=True)
    return Problem(
        kind="class" if classes else "image",
        sample=lambda split, index: Batch(inputs[index], targets[index]),
        sizes={"train": len(inputs)},
        loss=quality.cross_entropy if classes else quality.mse,
        metrics={},
        classes=classes,
    )


def serve(descriptor: int, threads: int) -> None:
    """The main function of a child: answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    torch.set_num_threads(threads)
    connection, server = Connection(descriptor), Server()
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return server.clear()
        try:
            answer = ("answer", getattr(server, method)(*arguments))
        except Exception:
            answer = ("error", traceback.format_exc())
        connection.send(answer)


class Child:
    """A process with an allocator and a number of threads of its own."""

    def __init__(self, *, tuned: bool, threads: int) -> None:
        self.connection, theirs = Pipe()
        command = COMMAND.format(tuned=tuned, descriptor=theirs.fileno(), threads=threads)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "OPENBLAS_NUM_THREADS": "1",  # NumPy's, while examples are drawn, as the command line has it; torch has MKL
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", command], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
        )
        theirs.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def ask(self, method: str, *arguments: Any) -> None:
        self.connection.send((method, arguments))

    def answer(self) -> Any:
        kind, content = self.connection.recv()
        if kind == "error":
            raise RuntimeError(f"in a child process:\n{content}")
        return content

    def call(self, method: str, *arguments: Any) -> Any:
        self.ask(method, *arguments)
        return self.answer()


@dataclass(frozen=True)
class Children:
    plain: Child
    threads: Child
    halves: tuple[Child, Child]
    ours: Child

    def all(self) -> list[Child]:
        return [self.plain, self.threads, *self.halves, self.ours]

    def sides(
        self, layouts: Sequence[str], apart: Sequence[str], members: Sequence[int]
    ) -> dict[str, tuple[Sequence[Child], str]]:
        """Name of a column -> who computes it, and what it is called there. apart: layouts of the two processes."""
        return {
            "plain": ([self.plain], "NCHW"),
            **{f"2 threads, {layout}": ([self.threads], layout) for layout in layouts},
            **{f"2 processes, {layout}": (self.halves, layout) for layout in apart},
            **{f"ours {count}": ([self.ours], str(count)) for count in members},
        }


@dataclass(frozen=True)
class Effort:
    """budget: seconds for all cases. longest: of a slice. planned: see PLANNED_SECONDS."""

    budget: float
    rounds: int
    longest: float
    planned: float


@dataclass(frozen=True)
class Measured:
    rates: Mapping[str, float]  # member-samples/s of every side
    plans: Mapping[int, str]
    statistics: Mapping[int, float | None]
    flops: float  # of one member-sample


def measure(
    children: Children, name: str, path: Path, members: Sequence[int], effort: Effort, until: float
) -> Measured:
    """One model on all sides, in turn, so that it is done at about the time `until`."""
    layouts = LAYOUTS if CASES[name].images else LAYOUTS[:1]
    rough = load_baselines(children, name, path, layouts)
    quick = effort.rounds == 1  # two processes then have the layout alone that is nearly always quicker
    apart = layouts[-1:] if quick else layouts
    losses = [loss for loss, _ in (*rough.values(), *load_halves(children, name, path, apart))]
    samples = int(effort.planned * rough[layouts[0]][1])
    for count in members:
        losses.append(children.ours.call("load", str(count), name, path, count, 0, samples)[0])
    if not all(math.isclose(loss, losses[0], rel_tol=1e-2) for loss in losses):
        raise RuntimeError(f"{name}: first losses {losses} differ; the sides do not train the same")
    sides = children.sides(layouts, apart, members)
    share = (until - time.perf_counter()) / (effort.rounds * len(sides))
    rates: dict[str, list[float]] = {side: [] for side in sides}
    if quick and CASES[name].batch_size / rough["plain"][1] > effort.longest:  # one step was timed already
        rates["plain"].append(rough["plain"][1])
        del sides["plain"]
    for _ in range(effort.rounds):
        for side, (processes, key) in sides.items():
            for process in processes:
                process.ask("run", key, min(effort.longest, max(0.1, share)))
            rates[side].append(sum(process.answer() for process in processes))
    plans = {count: children.ours.call("plan", str(count)) for count in members}
    statistics = {count: children.ours.call("statistics", str(count)) for count in members}
    flops = children.plain.call("flops", "NCHW")
    for child in children.all():
        child.call("clear")
    return Measured({side: median(values) for side, values in rates.items()}, plans, statistics, flops)


def load_baselines(children: Children, name: str, path: Path, layouts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """First loss and rough rate of plain, and by layout of one process with all threads."""
    found = {"plain": children.plain.call("load", "NCHW", name, path, 1)}
    return found | {layout: children.threads.call("load", layout, name, path, 1) for layout in layouts}


def load_halves(children: Children, name: str, path: Path, layouts: Sequence[str]) -> list[tuple[float, float]]:
    """First loss and rough rate of the process that has member 0, of the two."""
    found = []
    for layout in layouts:
        for number, child in enumerate(children.halves):
            child.ask("load", layout, name, path, 1, number)
        answers = [child.answer() for child in children.halves]
        found.append(answers[0])
    return found


def peak_flops() -> float:
    """Floating-point operations per second of a large float32 matrix product on all cores."""
    torch.set_num_threads(machine.cores())
    a, b = torch.randn(2, 2048, 2048)
    least = math.inf
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, b)
        least = min(least, time.perf_counter() - began)
    return 2 * 2048**3 / least


HEAD = "| model | P | plain | strict | how | ours | ours / plain | ours / strict | share of peak | statistics | plan |"


@dataclass(frozen=True)
class Row:
    name: str
    members: int
    measured: Measured

    @property
    def ours(self) -> float:
        return self.measured.rates[f"ours {self.members}"]

    @property
    def how(self) -> str:
        """The quickest of the strict baselines."""
        rates = {side: rate for side, rate in self.measured.rates.items() if side.startswith("2 ")}
        return max(rates, key=lambda side: rates[side])

    @property
    def ratios(self) -> tuple[float, float]:
        return self.ours / self.measured.rates["plain"], self.ours / self.measured.rates[self.how]

    def line(self, peak: float) -> str:
        rates, plan = self.measured.rates, self.measured.plans[self.members]
        share = self.ours * self.measured.flops / peak
        cells = (
            self.name, self.members, f"{rates['plain']:,.0f}", f"{rates[self.how]:,.0f}", self.how, f"{self.ours:,.0f}",
            *(f"{ratio:.2f}" for ratio in self.ratios), f"{share:.0%}",
            f"{statistics:,.0f}" if (statistics := self.measured.statistics[self.members]) else "-", plan,
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def summary(rows: Sequence[Row], members: Sequence[int]) -> list[str]:
    """Geometric means of the counted models and the least ratio of all, for each P and together."""
    lines = []
    for label, chosen in [(f"P = {count}", [count]) for count in members] + [("all", list(members))]:
        here = [row for row in rows if row.members in chosen]
        counted = [row for row in here if CASES[row.name].counted]
        means = [geometric_mean(row.ratios[i] for row in counted) for i in (0, 1)] if counted else [math.nan] * 2
        least = [min(here, key=lambda row: row.ratios[i]) for i in (0, 1)]
        lines.append(
            f"{label}: geometric mean of {len(counted)} ({len({row.name for row in counted})} models) "
            f"{means[0]:.2f} x plain, {means[1]:.2f} x strict; "
            f"least {least[0].ratios[0]:.2f} ({least[0].name}) and {least[1].ratios[1]:.2f} ({least[1].name})."
        )
    return lines


def speed(names: Sequence[str], members: Sequence[int], effort: Effort, say: Callable[[str], None]) -> None:
    deadline = time.perf_counter() + effort.budget
    peak, cores = peak_flops(), machine.cores()
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sigexp-")))
        threads, *halves = (stack.enter_context(Child(tuned=True, threads=n)) for n in (cores, 1, 1))
        # A tuned process keeps what it has freed, so ours begins anew with each model, unless starting takes too long.
        kept = stack.enter_context(Child(tuned=True, threads=cores)) if effort.rounds == 1 else None
        say(f"{HEAD}\n{'|---' * (HEAD.count('|') - 1)}|")
        for number, name in enumerate(names):
            path = folder / CASES[name].dataset
            groups = [[count] for count in members] if CASES[name].apart else [members]
            for i, group in enumerate(groups):
                now = time.perf_counter()
                until = now + (deadline - now) / ((len(names) - number) * len(groups) - i)
                with ExitStack() as own:
                    plain = own.enter_context(Child(tuned=False, threads=cores))
                    ours = kept or own.enter_context(Child(tuned=True, threads=cores))
                    if not path.exists():  # while those start
                        threads.call("draw", CASES[name].dataset, path)
                    children = Children(plain, threads, (halves[0], halves[1]), ours)
                    measured = measure(children, name, path, group, effort, until)
                for count in group:
                    rows.append(Row(name, count, measured))
                    say(rows[-1].line(peak))
    say("")
    for line in summary(rows, members):
        say(line)
    say(
        f"\n{footer()}; member-samples/s, median of {effort.rounds} slices of 0.1 to {effort.longest:g} s or one step; "
        f"{EXAMPLES:,} examples, {cores} threads; peak {peak / 1e9:.0f} GFLOP/s."
    )


def footer() -> str:
    return f"{date.today()}, {machine.describe_device('cpu')}, torch {torch.__version__}"


@dataclass(frozen=True)
class Reached:
    """How a search ended: seconds of training, the best member's last test MSE, whether that is the level."""

    seconds: float
    mse: float
    there: bool


class Ended(Exception):
    """The level is reached, or the time is over."""


class Watch:
    """Counts the seconds of training, tests outside of them, and ends the search by `Ended`."""

    def __init__(self, problem: Problem, level: float, cap: float) -> None:
        self.problem = replace(problem, metrics={"mse": problem.metrics["mse"]})
        self.level, self.cap, self.mse = level, cap, math.inf
        self.counted, self.began = 0.0, time.perf_counter()

    def seconds(self) -> float:
        return self.counted + time.perf_counter() - self.began

    def tick(self, *_: object) -> None:
        if self.seconds() > self.cap:
            raise Ended

    def judge(self, best: Callable[[], nn.Module]) -> None:
        self.counted = self.seconds()
        model = best()
        training = model.training
        self.mse = evaluation.evaluate({"": model.eval()}, self.problem, "test")[""]["mse"]
        model.train(training)
        self.began = time.perf_counter()
        if self.mse <= self.level:
            raise Ended

    def reached(self) -> Reached:
        return Reached(self.seconds(), self.mse, self.mse <= self.level)


def ready_for(name: str, *overrides: str) -> tuple[dict[str, Any], training.Ready]:
    """The config of an experiment and what its run needs. name: EXPERIMENT-MODEL."""
    dataset, _, model = name.partition("-")
    settings, names = cli.compose([f"experiment={dataset}", f"model={model}", "device=cpu", *overrides])
    return settings, training.prepare(settings, names)


def lecture_search(name: str, level: float, cap: float) -> Reached:
    settings, ready = ready_for(name, "search=lecture")
    data = ready.problem.examples("train")
    watch = Watch(ready.problem, level, cap)

    def on_round(best: nn.Module) -> None:
        watch.judge(lambda: best)

    with suppress(Ended):
        baselines.automlp(ready.members, ready.problem.loss, data, settings, on_round=on_round, on_step=watch.tick)
    return watch.reached()


def our_search(name: str, level: float, cap: float) -> Reached:
    """`training.train` without its records."""
    settings, ready = ready_for(name)
    problem, trainer = ready.problem, settings["trainer"]
    machine.configure_torch(trainer["threads"], trainer["deterministic"])
    feed = Feed(problem, seed=settings["dataset"]["seed"], device=CPU, shuffle=trainer["shuffle"])
    feed.data()
    valid = min(problem.sizes["valid"] or 0, ready.settings.valid_samples)
    problem.examples("valid", 0, valid)  # kept, for when the search asks for them
    watch = Watch(problem, level, cap)

    def on_round(done: RoundRecord, population: Any) -> None:
        ids = [member.id for member in done.members]
        if done.best.id in ids:  # else it is one that was tested before
            watch.judge(lambda: population.member(ids.index(done.best.id)))

    population, hparams = training.populate(ready.members, problem, trainer, CPU)
    population.use(calibrate(population, feed, carrying.wanted(settings), cache=None).plan)
    carried, _ = carrying.carry(population, trainer, settings["seed"], True)
    loop = SearchLoop(
        ready.settings, carried, feed, problem, hparams=hparams, seed=settings["seed"], lr_schedule=trainer["schedule"],
        on_round=on_round, on_progress=watch.tick,
    )  # fmt: skip
    with suppress(Ended):
        loop.run()
    reached = watch.reached()
    if hasattr(carried, "close"):
        carried.close()
    return reached


def level_of(name: str) -> float:
    """The test MSE to be reached."""
    fixed = LEVELS[name]
    if fixed is not None:
        return fixed
    settings, ready = ready_for(name.replace("separable", "linear"))
    problem = replace(ready.problem, metrics={"mse": ready.problem.metrics["mse"]})
    feed = Feed(problem, seed=0, device=CPU)
    best = linear_bounds(ready.members[0], problem, feed, settings["footprint"])["least_squares_train"].predict
    assert best is not None
    return 1.05 * evaluation.evaluate({"": best}, problem, "test")[""]["mse"]


def time_to_quality(names: Sequence[str], cap: float, say: Callable[[str], None]) -> None:
    say("| model | test MSE to reach | the lecture's AutoMLP, s (test MSE then) | ours, s | ratio |")
    say("|---|---|---|---|---|")
    ratios: list[float] = []
    missed = capped = 0
    for name in names:
        level = level_of(name)
        results = []
        for lecture in (True, False):
            with Child(tuned=not lecture, threads=machine.cores()) as child:
                results.append(child.call("search", name, lecture, level, cap))
        baseline, ours = results
        ratio = f"{'' if baseline.there else '> '}{baseline.seconds / ours.seconds:.1f}" if ours.there else "-"
        if ours.there:
            ratios.append(baseline.seconds / ours.seconds)
            capped += not baseline.there
        missed += not ours.there
        shown = f"{describe(baseline)} | {describe(ours)}"
        say(f"| {name} | {level:.3e} | {shown} | {ratio} |")
    mean = f"{'> ' if capped else ''}{geometric_mean(ratios):.1f}" if ratios else "-"
    say(
        f"\nGeometric mean of {len(ratios)}: {mean}; {capped} with a lower bound because the baseline was stopped "
        f"at {cap:g} s; {missed} not reached by ours.\n\n{footer()}; {machine.cores()} threads."
    )


def describe(reached: Reached) -> str:
    if reached.there:
        return f"{reached.seconds:.2f}"
    return f"> {reached.seconds:.0f} ({f'{reached.mse:.3e}' if math.isfinite(reached.mse) else 'in the first round'})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="by default all")
    parser.add_argument("--quick", action="store_true", help="8 members, one short slice: a rough look in 3 minutes")
    parser.add_argument("--members", help="sizes P of the population, by default 8,20")
    parser.add_argument("--time-to-quality", action="store_true", help="seconds to a test error instead")
    parser.add_argument("--cap", type=float, default=150.0, help="seconds a search may take for --time-to-quality")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table to a file too")
    chosen = parser.parse_args()
    known = LEVELS if chosen.time_to_quality else CASES
    if unknown := sorted(set(chosen.names) - set(known)):
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(known)}")
    chosen.names = chosen.names or list(known)
    chosen.members = [int(count) for count in (chosen.members or ("8" if chosen.quick else "8,20")).split(",")]
    return chosen


def main() -> None:
    chosen = arguments()
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    if chosen.time_to_quality:
        time_to_quality(chosen.names, chosen.cap, say)
    else:
        effort = Effort(100, 1, 0.4, 20) if chosen.quick else Effort(300, 3, 1.5, PLANNED_SECONDS)
        speed(chosen.names, chosen.members, effort, say)
    if chosen.output:
        chosen.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
