"""Parts of a population on actors of Ray; where Ray is not installed, what is said and what needs none of it."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from test_resume import TINY, loop, plain
from test_shards import course, feed, population
from torch import nn

from sigexp import config as configuration
from sigexp import machine
from sigexp.cli import compose, main
from sigexp.population import cluster as clusters
from sigexp.population.plan import Plan
from sigexp.population.shards import Shards
from sigexp.problem import Batch
from sigexp.track import folder

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own
ENGINE = ["trainer.engine=ray", "trainer.processes=2", "trainer.execution=together"]


def test_without_ray_it_is_said_what_to_install(workdir, monkeypatch, capsys):
    find = configuration.importlib.util.find_spec
    monkeypatch.setattr(
        configuration.importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest)
    )
    assert main([*TINY, "trainer.engine=ray"]) == 2
    assert capsys.readouterr().err == (
        "sigexp: trainer.engine=ray: Ray is not installed; pip install 'sigexp[cluster]', or engine=local\n"
    )
    assert not (workdir / "out").exists()


def test_ray_is_imported_by_its_engine_alone():
    code = "import sigexp.experiment, sigexp.population.cluster, sys; assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_engine_is_no_part_of_a_runs_signature(workdir):
    local, ray = (compose([*TINY, *more])[0] for more in ([], ["trainer.engine=ray", "trainer.processes=2"]))
    assert folder.signature(local, {}, "1") == folder.signature(ray, {}, "1")


def test_statistics_in_parts_are_those_of_the_whole():
    make = partial(nn.Conv2d, 1, 1, 3, padding=1)
    whole = population(4, Plan(way="moments"), make)
    parts = [Shards(population(4, Plan(way="moments", shards=2), make), processes) for processes in (1, 2)]
    examples = feed()
    try:
        for position in range(0, 96, 24):
            expected, *others = (p.advance(examples, position, 24) for p in (whole, *parts))
            for got in others:
                for a, b in zip(expected, got, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert equal(*(shards.state() for shards in parts))
    finally:
        for shards in parts:
            shards.close()


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def cluster():
    """Two cores of Ray, whatever the machine has; started once, because that takes seconds."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(machine, "cores", lambda: 2)
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        with clusters.opened("ray", torch.device("cpu"), 0) as made:
            assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
            yield made


def kill(actor):
    import ray

    os.kill(ray.get(actor.handle.__ray_call__.remote(lambda carrier: os.getpid())), signal.SIGKILL)


@pytest.mark.parametrize(
    ("way", "size"), [("together", 60), ("together", None), ("one by one", 60), ("moments", 60)], ids=str
)
def test_actors_change_no_result(cluster, way, size):
    make = {"make": partial(nn.Conv2d, 1, 1, 3, padding=1)} if way == "moments" else {}
    states, losses = [], []
    for processes, where in ((1, None), (2, cluster)):
        shards = Shards(population(5, Plan(way=way, slice=3, shards=3), **make), processes, seed=7, cluster=where)
        examples = feed(size)
        try:
            state, lost = course(shards, examples)
            states.append(state)
            losses.append(lost)
        finally:
            shards.close()
    assert equal(*states)
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))
    assert shards.peak_memory_bytes > 1e7


@pytest.mark.parametrize("spare", [True, False], ids=["replaced", "none in its place"])
def test_a_lost_actor_changes_no_result(cluster, monkeypatch, spare, caplog):
    outcomes = []
    for lose in (False, True):
        killed = []

        def pause(running, begins, killed=killed, lose=lose):
            if lose and running.now.number == 2 and not begins and not killed:
                killed.append(running.population._crews[0])
                kill(killed[0])
                if not spare:
                    monkeypatch.setattr(cluster, "_hired", lambda *_, **__: [])

        where = {"processes": 2, "cluster": cluster} if lose else {}
        made, _ = loop(plain, Plan(way="together", shards=3), on_pause=pause, **where)
        with caplog.at_level("INFO", "sigexp"):
            outcomes.append(made.run())
        assert len(made.population._crews) == (2 if lose and spare else 1)
        made.population.close()
    assert "begins again in new processes" in caplog.text
    assert outcomes[0].best == outcomes[1].best
    assert equal(outcomes[0].state, outcomes[1].state)


def test_more_than_there_is_fails_with_a_message(cluster, monkeypatch, caplog):
    monkeypatch.setattr(cluster, "name", "the Ray cluster somewhere")  # where more cores could come
    monkeypatch.setenv(clusters.TIMEOUT, "1")
    monkeypatch.setattr(clusters, "START_S", 0.1)
    with caplog.at_level("WARNING", "sigexp"), pytest.raises(ValueError, match=r"2 cores, \d of them free, on 1 node"):
        Shards(population(5, Plan(shards=4)), 4, cluster=cluster)
    assert "trainer.processes=4" in caplog.text
    assert "waiting 1 s for more" in caplog.text


def test_an_error_in_an_actor_arrives_here(cluster):
    shards = Shards(population(2, Plan(shards=2)), 2, cluster=cluster)
    try:
        with pytest.raises(RuntimeError, match="size"):
            shards.evaluate(Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 5, 5)))
    finally:
        shards.close()


def test_a_node_with_other_versions_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(machine, "versions", lambda: {"sigexp": "0", "torch": "9.9", "numpy": "2"})
    with pytest.raises(ValueError, match=r"a node of the cluster has sigexp .*same versions"):
        Shards(population(2, Plan(shards=2)), 2, cluster=cluster)


def test_a_run_on_ray_is_that_of_processes(cluster, workdir, capsys):
    found = []
    for name, more in (("local", ENGINE[1:]), ("ray", ENGINE)):
        assert main([*TINY, *more, f"outputs={name}"]) == 0
        (run,) = (workdir / name).glob("*/*/*")
        found.append((run / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert "actors of 2" in (run / "run.log").read_text()


def test_an_address_where_nobody_answers_is_told(workdir, monkeypatch, capsys):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main([*TINY, *ENGINE]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("sigexp: RAY_ADDRESS=127.0.0.1:1: cannot connect to a Ray cluster")
