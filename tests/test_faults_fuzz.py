"""Bad input, in short: settings, files and numbers of `benchmarks/faults`, and what memory is refused before it is
taken. `python -m benchmarks.faults` has the long forms."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.faults import config_fuzz, input_files, numbers
from benchmarks.faults.inprocess import bounded, command
from benchmarks.faults.table import Row
from sigexp import machine, weighing
from sigexp.problem import blockwise
from sigexp.ranges import RANGES, out_of_range, within

GAUSSIAN = ["experiment=gaussian", *config_fuzz.TINY, *config_fuzz.SMALL["gaussian"]]


def wrong(rows: list[Row]) -> list[Row]:
    assert sum(row.count for row in rows), "nothing was tried"
    return [row for row in rows if row.passed < row.count]


@pytest.fixture(scope="module")
def little_memory():
    with bounded():
        yield


@pytest.mark.parametrize("start", range(4))
def test_wrong_settings_are_refused_in_a_clear_message_and_leave_nothing(start, little_memory):
    for word in config_fuzz.WRONG[start::40]:
        outcome = command([*GAUSSIAN, word])
        assert config_fuzz.judged("wrong", outcome, [word]), (word, outcome)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.size=1000000000000"], ["dataset.size=1000000000000", "GB", "dataset.size=stream"]),
        (["trainer.batch_size=1000000000", "search.batch_max=1000000000"], ["trainer.batch_size=1000000000", "GB"]),
        (["model=fc", "dataset.image_size=60", "search.members=90", "search.max_samples=90"], ["search.members=90"]),
        (["model=deep", "model.channels=65536", "footprint=301"], ["model=deep", "weights", "GB"]),
        (["model=deep", "model.channels=65536"], ["model=deep", "largest layer", "GB"]),
        (["dataset.image_size=1000"], ["250 at a time", "image_size"]),
    ],
)
def test_what_the_memory_cannot_hold_is_refused_before_it_is_tried(words, said, little_memory):
    machine.reset_peak_memory()
    before = machine.peak_memory_bytes()
    outcome = command([*GAUSSIAN, *words])
    assert outcome.refused(), outcome
    assert all(part in outcome.err for part in said), outcome.err
    assert machine.peak_memory_bytes() - before < 1_200_000_000


def test_settings_without_effect_are_said(little_memory):
    words = ["search=fixed", "search.selection_noise=0.1", "lecture.batch_size=3", "tune=gaussian-fc"]
    outcome = command([*GAUSSIAN, *words])
    assert outcome.ran(), outcome.err
    assert "search.selection_noise has no effect with search=fixed" in outcome.err
    assert "lecture.batch_size has no effect" in outcome.err
    outcome = command([*GAUSSIAN, "tune=gaussian-liner"])
    assert outcome.refused()
    assert "did you mean gaussian-linear" in outcome.err


def test_damaged_files_bring_no_reader_down(capfd):
    assert not wrong(input_files.rows(short=True)), capfd.readouterr().out


def test_a_sick_member_touches_no_other():
    for name in ("together", "moments", "two shards, one by one"):
        settings = ("convolution", numbers.WAYS[name], "adam", 1.0)
        healthy = numbers.trained(*settings, None, [])
        for harm in numbers.POISONS.values():
            got = numbers.trained(*settings, harm, [0, 2, 5])
            assert all(torch.equal(got[p], healthy[p]) for p in (1, 3, 4))
            assert not any(got[p].isfinite().all() for p in (0, 2, 5))


def test_diverged_members_are_logged_and_seeded_anew(little_memory):
    assert not wrong(numbers.selection())


def test_every_range_refuses_what_lies_outside_and_nothing_inside():
    for name, allowed in RANGES.items():
        inside = [allowed.most, allowed.least if not allowed.above else allowed.most / 2]
        outside = [allowed.most * 2 + 1, allowed.least - 1, float("nan"), float("inf"), -float("inf")]
        outside += [allowed.least] if allowed.above else []
        for value in (*inside, *outside):
            nested: dict = {}
            *parents, last = name.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
            said = out_of_range(nested)
            assert (said is None) == (value in inside), (name, value, said)
    with pytest.raises(ValueError, match=r"dataset.length=-1: expected samples, at least 2"):
        within("dataset.length", -1, 2, 9, "samples")


def test_a_model_is_weighed_without_storage():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    assert weighing.widest(model, (1, 16, 16)) == 8 * 256
    assert weighing.largest_layer(model, (1, 16, 16)) == 16 * 256
    with pytest.raises(weighing.TooLarge), weighing.Allowance(1000):
        nn.Linear(100, 100)
    with weighing.Allowance(10_200):
        nn.Linear(100, 100)


def test_one_example_tells_what_a_block_takes(monkeypatch):
    asked = []

    def draw(rng, split, n):
        asked.append(n)
        return np.zeros((n, 1, 100, 100), np.float32), np.zeros((n, 1, 100, 100), np.float32)

    monkeypatch.setattr("sigexp.problem.free_memory_bytes", lambda device: 10_000_000)
    with pytest.raises(ValueError, match="drawn 250 at a time"):
        blockwise(draw, seed=0)("train", torch.arange(2))
    assert asked == [1]


def test_a_minibatch_of_all_members_that_does_not_fit_is_learned_one_by_one(little_memory):
    words = ["experiment=circle_square", *config_fuzz.TINY, *config_fuzz.SMALL["circle_square"]]
    outcome = command([*words, "trainer.execution=together", "trainer.memory_limit=1e-6"])
    assert outcome.ran(), outcome.err


def test_a_model_that_needs_two_examples_is_refused_one_before_the_folder_is_made(little_memory):
    words = ["experiment=circle_square", *config_fuzz.TINY, *config_fuzz.SMALL["circle_square"]]
    for word in ("trainer.batch_size=1", "search.initial_samples=1", "search.max_samples=6"):
        outcome = command([*words, word])
        assert outcome.refused(), outcome
        assert word in outcome.err
