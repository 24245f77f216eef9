"""rerun, replay, inspect, doctor, completion: what they do, refuse, and leave alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import MEMBERS, png
from runs import result as made_result
from safetensors.numpy import save_file

from sigexp import catalog, completion, config, doctor, inspecting, replaying, rerunning, trust
from sigexp.cli import compose, main

TINY = [
    "experiment=gaussian", "dataset.image_size=24", "footprint=5", "dataset.size=60", "dataset.test_size=4",
    "search.max_samples=400", "search.members=4", "search.survivors=2", "search.initial_samples=50",
    "search.round_samples=30", "search.valid_samples=20", "trainer.batch_size=10", "trainer.threads=1",
    "trainer.processes=1", "trainer.schedule=cosine", "search.lr_decades=1.0",
]  # fmt: skip


def run_folder(workdir: Path) -> Path:
    (folder,) = (workdir / "outputs" / "gaussian" / "linear").iterdir()
    return folder


@pytest.fixture
def composed(workdir: Path) -> Path:
    """A run's folder with composed.yaml alone."""
    folder = workdir / "outputs" / "gaussian" / "linear" / "run"
    folder.mkdir(parents=True)
    _, names = compose(TINY)
    found = {"choices": names.chosen(), "overrides": TINY, "version": "0.1.0", "conf": dict(names.conf)}
    (folder / "composed.yaml").write_text(yaml.safe_dump(found))
    return folder


def rewrite(folder: Path, name: str = "composed.yaml", **changes: object) -> None:
    found = yaml.safe_load((folder / name).read_text())
    (folder / name).write_text(yaml.safe_dump({**found, **changes}))


def test_verbs_that_read_import_no_torch(workdir):
    folder = made(workdir / "run")
    code = (
        "import sys; from sigexp.cli import main; main(sys.argv[1:]); "
        "loaded = {'torch', 'hydra'} & set(sys.modules); assert not loaded, loaded"
    )
    for words in (["inspect", str(folder)], ["completion", "bash"], ["completion", "--candidates", "sigexp model="]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_a_replay_comes_to_what_its_line_came_to(workdir, capsys):
    assert main(TINY) == 0
    folder = run_folder(workdir)
    recorded = json.loads((folder / "result.json").read_text())
    shutil.move(folder, workdir / "kept")
    assert main(["replay", str(workdir / "kept")]) == 0
    assert "in the search" in capsys.readouterr().out
    again = run_folder(workdir)
    replayed = json.loads((again / "result.json").read_text())
    assert replayed["search"] == "replay"
    line = list(map(json.loads, (again / "rounds.jsonl").read_text().splitlines()))
    assert replayed["samples"] == replayed["budget"]["max_samples"] == recorded["best"]["samples"] < recorded["samples"]
    assert line[-1]["hparams"] == recorded["best"]["hyperparameters"]
    assert replayed["best"]["valid"]["loss"] == pytest.approx(recorded["best"]["valid"]["loss"], rel=1e-5)
    shutil.move(again, workdir / "again")
    assert main(["replay", str(workdir / "again")]) == 0
    third = json.loads((run_folder(workdir) / "result.json").read_text())
    assert third["best"]["valid"] == replayed["best"]["valid"], "a replay of a replay is the same run"


def test_a_replay_follows_the_schedule_where_the_batch_size_changes(workdir, capsys):
    assert main([*TINY, "search.max_samples=2000", "seed=1"]) == 0
    folder = run_folder(workdir)
    schedule, _ = replaying.segments(folder, json.loads((folder / "result.json").read_text())["best"]["id"], 2000)
    sizes = [segment["hparams"]["batch_size"] for segment in schedule]
    assert len(set(sizes)) > 1, "a line whose batch size changes"
    capsys.readouterr()
    assert main(["replay", str(folder), "outputs=again"]) == 0
    assert "; the same up to rounding" in capsys.readouterr().out
    assert main(["replay", str(folder), "outputs=again", "seed=5"]) == 0
    assert re.search(r"; validation loss [\d.e+]+ % (above|below) the search's", capsys.readouterr().out)


def test_a_rerun_is_composed_anew(composed, workdir, capsys):
    assert main(["rerun", str(composed), "seed=3", "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["seed"], shown["search"]["max_samples"], shown["dataset"]["image_size"]) == (3, 400, 24)
    assert main(["rerun", str(composed), "search.max_samples=500", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["search"]["max_samples"] == 500


def test_outputs_of_a_folder_count_where_it_lies_there_itself(composed, workdir):
    here, elsewhere = f"outputs={workdir / 'outputs'}", "outputs=/somewhere/else"
    assert rerunning.merged(composed, ["seed=1", here], [], ()) == ["seed=1", here]
    assert rerunning.merged(composed, ["seed=1", elsewhere], [], ()) == ["seed=1"]


def test_a_rerun_refuses_where_its_conf_has_changed(composed, workdir, capsys):
    conf = yaml.safe_load((composed / "composed.yaml").read_text())["conf"]
    assert {"config.yaml", "experiment/gaussian.yaml", "dataset/gaussian.yaml"} <= set(conf)
    assert conf["lecture/automlp-gaussian-linear.yaml"] is None
    for changed in ({**conf, "dataset/gaussian.yaml": "0" * 16}, {}, {**conf, "../../secret.yaml": "0" * 16}):
        rewrite(composed, conf=changed)
        assert main(["rerun", str(composed)]) == 2
        said = capsys.readouterr().err
        assert "sigexp experiment=gaussian" in said, "the command that runs it as the conf is now"
        assert len(said.splitlines()) == 1
    assert not any((workdir / "outputs/gaussian/linear").glob("20*"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset._target_=os.system", "os.system"),
        ("+model={_target_: subprocess.call, args: [ls]}", "subprocess.call"),
        ("+model._args_=[1]", "_args_"),
        ("hydra.run.dir=/tmp/x", "hydra.run.dir"),
        ("hydra/launcher=joblib", "hydra/launcher"),
        ("+experiment@hydra.sweeper=gaussian", "may not"),
        ("+dataset.x=${oc.env:HOME}", "plain values"),
        ("+dataset.x='\\${oc.env:HOME}'", "plain values"),
        ("dataset.images=/etc", "say it again"),
        ("dataset.images=[a,/b]", "say it again"),
        ("experiment=../../evil", "say it again"),
        ("seed=1,2", "seed"),
        ("no override", "damaged"),
    ],
)
def test_what_a_folder_may_not_say_is_refused(composed, override, said, capsys):
    rewrite(composed, overrides=["experiment=gaussian", override])
    assert main(["rerun", str(composed), "--cfg", "job"]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert len(found.err.splitlines()) <= 2
    assert not found.out


def test_what_is_said_again_on_the_command_line_is_the_users(composed):
    rewrite(composed, overrides=["experiment=median", "dataset.images=/etc"])
    assert rerunning.merged(composed, ["dataset.images=/etc"], ["dataset.images=/home"], ()) == []


def test_trust_widens_by_prefix_to_what_is_defined_there(workdir, monkeypatch):
    (workdir / "trusted_models.py").write_text(
        "from os import system\nfrom sigexp.models.filters import linear\ndef own(): ...\n"
    )
    monkeypatch.syspath_prepend(str(workdir))
    for target in ("trusted_models.own", "trusted_modelsx.own"):
        with pytest.raises(ValueError, match="neither"):
            trust.check_targets([target], ("model",), ("trusted_model",), "x")
    trust.check_targets(["trusted_models.own"], ("model",), ("trusted_models",), "x")
    with pytest.raises(ValueError, match="system"):
        trust.check_targets(["trusted_models.system"], ("model",), ("trusted_models",), "x")
    trust.check_targets(["torch.nn.Conv2d", "sigexp.models.filters.linear"], ("model",), (), "x")
    with pytest.raises(ValueError, match="Conv2d"):
        trust.check_targets(["torch.nn.Conv2d"], ("dataset",), (), "x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": {"_target_": "os.system", "command": "ls"}}, "os.system"),
        ({"model": {"_target_": "builtins.eval"}}, "builtins.eval"),
        ({"names": {"experiment": "../../x", "dataset": "d", "model": "m"}}, "names"),
        ({"seed": "${oc.env:HOME}"}, "plain values"),
        ({"seed": "many"}, "seed"),
    ],
)
def test_a_replay_refuses_what_a_config_may_not_say(workdir, changes, said, capsys):
    folder = made(workdir / "run")
    settings, _ = compose(["experiment=gaussian"])
    names = {"experiment": "gaussian", "dataset": "gaussian", "model": "linear", "search": "automlp"}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "names": names, **changes}))
    assert main(["replay", str(folder)]) == 2
    assert said in capsys.readouterr().err
    assert not (workdir / "outputs").exists()


def test_a_record_that_does_not_hold_the_line_is_told(workdir, capsys):
    folder = made(workdir / "run")
    settings, _ = compose(["experiment=gaussian"])
    names = {"experiment": "gaussian", "dataset": "gaussian", "model": "linear", "search": "automlp"}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "names": names}))
    (folder / "rounds.jsonl").write_text("\n".join(json.dumps(m) for m in MEMBERS if m["id"] != 3))
    assert main(["replay", str(folder)]) == 2
    assert "rounds.jsonl is damaged" in capsys.readouterr().err


def made(folder: Path) -> Path:
    """A finished run, by hand."""
    import numpy as np

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "dataset": {"_target_": "my.data"}}))
    (folder / "composed.yaml").write_text(yaml.safe_dump({"overrides": ["experiment=blur"]}))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(m) + "\n" for m in MEMBERS))
    (folder / "result.json").write_text(json.dumps(made_result("linear", {"mse": 0.1})))
    (folder / "model.json").write_text(json.dumps({"model": {"_target_": "my.model"}}))
    save_file({"kernel": np.zeros((2, 3, 5, 5), np.float32), "n": np.int64([1])}, folder / "model.safetensors")
    (folder / "examples.png").write_bytes(png(30, 20))
    return folder


def test_inspect_tells_files_weights_and_result(workdir, capsys):
    folder = made(workdir / "run")
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "2 x 3 x 5 x 5",
        "F32",
        "I64",
        "151",
        "7 members in 3 rounds",
        "30 x 20",
        "my.model",
        "linear (learned)",
    ):
        assert part in shown
    assert all(not line.startswith(" ") or len(line) <= 200 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"\x10", "no header"),
        ("model.safetensors", (2**63).to_bytes(8, "little") + b"{}", "no header"),
        ("result.json", b"[1", "not JSON"),
        ("result.json", b"[" * 100_000, "not JSON"),
        ("config.yaml", b"a: &a [1]\nb: *a\n", "aliases"),
        ("rounds.jsonl", b'{"id": 1}\n{"ro', "2 of 2 lines"),
        ("examples.png", png()[:-3], "cut off"),
        ("events.out.tfevents.1", b"123", "not a file of events"),
    ],
)
def test_inspect_tells_what_is_damaged(workdir, capsys, name, content, said):
    folder = made(workdir / "run")
    (folder / name).write_bytes(content)
    assert main(["inspect", str(folder)]) == 2
    assert said in capsys.readouterr().out


def test_inspect_tells_what_is_cut_off_missing_or_a_link(workdir, capsys):
    folder = made(workdir / "run")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    (folder / "composed.yaml").unlink()
    (folder / "run.log").symlink_to("/etc/passwd")
    assert main(["inspect", str(folder)]) == 2
    shown = capsys.readouterr().out
    for part in ("604 bytes of weights, the header names 608", "composed.yaml missing", "a link, not followed"):
        assert part in shown


def test_inspect_follows_no_link_and_waits_for_no_pipe(workdir, capsys):
    folder = made(workdir / "run")
    (workdir / "elsewhere.yaml").write_text("names: {experiment: secret}")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").symlink_to(workdir / "elsewhere.yaml")
    (folder / "result.json").unlink()
    os.mkfifo(folder / "result.json")
    assert main(["inspect", str(folder)]) == 2
    shown = capsys.readouterr().out
    assert "neither a file nor a folder" in shown
    assert "secret" not in shown


def test_inspect_lets_nothing_steer_the_terminal(workdir, capsys):
    folder = made(workdir / "run")
    (folder / "a\x1b[2Jb[red]c").write_text("x")
    rewrite(folder, "config.yaml", names={"experiment": "\x1b]0;title\x07[bold]x"})
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]c" in shown


def test_the_weights_of_a_header_are_the_files_own(workdir):
    folder = made(workdir / "run")
    found = {weight.name: (weight.dtype, weight.shape) for weight in inspecting.weights(folder / "model.safetensors")}
    assert found == {"kernel": ("F32", (2, 3, 5, 5)), "n": ("I64", (1,))}


def test_doctor_looks_at_everything(workdir, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "GEMM_SIZE", 32)
    monkeypatch.setattr(doctor, "GEMM_SECONDS", 0.0)
    monkeypatch.setattr("sigexp.machine.tune_allocator", lambda: True)  # it lasts as long as the process
    monkeypatch.setenv("SIGEXP_NATIVE", "0")
    assert main(["doctor"]) in (0, 1)
    shown = capsys.readouterr().out
    for part in ("Python", "GFLOP/s", "cores", "memory", "SIGEXP_NATIVE", "mnist", "outputs", "experiments"):
        assert part in shown
    assert "could not be checked" not in shown


def test_doctor_fails_where_a_need_is_not_met(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "declared", lambda: ["torch>=2.10", "no-such-thing>=3", "pooch>=99; extra == 'x'"])
    monkeypatch.setattr(doctor, "CHECKS", [("software", doctor.software), ("extras", doctor.extras)])
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "1 missing" in shown
    assert "pip install 'no-such-thing>=3'" in shown
    assert "pip install 'sigexp[x]'" in shown


def words(line: str) -> list[str]:
    return [word for word, _ in completion.candidates(line)]


def test_completion_knows_verbs_choices_fields_and_values(workdir):
    assert words("sigexp rep") == ["replay", "report", "reproduce"]
    assert words("sigexp experiment=gau") == ["experiment=gaussian"]
    assert words("sigexp experiment=bayer model=") == ["model=linear", "model=deep", "model=polyphase"]
    assert set(words("sigexp model=")) == {f"model={choice.name}" for choice in catalog.choices("model")}
    assert words("sigexp -m model=linear,de") == ["model=linear,deep"]
    assert "trainer.optimizer.lr=" in words("sigexp trainer.opt")
    assert words("sigexp trainer.optimizer.name=s") == ["trainer.optimizer.name=sgd"]
    assert words("sigexp trainer.compile=") == ["trainer.compile=true", "trainer.compile=false"]
    assert "dataset.sigma=" in words("sigexp experiment=gaussian dataset.")
    assert words("A=1 /usr/bin/sigexp ++se") == ["++search=", "++seed=", "++search."]
    assert words("sigexp inspect outputs") == words("sigexp rerun out") == words("sigexp seed=") == []
    assert words("sigexp rerun RUN trainer.thr") == ["trainer.threads="]
    assert words("sigexp list m") == ["models"]


def test_completion_names_every_field_of_the_schema():
    found = set(completion.schema().fields)
    for prefix, schema in (
        ("", config.Config), ("trainer.", config.Trainer), ("trainer.optimizer.", config.Optimizer),
        ("search.", config.Search), ("lecture.", config.Lecture), ("sweep.", config.Sweep),
    ):  # fmt: skip
        nested = {"lecture", "search", "sweep", "trainer", "optimizer", "_target_"}
        assert {f"{prefix}{name}" for name in schema.__dataclass_fields__ if name not in nested} <= found


def test_completion_sees_the_users_conf_and_offers_nothing_that_a_shell_would_run(workdir, capsys):
    (workdir / "conf/experiment").mkdir(parents=True)
    own = "# @package _global_\n# Mine\ndataset: {_target_: a.b, gain: 2.0}\n"
    (workdir / "conf/experiment/louder.yaml").write_text(own)
    (workdir / "conf/experiment/$(id).yaml").write_text(own)
    assert "dataset.gain=" in words("sigexp experiment=louder dataset.")
    assert main(["completion", "--candidates", "sigexp experiment="]) == 0
    shown = capsys.readouterr().out
    assert "experiment=louder\tMine\n" in shown
    assert "$(" not in shown


@pytest.fixture
def command(workdir: Path) -> dict[str, str]:
    """An environment in which `sigexp` is this one."""
    place = workdir / "bin"
    place.mkdir()
    (place / "sigexp").write_text(f'#!/bin/sh\nexec {sys.executable} -m sigexp "$@"\n')
    (place / "sigexp").chmod(0o755)
    return {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "HOME": str(workdir)}


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes(command):
    script = (
        'eval "$(sigexp completion bash)"; t() { COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=(sigexp); '
        '_sigexp_complete; echo "${COMPREPLY[@]}"; }; '
        't "sigexp doc"; t "sigexp experiment=bay"; t "sigexp trainer.optimizer.lr"'
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, env=command, check=True)
    assert done.stdout.split() == ["doctor", "bayer", "trainer.optimizer.lr="]


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish")
def test_fish_completes(command):
    script = 'sigexp completion fish | source; complete -C "sigexp doc"; complete -C "sigexp experiment=bay"'
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, env=command, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["doctor", "experiment=bayer"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_takes_the_script(command):
    script = 'eval "$(sigexp completion zsh)"; echo $_comps[sigexp]'
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, env=command, check=True)
    assert done.stdout.split() == ["_sigexp"]
