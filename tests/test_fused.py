"""Jobs of a sweep as one population: each comes to what it comes to alone, and leaves what it leaves alone."""

import json
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from sigexp import fusing, sharing
from sigexp.cli import main
from sigexp.population.population import Population
from sigexp.population.unfinished import merge, split
from sigexp.track import sweep

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


SWEEPS = {
    "fixed": ["search=fixed", "search.max_samples=400", "seed=0,1", "trainer.optimizer.lr=0.1,0.3"],
    "batches": ["search=fixed", "search.max_samples=360", "trainer.batch_size=10,15", "trainer.optimizer.momentum=0,0.9"],
    "automlp": ["search.members=3", "search.survivors=2", "search.initial_samples=60", "search.max_samples=600", "seed=0,1,2"],
    "patience": ["search=fixed", "search.max_samples=600", "search.patience=1", "trainer.optimizer.lr=1e-9,0.1,0.2"],
    "diverging": ["search=fixed", "search.max_samples=400", "trainer.optimizer.lr=1e9,0.1,0.2"],
    "model": ["model=separable", "search=fixed", "search.max_samples=400", "seed=0,1"],
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_a_job_comes_to_what_it_comes_to_alone(name, workdir, capsys):
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
            assert {path.name for path in folder.iterdir() if not path.name.startswith("events")} == FILES
        assert len(list(folder.glob("events*"))) == 1
    if name == "diverging":
        assert sum((folder / "result.json").is_file() for folder in fused.values()) == 2
