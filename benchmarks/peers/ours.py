"""sigexp's side: a run as the command line starts it, in this process."""

import time
from pathlib import Path
from typing import Any

from benchmarks.peers.task import Spec
from sigexp import cli, experiment


def run(spec: Spec, folder: Path) -> dict[str, Any]:
    """When training began and ended, by time.time(), and what came out."""
    words = [*spec.words(), f"outputs={folder / 'outputs'}"]
    config, names = cli.compose(words)
    assert experiment  # imported here, before the clock of the run starts
    began = time.time()
    result = cli.start(config, names, words).result
    phases = result["phases"]
    ready = began + phases["data"] + phases["plan"]
    plan = result["plan"]
    return {
        "ready": ready,
        "done": ready + phases["training"],
        "calibration": phases["plan"],
        "steps": result["train_seconds"],
        "samples": result["samples"],
        "trials": spec.members(),
        "valid": result["best"]["valid"]["loss"],
        "test": result["best"]["test"]["mse"],
        "how": f"{plan['way']}, {plan['processes']} x {plan['threads']}",
    }
