"""Jobs of a sweep as one population: each comes to what it comes to alone, and leaves what it leaves alone."""

import faulthandler
import json
import math
import os
import signal
import threading
import time
import weakref
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from sigexp import experiment, fusing, machine, parting
from sigexp.cli import main
from sigexp.datasets.blobs import boundary
from sigexp.population.fused import Joint
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.state import Snapshot, take
from sigexp.population.unfinished import advanced, merge, split
from sigexp.problem import Batch
from sigexp.report import page
from sigexp.sharing import SHARED, remembering
from sigexp.signal.quality import mse
from sigexp.track import sweep
from sigexp.turns import Turn

SMALL = [
    "-m", "experiment=gaussian", "dataset.image_size=16", "footprint=5", "dataset.size=60", "dataset.test_size=6",
    "search.valid_samples=20", "search.round_samples=40", "trainer.batch_size=10", "trainer.threads=1",
]  # fmt: skip
FILES = {
    "cases.json", "checkpoints", "composed.yaml", "config.yaml", "examples.png", "kernels.png", "model.json",
    "model.safetensors", "report.html", "response.png", "result.json", "rounds.jsonl", "run.log",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_plans(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path / "cache"))


def runs(outputs):
    """What tells a run from the others -> its folder."""
    found = {}
    for folder in {path.parent for path in Path(outputs).rglob("composed.yaml")}:
        words = [line.strip("- \n'") for line in (folder / "composed.yaml").read_text().splitlines() if "=" in line]
        told = tuple(sorted(word for word in words if word not in SMALL and not word.startswith("outputs=")))
        assert told not in found, "a folder for each job"
        found[told] = folder
    return found


def lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def result(folder):
    return json.loads((folder / "result.json").read_text())


def close(a, b, rel=1e-4):
    return (a is None and b is None) or math.isclose(a, b, rel_tol=rel, abs_tol=1e-9)


def same(fused, alone):
    """That a run's record and result are those of the run alone, up to rounding."""
    one, other = lines(fused), lines(alone)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in ("round", "id", "parent", "hparams", "samples", "diverged", "total_samples"):
            assert a[name] == b[name]
        for name in ("train_loss", "valid_loss", "valid"):
            assert close(a[name], b[name]), (name, a, b)
    if not (alone / "result.json").is_file():
        return
    a, b = result(fused), result(alone)
    assert a["stopped"] == b["stopped"]
    assert a["best"]["id"] == b["best"]["id"]
    assert a["references"].keys() == b["references"].keys()
    for name, values in b["references"].items():
        assert all(close(a["references"][name][metric], value) for metric, value in values.items())
    assert all(close(a["best"]["test"][metric], value) for metric, value in b["best"]["test"].items())


@pytest.fixture
def plain(monkeypatch):
    """Without pictures and pages, which take the most time."""
    monkeypatch.setattr(experiment, "show", lambda *_: None)
    monkeypatch.setattr(page, "write", lambda *_: None)


SWEEPS = {
    "fixed": ["search=fixed", "search.max_samples=400", "seed=0,1", "trainer.optimizer.lr=0.1,0.3"],
    "batches": ["search=fixed", "search.max_samples=360", "trainer.batch_size=10,15"],
    "automlp": [
        "search.members=3", "search.survivors=2", "search.initial_samples=60", "search.max_samples=480", "seed=0,1",
    ],
    "finish": [
        "search.members=3", "search.survivors=1", "search.initial_samples=40", "search.max_samples=480",
        "search.round_samples=40", "search.finish=0.5", "seed=0,1",
    ],
    "patience": ["search=fixed", "search.max_samples=600", "search.patience=1", "trainer.optimizer.lr=1e-7,0.2"],
    "diverging": ["search=fixed", "search.max_samples=400", "trainer.optimizer.lr=100,0.2"],
    "model": ["model=separable", "search=fixed", "search.max_samples=400", "seed=0,1"],
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_a_job_comes_to_what_it_comes_to_alone(name, workdir, plain, capsys):
    words = [*SMALL, *SWEEPS[name]]
    code = main([*words, "outputs=fused"])
    said = capsys.readouterr().err
    assert code == main([*words, "outputs=alone", "hydra/launcher=basic"]) == (3 if name == "diverging" else 0)
    fused, alone = runs("fused"), runs("alone")
    assert f"{len(alone)} jobs at once" in said
    assert fused.keys() == alone.keys()
    for told, folder in fused.items():
        same(folder, alone[told])
        whole = (alone[told] / "result.json").is_file()
        if whole:
            assert result(folder)["fused"]["jobs"] == len(alone)
            assert result(alone[told])["fused"] is None
    if name == "diverging":
        assert sum((folder / "result.json").is_file() for folder in fused.values()) == 1


def test_every_job_has_a_folder_with_all_files(workdir):
    assert main([*SMALL, "search=fixed", "search.max_samples=80", "seed=0,1"]) == 0
    for folder in runs("outputs").values():
        assert {path.name for path in folder.iterdir() if not path.name.startswith("events")} == FILES
        assert len(list(folder.glob("events*"))) == 1
        log = (folder / "run.log").read_text()
        assert log.count(" INFO command: ") == 1
        assert log.count(" INFO done: ") == 1


@pytest.mark.parametrize("launcher", ["fused", "basic"])
@pytest.mark.parametrize("search", ["fixed", "automlp"])
def test_an_interrupted_sweep_goes_on(launcher, search, workdir, plain, monkeypatch, capsys):
    """In the middle of a round and of minibatches, whose sizes differ: fused again, or each job alone."""
    words = [*SMALL, *SWEEPS["batches" if search == "fixed" else "automlp"]]
    words += ["search.round_samples=100", "dataset.size=300", "trainer.execution=together"]  # a few minibatches a call
    real, calls = Joint.carry_out, []

    def carry_out(self, asked):
        calls.append(len(asked))
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, asked)

    monkeypatch.setattr(Joint, "carry_out", carry_out)
    assert main([*words, "outputs=fused"]) == 130
    assert [job.status for job in sweep.read(next(Path("fused/sweeps").iterdir()))] == ["interrupted"] * 2
    for folder in runs("fused").values():
        saved = json.loads(max(folder.glob("checkpoints/*.json")).read_text())["checkpoint"]
        assert 0 < saved["done"] < saved["round"]["samples"]
    assert "the same command again" in capsys.readouterr().err
    before = len(calls)
    assert main([*words, "outputs=fused", f"hydra/launcher={launcher}"]) == 0
    assert (len(calls) > before) == (launcher == "fused")
    assert all(count == 2 for count in calls)
    assert main([*words, "outputs=alone", "hydra/launcher=basic"]) == 0
    fused, alone = runs("fused"), runs("alone")
    assert fused.keys() == alone.keys()
    for told, folder in fused.items():
        same(folder, alone[told])


@pytest.mark.parametrize("plan", [Plan("together"), Plan("one by one"), Plan("together", padded=True)], ids=str)
def test_what_waits_of_members_is_cut_apart_and_put_together(plan):
    """Members that are moved to other populations in the middle of minibatches learn what they would have learned."""
    inputs = torch.randn(64, 1, 6)
    batch = Batch(inputs, inputs.flip(2))
    sizes = {"lr": [0.1, 0.05, 0.2], "momentum": [0.9, 0.0, 0.5], "weight_decay": [0.0] * 3, "batch_size": [8, 12, 20]}
    hparams = {name: torch.tensor(values) for name, values in sizes.items()}
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Unflatten(1, (1, 6))).double() for _ in range(3)]
    batch = Batch(*(part.double() for part in batch))
    whole = Population(modules, loss=mse, metrics={"mse": mse}, optimizer="adam", hparams=hparams, plan=plan)
    whole.step(Batch(*(part[:29] for part in batch)))
    snapshot = whole.snapshot()
    pieces = split(snapshot.unfinished[0], 3)
    assert [advanced(piece) for piece in pieces] == [29] * 3
    parts = []
    for rows in ([2, 0], [1]):
        part = whole.twin()
        waits = {**merge([pieces[i] for i in rows]), "random": torch.get_rng_state()}
        part.restore(Snapshot(take(snapshot.members, torch.tensor(rows)), [waits], [part.plan]))
        part.step(Batch(*(one[29:] for one in batch)))
        parts.append(part)
    whole.step(Batch(*(part[29:] for part in batch)))
    expected, (first, second) = whole.state(), (part.state() for part in parts)
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.stack([first[name][1], second[name][0], first[name][0]]), tensor)


@pytest.mark.parametrize("plan", [Plan("one by one"), Plan("together", padded=True)], ids=str)
def test_members_that_were_alone_go_on_together(plan):
    """What waits for each then begins elsewhere, because their batch sizes differ."""
    inputs = torch.randn(64, 1, 6, dtype=torch.float64)
    batch = Batch(inputs, inputs.flip(2))
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Unflatten(1, (1, 6))).double() for _ in range(3)]

    def of(chosen: list[int]) -> Population:
        sizes = {
            "lr": [0.1, 0.05, 0.2],
            "momentum": [0.9, 0.0, 0.5],
            "weight_decay": [0.0] * 3,
            "batch_size": [8, 12, 20],
        }
        hparams = {name: torch.tensor([values[p] for p in chosen]) for name, values in sizes.items()}
        members = [modules[p] for p in chosen]
        return Population(members, loss=mse, metrics={"mse": mse}, optimizer="adam", hparams=hparams, plan=plan)

    alone, waits = [of([p]) for p in range(3)], []
    for population in alone:
        population.step(Batch(*(part[:29] for part in batch)))
        waits += split(population.snapshot().unfinished[0], 1)
    members = {name: torch.cat([one.state()[name] for one in alone]) for name in alone[0].state()}
    together = of([0, 1, 2])
    together.restore(Snapshot(members, [{**merge(waits), "random": torch.get_rng_state()}], [plan]))
    for population in (together, *alone):
        population.step(Batch(*(part[29:] for part in batch)))
    for name, tensor in together.state().items():
        torch.testing.assert_close(tensor, torch.cat([one.state()[name] for one in alone]))


def test_what_cannot_be_one_population_runs_alone(workdir, plain, capsys, monkeypatch):
    """Other optimizers, other data, one of a kind; and models that draw random numbers while they train."""
    words = [*SMALL, "search=fixed", "search.max_samples=40"]
    assert main([*words, "trainer.optimizer.name=sgd,adam", "dataset.seed=0,1"]) == 0
    assert "as one population" not in capsys.readouterr().err
    assert len(runs("outputs")) == 4
    problem = SimpleNamespace(examples=lambda split, start, stop: Batch(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)))
    assert fusing.draws(nn.Sequential(nn.Dropout(0.5)), problem)
    assert not fusing.draws(nn.Sequential(nn.Conv1d(1, 1, 1)), problem)


FOUR = ["search=fixed", "search.max_samples=80", "seed=range(4)"]
on_linux = pytest.mark.skipif(not hasattr(os, "fork") or not os.path.exists("/proc"), reason="forks on Linux")


@pytest.fixture
def forks(monkeypatch):
    """Two cores, whatever the machine has; what becomes of a fork's work is for a test to say."""
    real, made = parting.fork, []
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda device: 2**40)

    def becoming(in_child=lambda: None):
        def fork(work, without=()):
            made.append(real(lambda number: (in_child(), work(number))[1], without))
            return made[-1]

        monkeypatch.setattr(parting, "fork", fork)
        return made

    return becoming


def gone(made):
    """That no process of these is left."""
    for one in made:
        with pytest.raises(ChildProcessError):
            os.waitpid(one.pid, 0)
    return True


@pytest.mark.parametrize("where", ["drawing", "its end"])
def test_a_job_that_takes_long_holds_up_nobody_who_gives_up(where):
    """The main thread is interrupted while the job's runs; it goes on alone, to where it would wait."""
    held, seen = threading.Event(), []

    def work():
        try:
            if where == "its end":
                turn.end(held.wait)
            held.wait()
            turn.meet()
        except KeyboardInterrupt:
            seen.append("given up")
            raise

    turn = Turn(work)
    if where == "its end":
        turn.take()

    def give_up(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            turn.take()
    finally:
        signal.signal(signal.SIGALRM, before)
    began = time.monotonic()
    turn.let_go()
    assert time.monotonic() - began < 5
    assert turn.thread.is_alive()
    held.set()
    turn.thread.join(5)
    assert not turn.thread.is_alive()
    assert seen == ["given up"]


@pytest.mark.parametrize("fails", ["first", "all"])
def test_the_first_end_that_comes_to_something_says_how_long_one_takes(fails):
    def ending(number):
        def rest():
            if fails == "all" or number == 0:
                raise OSError(28, "No space left on device")

        def work():
            with suppress(OSError):  # as `sweep_job.do` notes it
                turn.end(rest)

        turn = Turn(work)
        turn.take()
        return turn

    turns = [ending(number) for number in range(3)]
    ends = fusing.Ends(False, list)
    ends.come(turns)
    assert all(turn.over for turn in turns)
    assert [turn.complete for turn in turns] == [False, fails == "first", fails == "first"]
    assert (ends.longest is None) == (fails == "all")
    for turn in turns:
        turn.let_go()
        assert not turn.thread.is_alive()


def test_who_has_trained_waits_for_company_but_not_for_long(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(fusing.time, "perf_counter", lambda: now[0])
    ends = fusing.Ends(True, list)
    ends.step = 0.3
    assert ends.had_better_wait()
    now[0] += 0.65
    assert ends.had_better_wait()
    now[0] += 0.1
    assert not ends.had_better_wait(), "the next step would take too long"
    ends.come([])
    ends.step = fusing.LINGER_S + 1
    assert not ends.had_better_wait()
    alone = fusing.Ends(False, list)
    alone.step = 0.0
    assert not alone.had_better_wait(), "there are no other processes to fill"


@on_linux
def test_runs_end_side_by_side(workdir, plain, forks):
    made = forks()
    assert main([*SMALL, *FOUR]) == 0
    assert len(made) == 2, "one a core; the first run ends in the sweep's process, for all of them"
    assert all(one.at >= 0 for one in made)
    assert gone(made)
    jobs = sweep.read(next(Path("outputs/sweeps").iterdir()))
    assert [job.status for job in jobs] == ["finished"] * 4
    assert all(job.seconds > 0 for job in jobs)
    assert not list(Path("outputs").rglob(".*.lock"))
    for folder in runs("outputs").values():
        assert result(folder)["best"]["test"]
        log = (folder / "run.log").read_text()
        assert log.count(" INFO done: ") == 1
        assert "WARNING" not in log
        assert "ERROR" not in log


@on_linux
def test_a_fork_does_without_the_statistics_alone():
    """It cannot look at them, has what lies beside them, and this process keeps both."""
    other, values = torch.ones(5), torch.ones(1_000_000)

    def look(of, without):
        def work(number):
            faulthandler.disable()
            return float(of.sum())

        return [answer for _, answer in parting.side_by_side(work, 1, 1, 9.0, without)]

    assert look(other, [values]) == [parting.Done(5.0)]
    assert look(values, []) == [parting.Done(1e6)]
    lost = [parting.Failed("its process ended without a word")]
    assert look(values, [values[:3]]) == lost, "a part of a tensor stands for all of its memory"
    assert look(values, []) == [parting.Done(1e6)], "the next one has it"
    assert look(other, [other]) == [parting.Done(5.0)], "pages are left out whole or not at all"
    assert float(values.sum()) == 1_000_000


@on_linux
def test_forks_do_what_they_are_told():
    """Each number once, by as many processes as there may be; a failure is that number's alone, a lost process leaves
    the others the rest, and one that takes too long is lost."""

    def work(number):
        time.sleep(0.01)
        if number == 3:
            raise ValueError("no three")
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 7:
            time.sleep(60)
        return number, os.getpid()

    found = dict(parting.side_by_side(work, 20, 3, 2.0))
    assert sorted(found) == list(range(20))
    assert found.pop(3) == parting.Failed("ValueError: no three")
    assert found.pop(5) == parting.Failed("its process ended without a word")
    assert found.pop(7) == parting.Failed("it took too long")
    assert [found[number].value[0] for number in sorted(found)] == sorted(found)
    processes = {answer.value[1] for answer in found.values()}
    assert 2 <= len(processes) <= 5, "two of three were lost"
    assert os.getpid() not in processes
    everyone = dict(parting.side_by_side(lambda number: os._exit(1), 9, 2, 2.0))
    assert [everyone[number].reason for number in range(9)] == [
        *["its process ended without a word"] * 4, *["its processes are lost"] * 5,
    ]  # fmt: skip
    halves = dict(parting.side_by_side(lambda number: number or os._exit(1), 6, 1, 2.0))
    assert [halves[number] for number in range(1, 6)] == [parting.Done(number) for number in range(1, 6)]


@on_linux
def test_statistics_are_left_out_of_forks(workdir, plain, forks, monkeypatch):
    forks()
    seen, tables, fork = [], [], parting.fork

    def note(work, without):
        seen.append([len(tensor) for tensor in without])
        tables.extend(map(weakref.ref, without))
        return fork(work, without)

    monkeypatch.setattr(parting, "fork", note)
    assert main([*SMALL, *FOUR, "trainer.execution=moments", "search.max_samples=400"]) == 0
    assert seen
    assert all(len(lengths) == 1 for lengths in seen), "one table for all"
    machine.release_memory()  # as between two groups
    assert not any(table() is not None for table in tables), "and it is given back with the group"


@on_linux
def test_the_peak_of_memory_is_that_of_the_whole_run(workdir, plain, forks, monkeypatch):
    forks()
    parent = os.getpid()
    monkeypatch.setattr(machine, "peak_memory_bytes", lambda: 2_000 if os.getpid() == parent else 1_000)
    assert main([*SMALL, *FOUR]) == 0
    assert [result(folder)["peak_memory_bytes"] for folder in runs("outputs").values()] == [2_000] * 4


@on_linux
def test_what_is_the_users_own_is_in_one_process(forks):
    forks()
    own, other = {"_target_": "sigexp.models.filters.linear"}, {"_target_": "mine.linear"}
    assert parting.possible({"dataset": own, "model": own})
    assert not parting.possible({"dataset": other, "model": own})
    assert not parting.possible({"dataset": own, "model": other})
    assert not parting.possible({"dataset": {**own, "noise": other}, "model": own})


@on_linux
@pytest.mark.parametrize("fate", ["killed", "stuck", "failing", "none"])
def test_a_run_whose_process_is_lost_ends_in_the_sweeps(fate, workdir, plain, forks, monkeypatch):
    def lost():
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "failing":
            raise OSError(28, "No space left on device")
        time.sleep(60)

    made = forks(lost)
    monkeypatch.setattr(fusing, "LONGER", 0.0)
    monkeypatch.setattr(fusing, "LEAST_S", 0.2)
    if fate == "none":
        monkeypatch.setattr(os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError(11, "no room for a process")))
    assert main([*SMALL, *FOUR]) == 0
    assert gone(made)
    why = {
        "killed": "its process ended without a word", "stuck": "it took too long",
        "failing": "OSError: [Errno 28] No space left on device", "none": "no room for a process",
    }  # fmt: skip
    logs = [(folder / "run.log").read_text() for folder in runs("outputs").values()]
    assert sum(f"({why[fate]}); it ends here" in log for log in logs) >= 2
    assert sum("it ends here" in log for log in logs) == 3, "the first one never was to end elsewhere"
    assert all(log.count(" INFO done: ") == 1 for log in logs)


@on_linux
def test_an_end_that_is_done_again_leaves_what_one_leaves(workdir, forks, monkeypatch):
    """Also in the event file, to which the first one has written."""
    parent, real = os.getpid(), experiment.verdicts.of_result

    def judge(*given):
        if os.getpid() != parent:
            raise RuntimeError("too late")
        return real(*given)

    monkeypatch.setattr(experiment.verdicts, "of_result", judge)
    forks()
    assert main([*SMALL, *FOUR]) == 0
    found = []
    for folder in runs("outputs").values():
        (path,) = folder.glob("events*")
        events = [e.summary.value for e in EventFileLoader(str(path)).Load()]
        found.append(Counter(value.tag for values in events for value in values))
    again = ["(RuntimeError: too late); it ends here" in (f / "run.log").read_text() for f in runs("outputs").values()]
    assert sorted(again) == [False, True, True, True]
    assert all(tags == found[0] for tags in found)
    assert found[0]["result/examples"] == 1


@on_linux
def test_a_run_that_fails_at_its_end_has_failed(workdir, plain, forks, monkeypatch):
    """In a fork and in the sweep's process, and the others have not."""

    def show(folder, *_):
        if "seed: 2" in (folder / "config.yaml").read_text():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiment, "show", show)
    forks()
    assert main([*SMALL, *FOUR]) == 4
    jobs = sweep.read(next(Path("outputs/sweeps").iterdir()))
    assert [job.status for job in jobs] == ["finished", "finished", "failed", "finished"]
    assert "No space left" in jobs[2].error
    log = (next(Path("outputs/sweeps").iterdir()) / jobs[2].folder / "run.log").read_text()
    assert "No space left on device" in log
    assert "Traceback" in log
    monkeypatch.setattr(experiment, "show", lambda *_: None)
    assert main([*SMALL, *FOUR]) == 0
    assert len(list(Path("outputs").rglob("result.json"))) == 4


@on_linux
def test_an_interrupt_reaches_runs_at_their_end(workdir, plain, forks, monkeypatch):
    """The step's patience is over while forks are at work: they are ended, and their runs can be taken up again."""
    monkeypatch.setattr(fusing.stopping, "PATIENCE_S", 0.3)
    monkeypatch.setattr(fusing, "SAVING_S", 0.0)
    made = forks(lambda: time.sleep(60))
    real = parting.Fork.answer

    def answer(self):
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    asked: list[bool] = []
    wait = parting.wait
    monkeypatch.setattr(parting, "wait", lambda connections, timeout: wait(connections, min(timeout, 0.05)))
    monkeypatch.setattr(parting.Fork, "answer", answer)
    assert main([*SMALL, *FOUR]) == 130
    assert len(made) == 2
    assert gone(made)
    jobs = sweep.read(next(Path("outputs/sweeps").iterdir()))
    assert sorted(job.status for job in jobs) == ["finished"] + ["interrupted"] * 3
    forks()
    assert main([*SMALL, *FOUR]) == 0
    assert len(list(Path("outputs").rglob("result.json"))) == 4


def test_examples_that_runs_share_stay_as_they_were_drawn():
    """Drawn once, and anew where a model has written to them; for what is not known, each use has its own."""
    drawn = []

    def sample(split, index):
        drawn.append(split)
        return Batch(torch.ones(len(index), 1, 4), torch.ones(len(index), 1, 4))

    def use(known):
        drawn.clear()
        problem = remembering(replace(the_problem, sample=sample), known=known)
        for write in (lambda x: x, lambda x: x[0].relu_().mul_(2), lambda x: x.add_(1), lambda x: x):
            batch = problem.sample("test", torch.arange(3))
            assert torch.equal(batch.inputs, torch.ones(3, 1, 4))
            with torch.no_grad():
                write(batch.inputs)
        problem.sample("train", torch.tensor([5, 2]))
        problem.sample("train", torch.tensor([5, 2]))
        return drawn

    the_problem = boundary(size=8, test_size=4)
    token = SHARED.set(object())
    try:
        assert use(known=True) == ["test", "test", "test", "train", "train"]
        assert use(known=False) == ["test", "train", "train"]
    finally:
        SHARED.reset(token)
    assert remembering(the_problem, known=True) is the_problem, "a run that is alone"
