"""Shared by all tests: one thread (two test processes run side by side), and a folder of each test's own."""

import os
from pathlib import Path

import pytest
import torch

from sigexp.config import register

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
register()


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that no test sees or leaves files beside it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
