"""The main function of every side, python -m benchmarks.peers.side FOLDER: from spec.json to found.json in there."""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.task import PEERS, Spec

MODULES = {"ray": "ray_tune", "optuna": "optuna_pruned", "joblib": "hydra_joblib"}


def run(spec: Spec, folder: Path) -> Mapping[str, Any]:
    """A run in this process: its times, by time.time(), its samples and its losses."""
    from sigexp import machine

    machine.tune_allocator()  # before torch is loaded
    if spec.side == "probe":
        from benchmarks.peers import probe

        return probe.run(spec)
    if spec.side not in PEERS:
        from benchmarks.peers import ours

        return ours.run(spec, folder)
    return peer(spec, folder)


def peer(spec: Spec, folder: Path) -> dict[str, Any]:
    import torch

    from benchmarks.peers import plain, task
    from sigexp import cli, evaluation

    torch.set_num_threads(spec.arrangement.threads)
    config, _ = cli.compose(spec.words())
    problem, arrays = task.draw(config)
    found = importlib.import_module(f"benchmarks.peers.{MODULES[spec.side]}").search(spec, config, arrays, folder)
    model = plain.model_of(spec, config, arrays, 0)
    model.load_state_dict(found.state)
    began, ended, samples = zip(*found.segments, strict=True)
    return {
        "ready": min(began),
        "done": max(ended),
        "calibration": 0.0,
        "steps": sum(b - a for a, b in zip(began, ended, strict=True)) / spec.arrangement.workers,
        "samples": sum(samples),
        "trials": found.trials,
        "valid": found.valid,
        "test": evaluation.evaluate({"": model.eval()}, problem, "test")[""]["mse"],
        "how": str(spec.arrangement),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    spec = Spec.of(json.loads((folder / "spec.json").read_text(encoding="utf-8")))
    (folder / "found.json").write_text(json.dumps(run(spec, folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
