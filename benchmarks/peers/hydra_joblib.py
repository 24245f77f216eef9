"""A multirun of Hydra with joblib's launcher: a job for each member."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from benchmarks.peers import task
from benchmarks.peers.plain import Found, Learner, first_members
from benchmarks.peers.task import ROUNDS, Arrays, Spec
from sigexp import machine

RUN = "run.json"


def search(spec: Spec, config: Mapping[str, Any], arrays: Arrays, folder: Path) -> Found:
    """The multirun, as `python app.py -m hydra/launcher=joblib member=0,1,...` starts it."""
    task.save(arrays, folder)
    members = first_members(config)
    given = {"spec": spec.as_dict(), "config": dict(config), "members": members}
    (folder / RUN).write_text(json.dumps(given), encoding="utf-8")
    ConfigStore.instance().store("peers", {"folder": "???", "member": 0})
    arguments = [
        "peers", "-m", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={spec.arrangement.workers}",
        f"hydra.sweep.dir={folder / 'multirun'}", "hydra/job_logging=none", "hydra/hydra_logging=none",
        f"folder={folder}", "member=" + ",".join(str(i) for i in range(len(members))),
    ]  # fmt: skip
    before, sys.argv = sys.argv, arguments
    try:
        hydra.main(version_base="1.3", config_path=None, config_name="peers")(job)()
    finally:
        sys.argv = before
    found = Found(trials=len(members))
    for member in range(len(members)):
        state = torch.load(folder / f"{member}.pt", weights_only=True)
        found.add(state["segments"], state["valid"], state["state"])
    return found


@cache
def known(folder: Path) -> tuple[Spec, dict[str, Any], list[Any], Arrays]:
    """What a run's jobs have in common; joblib's processes do one after the other, and read it once."""
    machine.tune_allocator()
    given = json.loads((folder / RUN).read_text(encoding="utf-8"))
    return Spec.of(given["spec"]), given["config"], given["members"], task.mapped(folder)


def job(cfg: DictConfig) -> None:
    """One member, from its initial weights to the file of its best ones."""
    folder, member = Path(cfg.folder), int(cfg.member)
    spec, config, members, arrays = known(folder)
    torch.set_num_threads(spec.arrangement.threads)
    learner = Learner(spec, config, arrays, member, spec.round_samples() * ROUNDS)
    learner.lr, learner.batch_size = members[member]["lr"], int(members[member]["batch_size"])
    segments = [learner.round(spec.round_samples())[1] for _ in range(ROUNDS)]
    state = {"segments": segments, "valid": learner.best, "state": learner.best_model}
    torch.save(state, folder / f"{member}.pt")
