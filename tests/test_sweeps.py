"""Sweeps: checked before the first job, each job once however often and however roughly it was started, resumable.

Most jobs are made by `Stub`, which leaves the folder that a run leaves; composing, checking and the sweep are real.
"""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import runs
import yaml

import sigexp
from sigexp import cli, machine, sweep_checks, sweeping
from sigexp.cli import main
from sigexp.names import Names
from sigexp.sweep_report import Watch
from sigexp.track import find, sweep
from sigexp.track import folder as folders
from sigexp.track.record import Unreadable
from sigexp.track.sweep import Job, Ledger

WORDS = ["-m", "experiment=gaussian", "dataset.image_size=16", "dataset.size=20", "dataset.test_size=4"]


class Stub:
    """In place of `cli.start`: a run's folder with a result, or an end before that where `fate` says so."""

    def __init__(self):
        self.fate, self.started, self.again = {}, [], []  # seed -> exception; seeds; folders

    def __call__(self, config, names, overrides, command="", again=None):
        seed = config["seed"]
        self.started.append(seed)
        assert "sweep" not in config
        sign = self.signs(config)
        folder = again or folders.create(Path(config["outputs"]), names.experiment, names.model, sign)
        self.again += [again] if again else []
        (folder / "composed.yaml").write_text(yaml.safe_dump({"overrides": overrides}))
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if seed in self.fate:
            raise self.fate[seed]
        result = runs.result(names.model, {"mse": 0.1 + 0.01 * seed}, seed)
        (folder / "result.json").write_text(json.dumps({**result, "experiment": names.experiment}))
        return SimpleNamespace(folder=folder, result=result)


@pytest.fixture
def stub(workdir, monkeypatch):
    made = Stub()
    checks = sweep_checks.Checks()
    made.signs = lambda config: folders.signature(
        config, checks.problem(config, sweep_checks.key(config["dataset"])).source, sigexp.__version__
    )
    monkeypatch.setattr(cli, "start", made)
    return made


def last_sweep(workdir):
    return max((workdir / "outputs" / "sweeps").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def states(workdir):
    return [job.status for job in sweep.read(last_sweep(workdir))]


def made_runs(workdir):
    return sorted(path.parent for path in (workdir / "outputs" / "gaussian").rglob("composed.yaml"))


def test_a_second_start_skips_what_is_finished(workdir, stub, capsys):
    words = [*WORDS, "hydra/launcher=basic", "model=linear,separable", "seed=range(2)"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert len(stub.started) == 4
    lines = shown.err.splitlines()
    assert lines[0].endswith(": 4 jobs")
    assert lines[1].startswith("1 of 4: model=linear seed=0: test mse 1.000e-01")
    assert [line.split("\t")[1:3] for line in shown.out.splitlines() if "\t2\t" in line] == [
        ["linear", "2"], ["separable", "2"]
    ]  # fmt: skip
    folder = last_sweep(workdir)
    assert "separable" in (folder / "report.html").read_text()
    jobs = [json.loads(line) for line in (folder / sweep.FILE).read_text().splitlines()]
    assert len(jobs) == 4, "one line a job when it is over"
    assert jobs[3]["overrides"][-2:] == ["model=separable", "seed=1"]
    assert (folder / jobs[3]["folder"] / "result.json").is_file()

    assert main(words) == 0
    assert len(stub.started) == 4
    again = capsys.readouterr()
    assert "4 jobs, 4 finished before and skipped" in again.err
    assert again.out == shown.out
    assert last_sweep(workdir) != folder
    assert main([*WORDS, "seed=1,7", "sweep.rerun=all"]) == 0
    assert stub.started[4:] == [1, 7]


def test_jobs_know_their_own_sweep_where_its_folder_was_taken(workdir, stub):
    same = "hydra.sweep.dir='outputs/sweeps/it is \\'one\\''"
    for _ in range(2):
        assert main([*WORDS, "seed=1,7", "sweep.rerun=all", same]) == 0
    assert stub.started == [1, 7, 1, 7]
    assert {path.name for path in (workdir / "outputs" / "sweeps").iterdir()} == {"it is 'one'", "it is 'one'-2"}
    assert states(workdir) == ["finished", "finished"]


def test_the_sweeps_folder_stands_for_exactly_its_runs(workdir, stub, capsys):
    assert main([*WORDS, "seed=5,6"]) == 0
    assert main([*WORDS, "model=glob(*able)", "seed=5,6"]) == 0
    capsys.readouterr()
    assert main(["compare", str(last_sweep(workdir))]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[1:3] for row in rows if row[2].isdigit()] == [["separable", "2"]]


def test_all_that_cannot_run_is_told_before_anything_runs(workdir, stub, capsys):
    assert main([*WORDS, "model=linear,vgg", "trainer.optimizer.lr=0.1,-1", "seed=0,1"]) == 2
    message = capsys.readouterr().err.splitlines()
    assert message[0] == "sigexp: 6 of 8 jobs cannot run; none was begun"
    assert len(message) == 3
    assert "model=linear trainer.optimizer.lr=-1 seed=0 and 3 more: trainer.optimizer.lr=-1.0: expected" in message[1]
    assert "model=vgg trainer.optimizer.lr=0.1 seed=0 and 1 more: model=vgg gives classes" in message[2]
    assert not stub.started
    assert not (workdir / "outputs").exists()
    for words in (["sweep.on_error=stopp"], ["sweep.rerun=al"], ["model=liner,linear"], ["sweep.onerror=stop"]):
        assert main([*WORDS, *words]) == 2
        assert "did you mean" in capsys.readouterr().err
    assert not (workdir / "outputs").exists()


def test_a_failing_job_leaves_the_others_and_gives_the_exit_code(workdir, stub, capsys):
    stub.fate = {1: PermissionError(13, "Permission denied", "there")}
    assert main([*WORDS, "seed=range(3)"]) == 4
    message = capsys.readouterr().err
    assert "seed=1: failed after" in message
    assert "1 of 3 jobs failed" in message
    assert states(workdir) == ["finished", "failed", "finished"]
    stub.fate = {}
    assert main([*WORDS, "seed=range(3)"]) == 0
    assert stub.started == [0, 1, 2, 1]
    assert len(made_runs(workdir)) == 3, "the failed one was taken up in its own folder"


def test_on_error_stop_begins_no_further_job(workdir, stub, capsys):
    stub.fate = {1: RuntimeError("as asked")}
    assert main([*WORDS, "seed=range(4)", "sweep.on_error=stop"]) == 1
    assert states(workdir) == ["finished", "failed", "waiting", "waiting"]
    assert "2 not begun (sweep.on_error=stop)" in capsys.readouterr().err


def test_an_interrupted_sweep_goes_on_where_it_was(workdir, stub, capsys):
    stub.fate = {1: KeyboardInterrupt()}
    assert main([*WORDS, "hydra/launcher=basic", "seed=range(3)"]) == 130
    message = capsys.readouterr().err
    assert "1 of 3 jobs finished; the same command again skips them" in message
    assert "Start again with: sigexp -m experiment=gaussian" in message
    assert states(workdir)[-3:] == ["finished", "interrupted", "waiting"]
    stub.fate = {}
    assert main([*WORDS, "hydra/launcher=basic", "seed=range(3)"]) == 0
    assert "3 jobs, 1 finished before and skipped (sweep.rerun=all runs them anew), 1 interrupted" in (
        capsys.readouterr().err
    )
    assert stub.started == [0, 1, 1, 2]
    (taken_up,) = stub.again
    assert taken_up in [folder.relative_to(workdir) for folder in made_runs(workdir)]


def test_jobs_that_would_be_the_same_run_once(workdir, stub, capsys):
    assert main([*WORDS, "seed=2,2", "device=auto,cpu"]) == 0
    assert stub.started == [2]
    assert "3 jobs left out: the same as another one" in capsys.readouterr().err


def test_a_killed_run_that_is_real_ends_as_if_it_had_not_been(workdir, monkeypatch):
    from sigexp import experiment

    small = [
        "search.max_samples=64", "search.members=2", "search.survivors=1", "search.initial_samples=10",
        "search.round_samples=10", "search.valid_samples=20", "trainer.batch_size=5", "trainer.threads=1",
        "footprint=5",
    ]  # fmt: skip
    monkeypatch.setattr(experiment, "pictures", lambda *_: {})
    judge, calls = experiment.judge, []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return judge(*args)

    monkeypatch.setattr(experiment, "judge", interrupt)
    assert main([*WORDS, *small, "seed=0"]) == 130
    assert main([*WORDS, *small, "seed=0"]) == 0
    assert main([*WORDS, *small, "seed=0", "sweep.rerun=all"]) == 0
    results = [json.loads((run / "result.json").read_text()) for run in made_runs(workdir)]
    assert len(results) == 2
    assert results[0]["best"] == results[1]["best"]


def test_damaged_and_strange_lines_do_no_harm(tmp_path):
    folder = tmp_path / "outputs" / "sweeps" / "2026"
    folder.mkdir(parents=True)
    good = asdict(Job(0, ["seed=0"], "abc", "finished", "../../gaussian/linear/x"))
    strange = [{**good, "number": 1, "folder": "../../../../../etc"}, {**good, "number": 2, "status": "grand"}]
    lines = [json.dumps(line) for line in [good, *strange]] + ["{", "[" * 100_000, '{"number": 3', "7", ""]
    (folder / sweep.FILE).write_text("\n".join(lines))
    assert [job.number for job in sweep.read(folder)] == [0, 1]
    assert sweep.runs(folder) == [tmp_path / "outputs" / "gaussian" / "linear" / "x"]
    (folder / sweep.FILE).write_text("nothing\n")
    with pytest.raises(Unreadable, match="no jobs"):
        find.inside(folder)


def test_a_claim_is_held_by_one(tmp_path):
    order = []

    def other():
        with sweep.claim(tmp_path, "abc"):
            order.append("other")

    with sweep.claim(tmp_path, "abc"):
        assert sweep.claimed(tmp_path, "abc")
        assert not sweep.claimed(tmp_path, "xyz")
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
    assert not sweep.claimed(tmp_path, "abc")
    assert not list(tmp_path.iterdir())


def planned_job(number, home):
    words = [f"seed={number}"]
    return sweeping.Planned(words, {}, Names("e", "d", "m", "s"), Job(number, words, f"s{number}"), words[0], home)


class Pool:
    """A launcher of two processes: a job in `deadly` takes the whole pool with it, as in joblib."""

    def __init__(self, ledger, deadly):
        self.ledger, self.deadly, self.launched = ledger, deadly, []

    def launch(self, jobs, initial_job_idx):
        self.launched.append([job[0] for job in jobs])
        for start in range(0, len(jobs), 2):
            pair = [self.ledger.note(self.ledger.find(job), status="running") for job in jobs[start : start + 2]]
            if any(job.overrides[0] in self.deadly for job in pair):
                raise RuntimeError("a worker died")
            for job in pair:
                self.ledger.note(job, status="finished")


def test_a_job_whose_process_dies_leaves_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeping.time, "sleep", lambda _: None)
    ledger = Ledger(tmp_path)
    planned = [planned_job(n, tmp_path) for n in range(8)]
    ledger.begin([one.job for one in planned])
    pool = Pool(ledger, {"seed=3", "seed=7"})
    watch = Watch(ledger, {one.job.number: one.name for one in planned}, 2)
    sweeping.launch(SimpleNamespace(launcher=pool), ledger, planned, watch, stop=False)
    assert [job.status for job in ledger.jobs()] == [*["finished"] * 3, "failed", *["finished"] * 3, "failed"]
    assert [len(jobs) for jobs in pool.launched] == [8, 1, 1, 4, 1, 1], "suspects alone, then the others together"
    assert capsys.readouterr().err.count("its process ended without a word") == 2


def test_a_launcher_that_cannot_start_anything_says_so(tmp_path):
    ledger = Ledger(tmp_path)
    planned = [planned_job(0, tmp_path)]
    ledger.begin([one.job for one in planned])

    def launch(*_, **__):
        raise FileNotFoundError("sbatch")

    with pytest.raises(FileNotFoundError, match="sbatch"):
        sweeping.launch(
            SimpleNamespace(launcher=SimpleNamespace(launch=launch)), ledger, planned, Watch(ledger, {0: "0"}, 1),
            stop=False,
        )  # fmt: skip
    assert ledger.jobs()[0].status == "waiting"


def test_a_launcher_that_does_nothing_ends_the_sweep(tmp_path):
    ledger = Ledger(tmp_path)
    planned = [planned_job(0, tmp_path)]
    ledger.begin([one.job for one in planned])
    lazy = SimpleNamespace(launch=lambda *_, **__: [])
    sweeping.launch(SimpleNamespace(launcher=lazy), ledger, planned, Watch(ledger, {0: "seed=0"}, 1), stop=False)
    assert ledger.jobs()[0].error == "its launcher did not run it"


def no_quota(*_, **__):
    raise OSError


def test_cores_are_divided(monkeypatch):
    monkeypatch.delenv(machine.CORES_SHARE, raising=False)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("builtins.open", no_quota)
    assert machine.cores() == 8
    for wanted, jobs, at_once, share in ((-1, 64, 8, 1), (-1, 3, 3, 2), (2, 64, 2, 4), (16, 64, 16, 1), (-7, 9, 2, 4)):
        found = sweeping.jobs_at_once({"n_jobs": wanted}, jobs)
        assert found == at_once
        with sweeping.share_of_cores(found):
            assert machine.cores() == share
    assert machine.cores() == 8


DEADLY = """
import os
import numpy as np
from sigexp.problem import Problem, blockwise, identity, train_size
from sigexp.signal.quality import mse

def noise(*, seed: int = 0, size: int | str = 20, test_size: int = 4, kind: int = 0) -> Problem:
    def draw(rng, split, n):
        if split == "test" and kind == 1:
            os._exit(9)
        if split == "test" and kind == 2:
            raise RuntimeError("as asked")
        x = rng.standard_normal((n, 1, 8, 8), dtype=np.float32)
        return x, 2 * x
    return Problem(kind="image", sample=blockwise(draw, seed=seed), loss=mse,
                   sizes={"train": train_size(size), "valid": 20, "test": test_size},
                   metrics={"mse": mse}, references={"identity": identity()}, source={"signals": "noise"})
"""


@pytest.mark.parametrize(
    ("launcher", "plugin", "kind", "said"),
    [("joblib", "joblib", 2, "as asked"), ("submitit_local", "submitit", 1, "its process ended without a word")],
)
def test_launchers_that_start_processes(launcher, plugin, kind, said, workdir):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    (workdir / "deadly.py").write_text(DEADLY)
    (workdir / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\n# noise\nfootprint: 1\ndataset: {_target_: deadly.noise, kind: 0, test_size: 4}\n"
    (workdir / "conf" / "experiment" / "deadly.yaml").write_text(text)
    small = ["search=fixed", "search.max_samples=40", "search.initial_samples=20", "trainer.batch_size=5"]
    at_once = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    words = ["-m", "experiment=deadly", f"hydra/launcher={launcher}", f"dataset.kind=0,{kind}", *small, *at_once]
    done = subprocess.run([sys.executable, "-m", "sigexp", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert any(f"dataset.kind={kind}: " in line and said in line for line in done.stderr.splitlines())
    (folder,) = (workdir / "outputs" / "sweeps").iterdir()
    assert [job.status for job in sweep.read(folder)] == ["finished", "failed"]
    log = (folder / sweep.read(folder)[0].folder / "run.log").read_text()
    share = max(1, machine.cores() // 2)
    assert f"threads: {share};" in log


def test_a_sweep_over_experiments_takes_settings_of_their_datasets(stub):
    """Hydra composes it without an experiment first."""
    assert main(["-m", "experiment=iir,spikes", "model=conv1d", "dataset.size=20", "dataset.test_size=4"]) == 0
    assert len(list(Path("outputs").glob("*/conv1d/*/result.json"))) == 2
