"""Folders of finished runs, made by hand, for the tests of what reads them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image


def png(width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, format="png")
    return buffer.getvalue()


def member(id_: int, parent: int | None, round_: int, valid: float | None, lr: float = 0.1) -> dict[str, Any]:
    """A line of rounds.jsonl."""
    return {
        "round": round_, "id": id_, "parent": parent, "hparams": {"lr": lr, "momentum": 0.9, "batch_size": 20},
        "samples": 1000 * round_, "train_loss": valid, "valid_loss": valid, "valid": valid, "diverged": valid is None,
        "total_samples": 3000 * round_, "seconds": 0.5,
    }  # fmt: skip


# 0 1 2 begin; 3 and 4 descend from 1, 5 from 3; 6 diverges: the line that won is 1, 3, 5.
MEMBERS = [
    member(0, None, 1, 0.9), member(1, None, 1, 0.5, 0.2), member(2, None, 1, 0.8),
    member(3, 1, 2, 0.3, 0.3), member(4, 1, 2, 0.4), member(5, 3, 3, 0.1, 0.4), member(6, 4, 3, None),
]  # fmt: skip


def result(model: str, test: dict[str, Any], seed: int = 0, data: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "schema_version": 1, "experiment": "blur", "dataset": {"name": "blur", "source": {"signals": "drawn"}},
        "model": {"name": model}, "search": "automlp", "parameters": 226, "samples": 9000, "seconds": 10.0,
        "train_seconds": 3.0, "phases": {"training": 3.0, "testing": 4.0},
        "seeds": {"seed": seed, "dataset": data}, "device": "cpu: some", "stopped": "budget",
        "best": {"id": 5, "valid": {"loss": 0.1, "mse": 0.1}, "test": test},
        "references": {"least_squares_train": {"mse": 0.08}, "constant": {"mse": 2.0 + data}},
        "references_valid": {"constant": {"mse": 0.6}}, "claims": [], "versions": {"sigexp": "0.1.0"},
        "command": "sigexp experiment=blur", **more,
    }  # fmt: skip


def config(seed: int = 0, data: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "seed": seed, "outputs": f"somewhere/{seed}", "footprint": 5, "models": ["linear"],
        "dataset": {"_target_": "a.blur", "seed": data, "size": 100}, "model": {"_target_": "a.linear"},
        "trainer": {"optimizer": {"lr": 0.1, "name": "sgd"}}, **more,
    }  # fmt: skip


def write(
    folder: Path, found: dict[str, Any], settings: dict[str, Any] | None = None, overrides: list[str] | None = None
) -> Path:
    """A run's folder as an experiment leaves it, pictures included."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(found))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings or config()))
    (folder / "composed.yaml").write_text(yaml.safe_dump({"overrides": overrides or ["experiment=blur"]}))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in MEMBERS))
    (folder / "kernels.png").write_bytes(png())
    data = base64.b64encode(png()).decode()
    one = {"index": 3, "corner": None, "value": 0.2, "said": None, "pictures": {"input": data, "output": data}}
    lines = {"input": [[0.0, 1.0, 0.5]], "output": [[0.1, 0.9, 0.5]], "target": [[0.0, 1.0, 0.4]]}
    seen = {
        "schema_version": 1, "kind": "image", "metric": "mse", "count": 50, "window": None,
        "quantiles": [0.1, 0.2, 0.3],
        "slider": {"index": 0, "reference": "wiener", "pictures": dict.fromkeys(["input", "output", "target"], data)},
        "best": [{**one, "lines": {}}], "worst": [{**one, "pictures": {}, "lines": lines}],
    }  # fmt: skip
    (folder / "cases.json").write_text(json.dumps(seen))
    return folder
