"""A run's folder from Python, and what a folder from a stranger may not do."""

import json

import pytest
import torch

import sigexp

SMALL = {
    "dataset__size": 20,
    "dataset__test_size": 4,
    "dataset__image_size": 24,
    "footprint": 5,
    "search__max_samples": 60,
}


@pytest.fixture
def done(workdir):
    return sigexp.run("gaussian", **SMALL, search__members=2, search__survivors=1)


def test_run_and_load(done):
    model = sigexp.load(done.folder)
    x = torch.rand(2, 1, 24, 24)
    with torch.no_grad():
        assert torch.equal(model(x), done.model(x))
    assert done.result["best"]["test"]["mse"] > 0


def test_running_leaves_the_callers_random_stream_alone(workdir):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sigexp.run("gaussian", **SMALL)
    assert torch.equal(torch.rand(3), expected)


def test_wrong_settings_are_value_errors(workdir):
    with pytest.raises(ValueError, match="did you mean gaussian"):
        sigexp.run("gausian")
    with pytest.raises(ValueError, match="my photos, 2024"):
        sigexp.run("color", dataset__images="/no/my photos, 2024 (1)")


@pytest.mark.parametrize(
    "change",
    [
        {"_target_": "os.system"},
        {"_target_": "shutil.copyfile"},
        {"_target_": "torch.nn.modules.module.os.system"},
        {"_target_": "torch.nn.init"},
        {"kernel_size": {"_target_": "os.getcwd"}},
        {"kernel_size": "${oc.create:{_target_: os.getcwd}}"},
        {"kernel_size": "${oc.env:HOME}"},
        {"_args_": [1]},
        {"_partial_": True},
        {"_recursive_": False},
    ],
)
def test_a_hostile_folder_is_refused(done, change):
    path = done.folder / "model.json"
    described = json.loads(path.read_text())
    described["model"].update(change)
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"names|holds"):
        sigexp.load(done.folder)


def test_damaged_and_missing_files_are_told(done):
    weights = done.folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        sigexp.load(done.folder)
    weights.unlink()
    with pytest.raises(ValueError, match="no such file"):
        sigexp.load(done.folder)
    (done.folder / "model.json").write_text("{")
    weights.write_bytes(whole)
    with pytest.raises(ValueError, match="not JSON"):
        sigexp.load(done.folder)


def test_a_model_described_larger_than_its_weights_takes_no_memory(done):
    path = done.folder / "model.json"
    described = json.loads(path.read_text())
    described["model"]["kernel_size"] = 4095  # and 4 channels: 268 MB, of a few kB
    described["input_shape"][0] = 4
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match="larger model"):
        sigexp.load(done.folder)


@pytest.mark.parametrize(
    "change", [{"kind": "video"}, {"labels": [1]}, {"input_shape": [1, -3, 24]}, {"input_shape": "abc"}, {"model": []}]
)
def test_a_damaged_description_is_told(done, change):
    path = done.folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="damaged"):
        sigexp.load(done.folder)
