"""The command line as a user meets it: verbs, help, errors in one or two lines with their exit codes."""

import json
import shlex
import subprocess
import sys

import hydra
import pytest

from sigexp import catalog
from sigexp.cli import main
from sigexp.population import building

TINY = [
    "dataset.size=20", "dataset.test_size=4", "search.max_samples=64", "search.members=2", "search.survivors=1",
    "search.initial_samples=10", "search.round_samples=10", "search.valid_samples=20", "trainer.batch_size=5",
    "trainer.threads=1",
]  # fmt: skip


def test_help_and_list_import_neither_torch_nor_hydra():
    code = (
        "import sys; from sigexp.cli import main; assert main(sys.argv[1:]) == 0; "
        "loaded = {'torch', 'hydra', 'numpy', 'omegaconf'} & set(sys.modules); assert not loaded, loaded"
    )
    for words in (["--help"], ["list"], ["list", "models", "--json"], []):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_compilers_are_at_work_while_a_run_imports(monkeypatch):
    """For a command that trains alone, before torch is there."""
    begun = []
    monkeypatch.setattr(building, "begin", lambda *part: begun.append(part))
    monkeypatch.setattr(hydra, "main", lambda **_: lambda task: lambda: None)
    for words in (["experiment=gaussian"], ["-m", "experiment=gaussian", "seed=1,2"]):
        assert main(words) == 0
        assert begun.pop() == ()
    for words in (["experiment=gaussian", "--cfg", "job"], ["experiment=gaussian", "--info", "config"]):
        assert main(words) == 0
        assert not begun
    code = (
        "import sys; from sigexp.cli import main; from sigexp.population import building; begun = []; "
        "building.begin = lambda *part: begun.append('torch' in sys.modules); "
        "assert main(['experiment=gaussian', 'search.members=0']) == 2; assert begun == [False]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def test_list_names_everything(capsys):
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"experiments", "datasets", "models", "searches"}
    assert {c["name"] for c in found["searches"]} >= {"automlp", "lecture", "random", "fixed"}
    assert all(c["description"] for group in found.values() for c in group), "every choice says what it is"
    models = {c["name"] for c in found["models"]}
    for experiment in found["experiments"]:
        assert set(experiment["models"]) <= models


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["experiment=bayr"], ["experiment=bayr", "did you mean bayer"]),
        (["experiment=gaussian", "model=liner"], ["model=liner", "did you mean linear"]),
        (["experiment=gaussian", "dataset=gausian"], ["dataset=gausian", "gaussian"]),
        (["experiment=gaussian", "dataset.sgima=3"], ["dataset.sgima", "did you mean dataset.sigma"]),
        (["experiment=gaussian", "+dataset.sgima=3"], ["dataset.sgima", "did you mean dataset.sigma"]),
        (["experiment=gaussian", "serch.members=3"], ["serch", "did you mean search"]),
        (["experiment=gaussian", "search.member=3"], ["search.member", "did you mean search.members"]),
        (["experiment=gaussian", "trainer.lr=0.1"], ["trainer.lr", "did you mean trainer.optimizer.lr?"]),
        (["experiment=gaussian", "+trainer.lr=0.1"], ["trainer.lr", "did you mean trainer.optimizer.lr?"]),
        (["experiment=gaussian", "max_samples=9"], ["did you mean search.max_samples"]),
        (["experiment=mine"], ["experiment=mine: no such experiment (no ./conf in this folder); it can be one of"]),
        (["experiment=gaussian", "+search.foo=3"], ["search.foo", "no such field"]),
        (["experiment=gaussian", "search.members=many"], ["search.members", "many"]),
        (["experiment=gaussian", "search.members=0"], ["search.members=0", "at least 1"]),
        (["experiment=gaussian", "search.survivors=30"], ["search.survivors=30"]),
        (["experiment=gaussian", "dataset.size=-3"], ["dataset.size=-3"]),
        (["experiment=gaussian", "dataset.size=many"], ["dataset.size", "stream"]),
        (["experiment=gaussian", "dataset.test_size=0"], ["dataset.test_size=0"]),
        (["experiment=gaussian", "dataset.sigma=wide"], ["dataset.sigma='wide'", "a list of 2 values"]),
        (["experiment=gaussian", "trainer.optimizer.name=adan"], ["trainer.optimizer.name=adan", "did you mean adam"]),
        (["experiment=gaussian", "trainer.optimizer.lr=-1"], ["trainer.optimizer.lr=-1", "positive"]),
        (["experiment=gaussian", "trainer.optimizer.lr=nan"], ["trainer.optimizer.lr", "positive"]),
        (["experiment=gaussian", "trainer.processes=0"], ["trainer.processes=0", "auto"]),
        (["experiment=gaussian", "device=gpu"], ["device=gpu"]),
        (["experiment=gaussian", "device=cuda:99"], ["device=cuda:99"]),
        (["experiment=gaussian", "footprint=0"], ["footprint=0"]),
        (["experiment=gaussian", "model=vgg"], ["vgg", "models that fit gaussian", "linear"]),
        (["experiment=color", "dataset.images=/no/such/folder"], ["/no/such/folder"]),
        (["experiment=median", "model=fc"], ["one size only", "models that fit median", "rank"]),
        (["experiment=matched_filter", "model=fc"], ["17 GB"]),
        (["experiment=gaussian", "+trainer.optimizer.dampening=0.1"], ["trainer.optimizer.dampening", "no such field"]),
        (["experiment=gaussian", "trainer.batch_size=4000"], ["trainer.batch_size=4000", "search.batch_max=1000"]),
        (["experiment=gaussian", "dataset.density=7"], ["dataset.density=7"]),
        ([""], ["neither a verb nor a setting"]),
        (["model=linear"], ["no dataset", "experiment=NAME"]),
        (["experiment=gaussian", "model=null"], ["cannot be null", "model=NAME"]),
        (["experiment=gaussian", "dataset.size=[1"], ["dataset.size=[1"]),
        (["bayer"], ["'bayer'", "neither a verb nor a setting"]),
        (["lst"], ["did you mean list"]),
        (["list", "modles"], ["modles"]),
        (["board", "no-such-folder"], ["no-such-folder"]),
        (["compare", "no-such-folder"], ["no-such-folder: no such folder; give the folder of a run"]),
        (["compare"], ["RUN"]),
        (["report", "."], [".: not the folder of a run (no result.json), and none is in it"]),
        (["preview", "experiment=gausian"], ["did you mean gaussian"]),
    ],
)
def test_wrong_input_is_answered_in_a_few_lines_with_exit_code_2(words, parts, workdir, capsys):
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("sigexp: ")
    assert len(message.strip().splitlines()) <= 3
    assert "Traceback" not in message
    for part in parts:
        assert part in message
    assert not (workdir / "outputs").exists(), "no folder before every check has passed"


def test_a_run_leaves_its_folder(workdir, capsys):
    assert main(["experiment=gaussian", "dataset.image_size=24", "footprint=5", *TINY]) == 0
    shown = capsys.readouterr()
    (folder,) = (workdir / "outputs" / "gaussian" / "linear").iterdir()
    assert str(folder.relative_to(workdir)) in shown.out
    assert "least_squares_train" in shown.out
    names = {path.name for path in folder.iterdir()}
    expected = {
        "config.yaml",
        "composed.yaml",
        "rounds.jsonl",
        "result.json",
        "cases.json",
        "report.html",
        "model.safetensors",
        "model.json",
        "run.log",
    }
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    result = json.loads((folder / "result.json").read_text())
    for key in [
        "schema_version",
        "experiment",
        "dataset",
        "model",
        "parameters",
        "seeds",
        "device",
        "plan",
        "samples",
        "seconds",
        "member_samples_per_second",
        "peak_memory_bytes",
        "best",
        "references",
        "claims",
        "versions",
        "command",
    ]:
        assert key in result
    assert result["samples"] <= 64
    assert result["best"]["test"]["mse"] > 0
    assert result["command"].startswith("sigexp experiment=gaussian")
    report = (folder / "report.html").read_text()
    assert f"{result['best']['test']['mse']:.3e}" in report
    assert report.count("data:image/png") >= 8, "kernels, response, examples, slider, cases"
    assert main(["compare", str(workdir / "outputs")]) == 0
    assert f"linear\t1\t{result['best']['test']['mse']:.3e}" in capsys.readouterr().out


def rounds(folder):
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_the_same_seeds_give_the_same_rounds(workdir):
    words = ["experiment=gaussian", "dataset.image_size=24", "footprint=5", *TINY]
    for _ in range(2):
        assert main(words) == 0
    assert main([*words, "seed=1"]) == 0
    found = [
        rounds(folder)
        for folder in sorted((workdir / "outputs/gaussian/linear").iterdir(), key=lambda f: f.stat().st_ctime)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_sweep_runs_every_combination_and_can_be_compared(workdir, capsys):
    assert (
        main(["-m", "experiment=gaussian", "model=linear,separable", "dataset.image_size=24", "footprint=5", *TINY])
        == 0
    )
    assert len(list((workdir / "outputs" / "gaussian").iterdir())) == 2
    hint = capsys.readouterr().err.splitlines()[-1]
    assert main(shlex.split(hint.partition("sigexp ")[2])) == 0
    learned = [line for line in capsys.readouterr().out.splitlines() if line.split("\t")[1] in ("linear", "separable")]
    assert len(learned) == 2


@pytest.mark.parametrize("search", ["automlp", "fixed", "random", "lecture"])
def test_every_search_runs_with_an_experiments_defaults(search, workdir):
    small = ["dataset.size=20", "dataset.test_size=4", "dataset.image_size=24", "search.max_samples=80", "footprint=5"]
    assert main(["experiment=gaussian", f"search={search}", *small]) == 0


def test_the_lectures_search_takes_the_lectures_model(capsys):
    assert main(["experiment=bayer", "model=deep", "search=lecture", "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "activation: sigmoid" in shown
    assert "batch_size: 200" in shown
    assert main(["experiment=bayer", "model=deep", "--cfg", "job"]) == 0
    assert "activation: centred_sigmoid" in capsys.readouterr().out


def test_options_may_come_in_any_order(workdir, capsys):
    assert main(["--cfg", "job", "experiment=gaussian", "seed=3"]) == 0
    assert "seed: 3" in capsys.readouterr().out
    assert main(["seed=3", "experiment=gaussian", "--cfg", "job"]) == 0


def test_all_members_diverged_is_exit_code_3(workdir, capsys):
    wild = ["search=fixed", "trainer.optimizer.lr=1e30", "search.lr_max=1e31"]
    assert main(["experiment=gaussian", "dataset.image_size=24", "footprint=5", *TINY, *wild]) == 3
    assert "diverged" in capsys.readouterr().err


def test_an_unwritable_output_folder_is_exit_code_4(workdir, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "outputs")

    monkeypatch.setattr("sigexp.track.folder.create", refuse)
    assert main(["experiment=gaussian", "dataset.image_size=24", "footprint=5", *TINY]) == 4
    assert "outputs" in capsys.readouterr().err


def test_preview_writes_a_picture(workdir, capsys):
    assert main(["preview", "experiment=spikes", "-o", "p.png"]) == 0
    assert (workdir / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "spikes" in capsys.readouterr().out


DATASET = '''
from functools import partial
import numpy as np
from sigexp.problem import Problem, blockwise, identity, train_size
from sigexp.signal.quality import mse

def doubled(*, seed: int = 0, size: int | str = 100, test_size: int = 20, gain: float = 2.0) -> Problem:
    """Noise, and the same noise times `gain`."""
    def draw(rng, split, n):
        x = rng.standard_normal((n, 1, 8, 8), dtype=np.float32)
        return x, gain * x
    return Problem(kind="image", sample=blockwise(draw, seed=seed), loss=mse,
                   sizes={"train": train_size(size), "valid": 20, "test": test_size},
                   metrics={"mse": mse}, references={"identity": identity()}, source={"signals": "noise"})
'''
EXPERIMENT = """# @package _global_
# Noise to louder noise
dataset: {_target_: my_data.doubled, seed: 0, size: 100, test_size: 20, gain: 2.0}
footprint: 1
"""


def test_a_user_adds_a_dataset_with_one_function_and_one_yaml(workdir, capsys):
    (workdir / "my_data.py").write_text(DATASET)
    (workdir / "conf" / "experiment").mkdir(parents=True)
    (workdir / "conf" / "experiment" / "louder.yaml").write_text(EXPERIMENT)
    sigexp = [sys.executable, "-m", "sigexp"]
    listed = subprocess.run([*sigexp, "list", "experiments"], capture_output=True, text=True, check=True).stdout
    assert "louder" in listed
    assert "Noise to louder noise" in listed
    done = subprocess.run([*sigexp, "preview", "experiment=louder"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*sigexp, "experiment=louder", *TINY, "dataset.gain=3.0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "identity" in done.stdout
    assert catalog.choices("experiment")


def test_the_users_conf_may_not_replace_the_packaged_one(workdir, capsys):
    (workdir / "conf").mkdir()
    (workdir / "conf" / "config.yaml").write_text("seed: 77\n")
    assert main(["experiment=gaussian", "--cfg", "job"]) == 0
    assert "seed: 77" not in capsys.readouterr().out
