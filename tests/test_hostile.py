"""Folders from a stranger: a part of `python -m benchmarks.faults hostile`, and what it does not reach."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import yaml

from benchmarks.faults.guard import Task, watched
from sigexp import catalog, showing
from sigexp.cli import main
from sigexp.report.markup import element
from sigexp.track import documents
from sigexp.track.documents import Unreadable, load_json, load_yaml

ROOT = Path(__file__).resolve().parents[1]


def test_whatever_a_folder_holds_nothing_of_it_runs():
    """In a process of its own: what has used torch's threads cannot be forked."""
    command = [sys.executable, "-m", "benchmarks.faults", "hostile", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [int(row.split("|")[2].replace(",", "")) for row in done.stdout.splitlines()[2:]]
    assert sum(cases) > 150


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.system('true')", "os.system"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import socket; socket.socket()", "socket"),
        ("import pickle; pickle.loads(b'cos\\nsystem\\n.')", "pickle.find_class"),
        ("open('../elsewhere', 'w')", "write"),
        ("import os; os.mkdir('../elsewhere')", "os.mkdir"),
        ("open('../secret/file').read()", "read"),
        ("exec(compile('1', '../secret/file', 'exec'))", "run"),
    ],
)
def test_the_guard_sees_what_it_has_to(tmp_path, code, said):
    for name in ("work", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret/file").write_text("x")
    work = tmp_path / "work"
    (outcome,) = watched([Task(lambda: exec(code) or 0, work, [work], tmp_path / "secret")])
    assert outcome.code == -1
    assert outcome.tried[0].startswith(said)
    (outcome,) = watched([Task(lambda: (work / "mine").write_text("x") and 0, work, [work], tmp_path / "secret")])
    assert (outcome.code, outcome.tried) == (0, [])


def made(path: Path, kind: str) -> Path:
    if kind == "link":
        path.with_name("other").write_text("{}")
        path.symlink_to(path.with_name("other"))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 2**40)
    return path


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "1 TB"])
def test_only_files_of_the_folders_own_are_read(tmp_path, kind):
    with pytest.raises(Unreadable, match="cannot be read"):
        load_json(made(tmp_path / "a.json", kind))
    with pytest.raises(Unreadable, match="cannot be read"):
        load_yaml(made(tmp_path / "a.yaml", kind).parent, "a.yaml") if kind != "link" else made_link(tmp_path)
    assert documents.png(made(tmp_path / "a.png", kind) if kind != "link" else tmp_path / "a.json") == b""


def made_link(folder: Path) -> None:
    (folder / "a.yaml").symlink_to(folder / "other")
    load_yaml(folder, "a.yaml")


@pytest.mark.parametrize("loader", ["libyaml's", "Python's"])
@pytest.mark.parametrize(
    "text", [
        "a: !!timestamp x", "a: !!int ''", "a: !!bool x", "a: &a [*a]", "[" * 1000, "[" * 50_000,
        "{a: " * 101 + "}" * 101, "? {}\n: 1", "\x00", "a: \xff",
    ]
)  # fmt: skip
def test_odd_yaml_is_unreadable(tmp_path, text, loader, monkeypatch):
    if loader == "Python's":
        monkeypatch.setattr(documents, "_LOADER", yaml.SafeLoader)
    (tmp_path / "a.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(Unreadable, match=r"a\.yaml cannot be read"):
        load_yaml(tmp_path, "a.yaml")


def test_markup_and_control_characters_stay_text():
    shown = element("p", "<b>\x1b[2J\u202e\ud800", title='"><script>')
    assert shown == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;\ufffd[2J\ufffd\ufffd</p>'
    shown.encode()


def test_a_conf_in_the_folder_of_a_run_is_not_the_users(workdir, monkeypatch):
    (workdir / "conf").mkdir()
    assert catalog.user_conf() == workdir / "conf"
    runs.write(workdir / "run", runs.result("linear", {"mse": 0.1}))
    (workdir / "run/conf").mkdir()
    monkeypatch.chdir(workdir / "run")
    assert catalog.user_conf() is None


def test_a_conf_in_a_checkout_is_not_the_users(workdir, capsys):
    """Of a sigexp that is installed elsewhere, whose own claims it would repeat."""
    (workdir / "conf").mkdir()
    (workdir / "src/sigexp").mkdir(parents=True)
    assert not catalog.unused_conf()
    (workdir / "src/sigexp" / Path(catalog.__file__).name).touch()
    assert catalog.user_conf() is None
    assert main(["experiment=mine"]) == 2
    assert "no such experiment (./conf here is a checkout's or a run's, and not used)" in capsys.readouterr().err


def test_a_file_beside_the_user_hides_no_package(workdir):
    runs.write(workdir / "run", runs.result("linear", {"mse": 0.1}))
    (workdir / "yaml.py").write_text("open('PWNED', 'w')")
    (workdir / "rich.py").write_text("open('PWNED', 'w')")
    done = subprocess.run([sys.executable, "-m", "sigexp", "inspect", "run"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "linear (learned)" in done.stdout
    assert not (workdir / "PWNED").exists()


def test_tensorboard_comes_without_the_plugin_that_reads_any_file():
    from tensorboard import default

    every, ours = (
        {getattr(one, "__name__", "") for one in some} for some in (default.get_plugins(), showing.plugins())
    )
    assert every - ours == {"ProjectorPlugin"}


def test_a_sweep_without_end_is_refused(workdir, capsys):
    (workdir / "sweep").mkdir()
    task = ["seed=range(0,1000000000)", "model=a,b"]
    (workdir / "sweep/multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": {"task": task}}}))
    assert main(["compare", "sweep"]) == 2
    assert "more than 10,000 jobs" in capsys.readouterr().err
