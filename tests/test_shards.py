"""Parts of a population, the processes that carry them, and the race for a plan."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sigexp.layers.fft_conv import FFTConv2d
from sigexp.population import calibrate as calibration
from sigexp.population import compiling
from sigexp.population.calibrate import calibrate
from sigexp.population.feed import Feed
from sigexp.population.plan import Plan, Wanted
from sigexp.population.population import Population
from sigexp.population.shards import Shards
from sigexp.problem import Batch, Problem
from sigexp.signal.quality import mse


def problem(size: int | None = 60) -> Problem:
    noise = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Problem(
        kind="image",
        sample=lambda split, index: Batch(noise[index % 200], noise[index % 200].roll(1, 3)),
        sizes={"train": size, "valid": 10, "test": 10},
        loss=mse,
        metrics={"mse": mse},
    )


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 1, 3, padding=1))


def population(count: int, plan: Plan, make=net, loss=mse) -> Population:
    torch.manual_seed(0)
    return Population(
        [make() for _ in range(count)],
        loss=loss,
        metrics={"mse": mse},
        optimizer="adam",
        hparams={
            "lr": torch.logspace(-3, -2, count),
            "momentum": torch.full((count,), 0.9),
            "weight_decay": torch.zeros(count),
            "batch_size": torch.tensor(([4, 6, 8] * count)[:count]),
        },
        plan=plan,
    )


def feed(size: int | None = 60) -> Feed:
    return Feed(problem(size), seed=0, device=torch.device("cpu"))


def course(shards: Shards, examples: Feed) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """What training with a selection in between leads to: the state with validation losses, and the losses."""
    found = [shards.advance(examples, position, 20) for position in (0, 20, 40)]
    shards.copy(torch.tensor([4, 0, 0]))
    found.append(shards.advance(examples, 60, 20))
    valid = shards.evaluate(examples.take(0, 10), ["mse"])
    return {**shards.state(), "valid": valid["mse"]}, [torch.cat(part) for part in found]


@pytest.mark.parametrize("way", ["together", "one by one"])
@pytest.mark.parametrize("size", [60, None], ids=["fixed set", "stream"])
def test_the_number_of_processes_changes_no_result(way, size):
    states, losses = [], []
    for processes in (1, 2, 3):
        shards = Shards(population(5, Plan(way=way, slice=3, shards=3)), processes, seed=7)
        examples = feed(size)
        try:
            state, lost = course(shards, examples)
            states.append(state)
            losses.append(lost)
        finally:
            shards.close()
    for other, lost in zip(states[1:], losses[1:], strict=True):
        assert all(torch.equal(states[0][name], other[name]) for name in states[0])
        assert all(torch.equal(a, b) for a, b in zip(losses[0], lost, strict=True))


def test_parts_equal_the_whole():
    make = partial(FFTConv2d, 1, 1, 3, 1)
    whole, shards = population(3, Plan(), make), Shards(population(3, Plan(shards=2), make))
    for position in (0, 24):
        expected, got = (p.advance(feed(), position, 24) for p in (whole, shards))
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert torch.equal(shards.member(2).weight, whole.member(2).weight)
    shards.close()


def test_a_process_that_is_killed_is_named():
    shards = Shards(population(2, Plan(shards=2)), 2)
    try:
        os.kill(shards._crews[0].process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"training process ended with status -9.*trainer.processes=1"):
            shards.advance(feed(), 0, 20)
    finally:
        shards.close()


def test_an_error_in_a_process_arrives_here():
    shards = Shards(population(2, Plan(shards=2)), 2)
    try:
        with pytest.raises(RuntimeError, match="size"):
            shards.evaluate(Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 5, 5)))
    finally:
        shards.close()


def test_what_cannot_travel_to_a_process_is_refused_at_once():
    with pytest.raises((AttributeError, TypeError), match=r"local object|lambda|pickle"):
        Shards(population(2, Plan(shards=2), loss=lambda a, b: mse(a, b)), 2)


class MixesExamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x - x.mean(0, keepdim=True))


class DependsOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y if y.detach().sum().item() > 0 else 2 * y


def raced(make, cache=None, **wanted):
    settings = {"threads": 1, "samples": 10**6, "members": 4, **wanted}
    return calibrate(population(4, Plan(), make), feed(), Wanted(**settings), cache)


def test_a_race_chooses_what_it_measured_to_be_quickest(monkeypatch):
    make = lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 1))  # noqa: E731
    found = raced(make)
    assert str(found.plan) in found.rates
    monkeypatch.setattr(calibration.Race, "_time", lambda self, plan, rows, length: 5.0 + (plan == Plan()))
    assert raced(make).plan == Plan()


def test_a_slow_second_of_the_machine_does_not_decide_a_race(monkeypatch):
    """Computed together members are quickest, but not when they are first timed."""
    timed = []

    def time(self, plan, rows, length):
        timed.append(plan)
        return 5.0 if plan.way == "one by one" else 10.0 if timed.count(plan) > 1 else 2.0

    monkeypatch.setattr(calibration.Race, "_time", time)
    assert raced(lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 1))).plan.way == "together"
    assert Plan() in timed


def test_a_plan_is_known_again_with_the_same_kernels_alone(monkeypatch):
    def key(make):
        return calibration._key(population(2, Plan(), make), feed(), Wanted(), 4)

    recurrent, layers = (lambda: nn.Sequential(nn.LSTM(8, 2))), partial(nn.Conv2d, 1, 1, 3)
    before, real = (key(recurrent), key(layers)), compiling.kernel
    if real() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(compiling, "kernel", lambda part="layers": None if part == compiling.LSTM else real(part))
    assert key(recurrent) != before[0]
    assert key(layers) == before[1]


@pytest.mark.parametrize("make", [MixesExamples, DependsOnData])
def test_a_model_that_cannot_train_together_trains_one_by_one_and_says_so(make, caplog):
    with caplog.at_level("INFO", "sigexp"):
        assert raced(make).plan.way == "one by one"
    assert "members train one by one" in caplog.text


def test_linear_models_can_train_from_statistics():
    make = partial(nn.Conv2d, 1, 1, 3, padding=1)
    plan = raced(make, execution="moments").plan
    assert plan.way == "moments"
    examples, by_statistics, plain = feed(), population(4, plan, make), population(4, Plan(), make)
    for position in range(0, 240, 24):
        expected, got = (p.advance(examples, position, 24) for p in (plain, by_statistics))
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="linear in their parameters"):
        raced(net, execution="moments")


def test_a_memory_limit_makes_passes_smaller(caplog):
    with caplog.at_level("INFO", "sigexp"):
        found = raced(net, execution="together", memory_limit=4 * 40_000)
    assert found.plan.slice is not None
    assert found.plan.slice < 8
    assert "would not fit" in caplog.text


def test_a_plan_is_kept_and_damage_to_it_is_harmless(tmp_path):
    first, second = raced(net, tmp_path), raced(net, tmp_path)
    assert not first.cached
    assert second.cached
    assert second.plan == first.plan
    (file,) = tmp_path.glob("*.json")
    file.write_text("{", encoding="utf-8")
    assert not raced(net, tmp_path).cached
    file.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        assert raced(net, tmp_path, samples=5).plan.way in ("together", "one by one")
    finally:
        tmp_path.chmod(0o700)


def test_two_processes_are_used_where_they_are_quicker():
    assert raced(net, processes=2, threads=2).plan.shards == 2
    assert raced(net, processes=1, threads=2).plan.shards == 1
    assert raced(net, threads=2, samples=100).plan.processes == 1  # it would be over before they had started


PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
CHILD = """
import os, time
from sigexp import machine
machine.end_with_parent({})
print(os.getpid(), flush=True)
time.sleep(600)"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process ends when it looks at its pipe")
def test_a_process_that_is_bound_to_its_parent_ends_with_it():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, CHILD.format("os.getppid()")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        child = int(process.stdout.readline())
        process.kill()
    end = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.02)
    never_the_parent = subprocess.run([sys.executable, "-c", CHILD.format(-1)], env=environment, capture_output=True)
    assert (never_the_parent.returncode, never_the_parent.stdout) == (1, b"")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
