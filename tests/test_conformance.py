"""Everything under conf/ at once: every dataset is a well-formed problem, every experiment runs with each of its
models from config to a reloaded model. A new YAML enters by itself."""

import json
import math

import numpy as np
import pytest
import torch

from sigexp import catalog, cli, experiment, fitting
from sigexp.config import build
from sigexp.metrics import higher_is_better
from sigexp.problem import Problem
from sigexp.saved import load_model

DATASETS = [choice.name for choice in catalog.choices("dataset")]
EXPERIMENTS = catalog.choices("experiment")
PAIRS = [(choice.name, model) for choice in EXPERIMENTS for model in choice.models]
TINY = [
    "dataset.size=24", "search.max_samples=48", "search.members=2", "search.survivors=1", "search.initial_samples=8",
    "search.round_samples=8", "search.valid_samples=4", "trainer.batch_size=4", "trainer.threads=1",
]  # fmt: skip


def problem_of(name: str, *settings: str) -> Problem:
    config, _ = cli.compose([f"dataset={name}", *settings])
    return build(config["dataset"], what="dataset")


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_is_a_problem(name):
    problem = problem_of(name)
    assert {"train", "valid", "test"} <= set(problem.sizes)
    assert problem.source, "where the signals came from"
    assert problem.references
    index = torch.tensor([3, 0, 300, 3])
    batch = problem.sample("train", index)
    assert batch.inputs.dtype == torch.float32
    assert torch.equal(batch.inputs[0], batch.inputs[3]), "an example is a function of its index"
    alone = problem.sample("train", index[2:3])
    assert torch.equal(alone.inputs[0], batch.inputs[2]), "whatever else is asked for"
    assert torch.equal(alone.targets[0], batch.targets[2])
    again = problem_of(name).sample("train", index)
    assert torch.equal(again.inputs, batch.inputs), "in another process too"
    other = problem_of(name, "dataset.seed=1").sample("train", index)
    assert not torch.equal(other.inputs, batch.inputs), "and of dataset.seed"


@pytest.mark.parametrize("name", DATASETS)
def test_splits_share_no_example(name):
    problem = problem_of(name)
    train = {row.numpy().tobytes() for row in problem.examples("train", 0, 250).inputs}
    valid = {row.numpy().tobytes() for row in problem.examples("valid", 0, min(problem.sizes["valid"], 100)).inputs}
    assert not train & valid
    if "test" not in problem.ragged:
        test = {row.numpy().tobytes() for row in problem.examples("test", 0, min(problem.sizes["test"], 100)).inputs}
        assert not test & (train | valid)


@pytest.mark.parametrize("name", DATASETS)
def test_references_give_outputs_of_the_targets_shape(name):
    problem = problem_of(name)
    batch = problem.sample("test", torch.tensor([0]))
    for label, reference in problem.references.items():
        assert reference.predict or reference.values, label
        if reference.predict is None:
            continue
        outputs = reference.predict(batch.inputs)
        for metric, function in problem.metrics.items():
            values = function(outputs, batch.targets)
            assert values.shape == (1,), (label, metric)
            assert torch.isfinite(values).all(), (label, metric)


@pytest.mark.parametrize("name", [choice.name for choice in EXPERIMENTS])
def test_an_exact_reference_beats_the_trivial_ones(name):
    config, _ = cli.compose([f"experiment={name}"])
    problem: Problem = build(config["dataset"], what="dataset")
    if "exact" not in problem.references:
        pytest.skip("no exact predictor is known")
    batch = problem.sample("test", torch.arange(1 if "test" in problem.ragged else 20))
    metric = problem.metrics[problem.headline]
    sign = 1 if higher_is_better(problem.headline) else -1
    score = {
        label: sign * float(metric(reference.predict(batch.inputs), batch.targets).mean())
        for label, reference in problem.references.items()
        if reference.predict is not None
    }
    trivial = [score[label] for label in ("identity", "constant") if label in score]
    assert all(score["exact"] > value for value in trivial)


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_an_experiment_runs_with_its_model(name, model, workdir):
    overrides = [f"experiment={name}", f"model={model}", *TINY]
    config, names = cli.compose(overrides)
    if "test_size" in config["dataset"]:
        config["dataset"]["test_size"] = 1 if config["dataset"]["test_size"] is None else 8
    done = experiment.run(config, names, overrides, "test")
    result = json.loads((done.folder / "result.json").read_text())
    assert result["model"]["name"] == model
    assert result["parameters"] > 0
    assert all(value is not None and math.isfinite(value) for value in result["best"]["test"].values())
    assert list(result["phases"]) == ["data", "plan", "training", "bounds", "testing", "report"]
    assert sum(result["phases"].values()) <= result["seconds"]
    if result["excess"]:
        least = min(values["mse"] for values in result["references"].values() if "mse" in values)
        assert sum(result["excess"].values()) == pytest.approx(
            result["best"]["test"]["mse"] - least, rel=1e-6, abs=1e-15
        )
    assert (done.folder / "response.png").is_file() == (result["response"] is not None)
    lines = [json.loads(line) for line in (done.folder / "rounds.jsonl").read_text().splitlines()]
    assert {"round", "id", "parent", "hparams", "samples", "train_loss", "valid_loss", "seconds"} <= set(lines[0])
    loaded = load_model(done.folder)
    problem: Problem = build(config["dataset"], what="dataset")
    inputs = problem.examples("valid", 0, 3).inputs
    with torch.no_grad():
        assert torch.equal(loaded(inputs), done.model.cpu().eval()(inputs))


def test_every_model_belongs_to_an_experiment():
    used = {model for choice in EXPERIMENTS for model in choice.models}
    assert used == {choice.name for choice in catalog.choices("model")}


def test_what_fits_is_told():
    assert {"linear", "separable", "fc"} <= set(fitting.fitting(problem_of("gaussian"), 5))
    assert "vgg" not in fitting.fitting(problem_of("gaussian"), 5)
    assert "vgg" in fitting.fitting(problem_of("square_rectangle"), 3)


def test_tune_files_name_a_pair_that_exists():
    for path in (catalog.conf_dir() / "tune").glob("*.yaml"):
        experiment_name, _, model = path.stem.partition("-")
        assert (experiment_name, model) in PAIRS, path.name


def test_fixed_examples_equal_the_lectures_definition_of_impulses():
    inputs = problem_of("gaussian").examples("train", 0, 500).inputs.numpy()
    assert set(np.unique(inputs)) == {0.0, 1.0}
    assert inputs.mean() == pytest.approx(0.02, abs=0.001)
