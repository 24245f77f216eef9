"""TensorBoard over many runs, and what writing for it costs.

    python -m benchmarks.events [--runs 200] [--rounds 50] [--real gaussian/linear ...] [-o FILE]

Opens: synthetic runs are written through the writer of real runs, TensorBoard is started on them, and asked over HTTP
until it lists all of them and gives the last value of a scalar of each. Cost: real runs with the time in every method
of `Board`, drawing and writing together, over the time of the run.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sigexp import cli, experiment
from sigexp.names import Names
from sigexp.problem import Problem, blockwise, constant, identity
from sigexp.report.board import Board
from sigexp.search.records import MemberRecord, RoundRecord
from sigexp.showing import free_port
from sigexp.signal.quality import mse, psnr

REAL = ("gaussian/linear", "color/nin", "iir/linear_recurrence")
TAG = "learning/synthetic/mse/best"
MEMBERS = 8


def problem() -> Problem:
    def draw(rng: np.random.Generator, split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.random((n, 1, 32, 32), dtype=np.float32)
        return images, np.cumsum(images, 3) / 32

    sample = blockwise(draw, seed=0)
    return Problem(
        kind="image",
        sample=sample,
        sizes={"train": 500, "valid": 250, "test": 20},
        loss=mse,
        metrics={"mse": mse, "psnr": psnr},
        references={"identity": identity(), "constant": constant(sample, 500)},
        source={"signals": "noise"},
    )


def record(number: int, rng: np.random.Generator, state: dict[str, torch.Tensor]) -> RoundRecord:
    losses = np.sort(rng.lognormal(-0.05 * number, 0.3, MEMBERS)).tolist()
    hparams = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 50}
    members = [
        MemberRecord(number, number * MEMBERS + i, None, hparams, 1000, loss, loss, loss, False)
        for i, loss in enumerate(losses)
    ]
    return RoundRecord(number, members, 1000 * MEMBERS * (number + 1), 8000, 1.0, members[0], True, state)


def synthetic(folder: Path, seed: int, rounds: int, given: Problem, config: dict[str, Any]) -> None:
    """One run of so many rounds through the real board."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Conv2d(1, 1, 9, padding=4))
    state = {f"params/{name}": value[None].detach() for name, value in model.named_parameters()}
    names = Names("synthetic", "synthetic", "linear", "automlp")
    board = Board(folder, given, names, model, torch.device("cpu"), 1000 * MEMBERS * rounds)
    board.begin({**config, "seed": seed})
    board.references({"identity": {"mse": 0.3}, "constant": {"mse": 0.1}})
    for number in range(rounds):
        last = record(number, rng, state)
        board.round(last)
    board.result(model, {}, None)
    test = {"mse": last.best.valid, "psnr": 30.0}
    result: dict[str, Any] = {"experiment": "synthetic", "model": {"name": "linear"}, "parameters": 82}
    result["samples"] = last.total_samples
    board.end(
        {**result, "seconds": 1.0, "best": {"test": test}, "references": {"constant": {"mse": 0.1}}, "claims": []}
    )
    board.close()


def ask(address: str, form: dict[str, Any] | None = None) -> Any:
    """The JSON that an address gives; None while nobody answers."""
    data = urllib.parse.urlencode(form, doseq=True).encode() if form else None
    try:
        with urllib.request.urlopen(address, data, timeout=30) as answer:
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError, json.JSONDecodeError):
        return None


def opening(folder: Path, runs: int, last_step: int) -> dict[str, float]:
    """Seconds from the start of TensorBoard until it answers, lists every run, and has the last scalar of each."""
    port, times = free_port(16006), dict[str, float]()
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "sigexp", "board", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    where = f"http://127.0.0.1:{port}/data/plugin/scalars"
    try:
        while "every scalar loaded" not in times and time.perf_counter() - began < 300:
            tags = ask(f"{where}/tags")
            if tags is None:
                time.sleep(0.05)
                continue
            times.setdefault("answers", time.perf_counter() - began)
            if len(tags) == runs:
                times.setdefault("all runs listed", time.perf_counter() - began)
                found = ask(f"{where}/scalars_multirun", {"tag": TAG, "runs": list(tags)}) or {}
                if len(found) == runs and all(points[-1][1] == last_step for points in found.values()):
                    times["every scalar loaded"] = time.perf_counter() - began
            time.sleep(0.05)
    finally:
        server.terminate()
        server.wait()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    times["processor time of all that"] = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    return times


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Processor seconds of this process in every method of Board, by name; one that another one calls counts with
    that. Processor time, because other work on the machine makes both parts of a share wait."""
    spent: dict[str, float] = {}
    inside: list[str] = []
    names = ["__init__", *(n for n, f in vars(Board).items() if callable(f) and not n.startswith("_"))]
    kept = {name: vars(Board)[name] for name in names}

    def clocked(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            inside.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                inside.pop()
                if not inside:
                    spent[name] = spent.get(name, 0.0) + time.process_time() - began

        return call

    for name in names:
        setattr(Board, name, clocked(name, kept[name]))
    try:
        yield spent
    finally:
        for name in names:
            setattr(Board, name, kept[name])


def real(words: list[str], outputs: Path) -> tuple[float, dict[str, float], int, int]:
    """A real run: its processor seconds, those of Board's methods, its rounds, the bytes of its events."""
    config, names = cli.compose([*words, f"outputs={outputs}"])
    with timed() as spent:
        began = time.process_time()
        done = experiment.run(config, names, words)
        seconds = time.process_time() - began
    size = sum(path.stat().st_size for path in done.folder.glob("events.out.tfevents*"))
    return seconds, spent, done.result["rounds"], size


def importing() -> float:
    """Seconds that the event writer adds to a start, torch and the rest being there."""
    code = (
        "import torch, numpy, time; t = time.perf_counter(); import sigexp.track.events; print(time.perf_counter() - t)"
    )
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--real", nargs="*", default=list(REAL), metavar="EXPERIMENT/MODEL")
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="of the real runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/events.md"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        lines = report(given, Path(place))
    given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def report(given: argparse.Namespace, place: Path) -> list[str]:
    config, _ = cli.compose(["experiment=gaussian"])
    began, many = time.perf_counter(), problem()
    for number in range(given.runs):
        synthetic(place / "many" / f"run-{number:03d}", number, given.rounds, many, config)
    wrote = time.perf_counter() - began
    size = sum(path.stat().st_size for path in (place / "many").rglob("events*"))
    times = opening(place / "many", given.runs, 1000 * MEMBERS * given.rounds)
    lines = [
        "# TensorBoard: time to open, cost of writing",
        "",
        f"`python -m benchmarks.events`, {date.today()}, {os.cpu_count()} cores, load average before the real runs "
        f"{os.getloadavg()[0]:.1f} (above 1: the machine was busy with other work).",
        "",
        f"{given.runs} runs of {given.rounds} rounds, {size / 1e6:.0f} MB, written in {wrote:.0f} s. Seconds from "
        "`sigexp board` until it",
        "",
        "| | s |",
        "|---|---:|",
        *(f"| {name} | {seconds:.1f} |" for name, seconds in times.items()),
        "",
        "Writing, pictures drawn and graph included. "
        f"The writer's import adds {importing():.2f} s to every start. "
        "Seconds are of processor time, in one process.",
        "",
        "| run | rounds | whole run, s | events, s | share | largest part | file, kB |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for name in given.real:
        chosen, _, model = name.partition("/")
        words = [f"experiment={chosen}", f"model={model}", "trainer.processes=1", *given.settings]
        seconds, spent, rounds, written = real(words, place / "real")
        total, most = sum(spent.values()), max(spent, key=spent.__getitem__)
        lines.append(
            f"| {name} | {rounds} | {seconds:.1f} | {total:.2f} | {100 * total / seconds:.1f} % "
            f"| {most} {spent[most]:.2f} s | {written / 1e3:.0f} |"
        )
    return lines


if __name__ == "__main__":
    main()
