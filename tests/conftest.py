"""Shared by all tests: one thread (two test processes run side by side), and a folder of each test's own."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read once, when the libraries are loaded
    os.environ[name] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from sigexp.config import register  # noqa: E402

torch.set_num_threads(1)
register()


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that no test sees or leaves files beside it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="session")
def digits_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """Synthetic digits are drawn once for all test processes, and never into the user's own cache."""
    base = tmp_path_factory.getbasetemp()
    os.environ["SIGEXP_DATA"] = str((base if worker_id == "master" else base.parent) / "digits")
