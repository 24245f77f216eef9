"""`python -m benchmarks.peers` in short: its sides are given the same problem, and what its table makes of them."""

import math
import os

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import measuring, ours, side, table
from benchmarks.peers.table import Done
from benchmarks.peers.task import PEERS, ROUNDS, UNIT, Arrangement, Spec

SMALL = (
    "dataset.size=100", "dataset.test_size=4", "dataset.image_size=24", "footprint=5", "search.valid_samples=20",
    "trainer.threads=1", "trainer.processes=1", "trainer.batch_size=8",
)  # fmt: skip


def spec(name, samples=10 * UNIT, **changed):
    return Spec("gaussian", name, 0, samples, "torch" if name in PEERS else "", extra=SMALL, **changed)


def found(training, test, *, samples=1000):
    return {
        "how": "", "trials": 6, "samples": samples, "start": 5.0, "calibration": 1.0, "training": training,
        "steps": training, "peak_bytes": 3e8, "test": test,
    }  # fmt: skip


def needs(peer):
    there = all(map(command.installed, command.PACKAGES[peer]))
    return pytest.mark.skipif(not there, reason="the extra 'peers' is not installed")


def ended(words):
    with pytest.raises(SystemExit) as end:
        command.main(words)
    return int(end.value.code)


@needs("joblib")
def test_a_multirun_by_joblib_trains_the_members_of_our_random_search(tmp_path):
    theirs = side.peer(spec("joblib"), tmp_path)
    own = ours.run(spec("random"), tmp_path)
    assert theirs["samples"] == own["samples"] == 10 * UNIT
    assert theirs["trials"] == own["trials"] == 6
    assert theirs["valid"] == pytest.approx(own["valid"], rel=1e-3)  # float32, another order of sums
    assert theirs["test"] == pytest.approx(own["test"], rel=1e-3)
    for one in (theirs, own):
        assert 0 < one["steps"] <= one["done"] - one["ready"]


@needs("optuna")
def test_optuna_spends_the_budget_and_no_more(tmp_path):
    theirs = side.peer(spec("optuna"), tmp_path)
    assert theirs["samples"] == 10 * UNIT
    assert theirs["trials"] > 1
    assert math.isfinite(theirs["test"])


@needs("ray")
def test_ray_trains_every_member_for_all_rounds(tmp_path):
    theirs = side.peer(spec("ray", ROUNDS * 6 * 8), tmp_path)
    assert theirs["samples"] == ROUNDS * 6 * 8
    assert math.isfinite(theirs["test"])


def test_the_verdict_is_by_time_and_by_loss():
    fast, slow = {s: found(10.0, 1.0 + s) for s in range(3)}, {s: found(50.0, 1.0 + s) for s in range(3)}
    assert table.verdict(slow, fast) == ("5.0", "4.5", "yes")
    assert table.verdict(fast, slow)[2] == "no: time"
    worse = {s: {**one, "test": one["test"] + 0.1} for s, one in fast.items()}
    assert table.verdict(slow, worse)[2] == "no: loss"
    assert table.verdict({0: slow[0]}, {0: {**fast[0], "test": 1.0005}})[2] == "yes"  # rounding
    assert table.verdict({0: slow[0]}, {0: {**fast[0], "test": 1.01}})[2] == "no: loss"
    scattered = {s: {**one, "test": one["test"] + 0.1 * (s - 0.9)} for s, one in fast.items()}
    assert table.verdict(slow, scattered)[2] == "yes"
    assert table.verdict(slow, {0: found(10.0, 1.0, samples=900)})[2] == "no: other budgets"


def test_the_table_has_each_peer_above_what_stands_against_it():
    done = [Done(spec(name), found(40.0, 1.0)) for name in ("optuna", "joblib")]
    done += [Done(spec(name), found(8.0, 0.9)) for name in ("halving", "automlp")]
    lines = table.table([*done, Done(spec("random"), None, "out of memory")])
    sides = [line.split(" | ")[1] for line in lines[2:6]]
    assert sides == ["Optuna, pruned, torch's convolution", "sigexp, halving", "sigexp, automlp",
                     "Hydra, joblib, torch's convolution"]  # fmt: skip
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[-1] == "Failed: gaussian, random, seed 0: out of memory."


def test_a_run_that_was_cut_off_goes_on_with_what_is_done(tmp_path, monkeypatch, capsys):
    asked = []

    def measured(one, limit):
        asked.append(one)
        if one.side == "probe":
            return {"rates": {"1 x 2 threads": 10.0}, "rate": 10.0, "workers": 1, "threads": 2, "channels_last": True}
        if one.side == "halving":
            raise measuring.Failed("killed")
        return {**found(10.0, 1.0), "seconds": 12.0}

    monkeypatch.setattr(command, "measured", measured)
    monkeypatch.setattr(command, "installed", lambda name: True)
    words = ["--problems", "spikes", "--peers", "optuna", "--seeds", "2", "--output", str(tmp_path / "peers.md")]
    assert ended(words) == 1
    assert [one.side for one in asked] == ["probe", "optuna", "halving", "automlp", "halving", "automlp", "optuna"]
    assert asked[1].arrangement == Arrangement(1, 2, True)
    assert "killed" in (tmp_path / "peers.md").read_text()
    del asked[:]
    assert ended(words) == 2  # there is a record
    with open(tmp_path / "peers.jsonl", "a") as file:
        file.write('{"spec": {"probl')
    assert ended([*words, "--resume"]) == 1
    assert [one.side for one in asked] == ["halving", "halving"]
    assert "2 of 6 runs to do" in capsys.readouterr().out


def test_memory_is_that_of_a_process_and_of_those_below_it():
    assert os.getpid() in measuring.tree(os.getpid())
    assert measuring.memory(os.getpid()) > 10**7
    assert measuring.memory(2**22 + 1) == 0
