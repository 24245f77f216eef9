"""Folders of runs as an attacker would make them: each case poisons a copy of one good run.

What a case names as `refused` are the verbs that must say no, with a reason; the others may also show the folder, which
then does no harm.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

BUILDS = frozenset({"apply", "load"})  # what builds the model of model.json
SHOWS = frozenset({"inspect", "report", "compare"})
NONE: frozenset[str] = frozenset()
TARGETS = (
    "os.system", "subprocess.call", "builtins.eval", "builtins.exec", "logging.os.system", "shutil.copyfile",
    "torch.nn.modules.module.os.system", "torch.load", "torch.hub.load", "pickle.loads", "hydra.utils.get_method",
    "hydra.utils.instantiate", "sigexp.config.instantiate", "sigexp.trust.Path", "sigexp.models.filters.nn.Conv2d",
    "sigexp.cli.main", "importlib.import_module", "numpy.load", "evil.run", "torch.nn.functional.conv2d", "os..system",
)  # fmt: skip


class Case(NamedTuple):
    """what: a row of the table. poison: changes a run's folder; its second argument is a place outside of it."""

    what: str
    name: str
    poison: Callable[[Path, Path], object]
    refused: frozenset[str] = NONE


def change(name: str, *path: str | int, to: Any) -> Callable[[Path, Path], None]:
    """Set a value in a JSON or YAML file of the folder; a function of its present value computes it."""

    def poison(folder: Path, outside: Path) -> None:
        file = folder / name
        whole = json.loads(file.read_text()) if name.endswith("json") else yaml.safe_load(file.read_text())
        node = whole
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to(node.get(path[-1])) if callable(to) else to
        file.write_text(json.dumps(whole) if name.endswith("json") else yaml.safe_dump(whole))

    return poison


def content(name: str, what: str | bytes | Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    """Replace a file of the folder."""

    def poison(folder: Path, outside: Path) -> None:
        file = folder / name
        data = what(file.read_bytes() if file.is_file() else b"") if callable(what) else what
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)

    return poison


def sparse(name: str, size: int) -> Callable[[Path, Path], None]:
    return lambda folder, outside: os.truncate(folder / name, size)


def linked(name: str) -> Callable[[Path, Path], None]:
    """Move a file out of the folder, and lay a link to it in its place."""

    def poison(folder: Path, outside: Path) -> None:
        outside.mkdir(exist_ok=True)
        shutil.move(folder / name, outside / name)
        (folder / name).symlink_to(outside / name)

    return poison


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def poison(folder: Path, outside: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return poison


def override(*words: str) -> Callable[[Path, Path], None]:
    return change("composed.yaml", "overrides", to=lambda before: [*before, *words])


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PWNED",)


def code() -> Iterator[Case]:
    """Code that a folder names."""
    what = "code named in a folder"
    for target in TARGETS:
        node = {"_target_": target, "command": "touch PWNED"}
        yield Case(what, f"model.json: {target}", change("model.json", "model", to=node), BUILDS)
        yield Case(what, f"dataset: {target}", change("config.yaml", "dataset", to=node), frozenset({"replay"}))
    inner = {"_target_": "os.system", "command": "touch PWNED"}
    fields: dict[str, Any] = {
        "_args_": ["touch PWNED"], "_partial_": True, "_recursive_": False, "_convert_": "all", "kernel_size": inner,
        "nested": {"a": [{"b": inner}]}, "env": "${oc.env:HOME}", "resolver": "${evil:1}",
        "create": "${oc.create:{_target_: os.system}}", "hydra": "${hydra:runtime.cwd}", "decode": "${oc.decode:'1'}",
    }  # fmt: skip
    for key, value in fields.items():
        yield Case(what, f"model.json: {key}", change("model.json", "model", key, to=value), BUILDS)
        yield Case(what, f"config: {key}", change("config.yaml", "model", key, to=value), frozenset({"replay"}))
    both = frozenset({"replay"})
    yield Case(what, "config: hydra", change("config.yaml", "hydra", to={"launcher": inner}), both)
    yield Case(what, "config: search", change("config.yaml", "search", to=inner))
    yield Case(what, "config: trainer", change("config.yaml", "trainer", "_target_", to="os.system"), both)
    for name, verbs in (("config.yaml", both | SHOWS | BUILDS), ("composed.yaml", SHOWS | {"rerun"})):
        tag = "a: !!python/object/apply:os.system ['touch PWNED']\n"
        yield Case(what, f"{name}: a YAML tag", content(name, tag), verbs)
    for word in (
        "hydra.launcher._target_=os.system", "hydra/launcher=joblib", "hydra.run.dir=/tmp/x", "+hydra.x=1",
        "+experiment@hydra.sweeper=gaussian", "+dataset@_global_.hydra.launcher=gaussian", "dataset._target_=os.system",
        "+model={_target_: subprocess.call, args: [touch, PWNED]}", "+model.x={a: [{_target_: os.system}]}",
        "search._target_=os.system", "+dataset.x=${oc.env:HOME}", "+dataset.x='\\${oc.env:HOME}'", "+model._args_=[1]",
        "+model._partial_=true", "seed=1,2", "seed=range(3)", "~hydra.job", "seed=${evil:1}", "no override",
    ):  # fmt: skip
        yield Case(what, f"override {word}", override(word), frozenset({"rerun"}))
    bomb = pickle.dumps(Bomb())
    yield Case(what, "pickled weights", content("model.safetensors", bomb), BUILDS)
    for name in ("cases.json", "rounds.jsonl", "examples.png", "kernels.npy", "events.out.tfevents.0.x"):
        yield Case(what, f"pickled {name}", content(name, bomb))
    yield Case(what, "pickled model.json", content("model.json", bomb), BUILDS)
    yield Case(what, "pickled result.json", content("result.json", bomb), SHOWS | {"load", "replay"})
    yield Case(what, "conf and code in the folder", own_conf, BUILDS)


def own_conf(folder: Path, outside: Path) -> None:
    """Code and a conf that offers it come with the run; verbs are called from within its folder too."""
    (folder / "evil.py").write_text("import os\nos.system('touch PWNED')\ndef run(*a, **k): os.system('touch PWNED')\n")
    for group in ("model", "dataset"):
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "evil.yaml").write_text("_target_: evil.run\n")
    change("model.json", "model", to={"_target_": "evil.run"})(folder, outside)


def paths() -> Iterator[Case]:
    """Links and paths that lead out of the folder."""
    what = "paths and links that lead out"
    read_by = {
        "config.yaml": SHOWS | BUILDS | {"replay"}, "composed.yaml": SHOWS | {"rerun"}, "model.json": BUILDS,
        "model.safetensors": BUILDS, "result.json": SHOWS | {"load", "replay"}, "rounds.jsonl": {"report", "replay"},
        "cases.json": NONE, "examples.png": NONE, "report.html": NONE, "run.log": NONE,
    }  # fmt: skip
    for name, verbs in read_by.items():
        yield Case(what, f"{name} is a link", linked(name), frozenset({*verbs, "inspect"}))
    yield Case(what, "checkpoints is a link", linked("checkpoints"), frozenset({"resume"}))
    for name in ("config.yaml", "model.json", "rounds.jsonl", "result.json", "examples.png"):
        yield Case(what, f"{name} is a pipe", replaced(name, os.mkfifo))
        yield Case(what, f"{name} is a folder", replaced(name, os.mkdir))
        yield Case(what, f"{name} is /dev/zero", replaced(name, lambda path: path.symlink_to("/dev/zero")))
    for value in ("/etc", "~", "../..", "a/../../b", "\\\\host\\share", ["/etc"]):
        yield Case(what, f"images {value}", change("config.yaml", "dataset", "images", to=value), frozenset({"replay"}))
        yield Case(what, f"override {value}", override(f"+dataset.images={json.dumps(value)}"), frozenset({"rerun"}))
    for word in ("experiment=../../x", "+model=/etc/passwd", "dataset@/x=gaussian"):
        yield Case(what, f"override {word}", override(word), frozenset({"rerun"}))
    yield Case(what, "outputs elsewhere", change("config.yaml", "outputs", to="/tmp/pwned"))
    yield Case(what, "override outputs elsewhere", override("outputs=/tmp/pwned"))
    for name in ("../../x", "/x", "", ".hidden", "a/b", "x" * 300, "a\x00b", ["x"]):
        poison = change("config.yaml", "names", "experiment", to=name)
        yield Case(what, f"name {str(name)[:9]!r}", poison, frozenset({"replay"}))
    for name in ("../../x", "/x", ".", ""):
        yield Case(what, f"model.json name {name!r}", change("model.json", "name", to=name))
    for name in ("../../config.yaml", "/etc/passwd", "a\x1b.yaml"):
        yield Case(what, f"conf {name!r}", change("composed.yaml", "conf", name, to="0" * 16), frozenset({"rerun"}))
    yield Case(what, "a sweep that names folders", sweep_elsewhere)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def sweep_elsewhere(folder: Path, outside: Path) -> None:
    """A sweep's folder whose list of runs leads to a run outside, which no verb may write into."""
    shutil.copytree(folder, outside)
    emptied(folder)
    line = {"overrides": [], "signature": "0" * 8, "folder": str(outside), "status": "done"}
    (folder / "sweep.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": {"task": ["seed=1"]}}}))
