"""A run in a process tree of its own: how long it took to begin, how long to train, and the most memory it held."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.peers.task import Spec

ROOT = Path(__file__).parents[2]
SAMPLE_SECONDS = 0.5  # between two looks at the memory


class Failed(RuntimeError):
    """A side that did not come to its end, with the last line that it wrote."""


def measured(spec: Spec, limit: float) -> dict[str, Any]:
    """What the side found, and start-up and training in seconds, peak_bytes, seconds in all.

    limit: seconds after which the run is given up. Raises `Failed`.
    """
    with TemporaryDirectory(prefix="peers-") as place:
        folder = Path(place)
        (folder / "spec.json").write_text(json.dumps(spec.as_dict()), encoding="utf-8")
        with open(folder / "log.txt", "wb") as log:
            began = time.time()
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.side", str(folder)],
                cwd=ROOT, env=environment(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            peak = watched(process, began + limit)
        seconds = time.time() - began
        if process.returncode or not (folder / "found.json").is_file():
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise Failed(lines[-1] if lines else f"exit code {process.returncode}")
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    if "ready" in found:
        found |= {"start": found["ready"] - began, "training": found["done"] - found["ready"]}
    return {**found, "peak_bytes": peak, "seconds": seconds}


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's, while examples are drawn, as sigexp's command line has it
        "SIGEXP_DATA": str(folder / "cache"),  # a plan that is known from before would be no start
        "PYTHONWARNINGS": "ignore",
    }


def watched(process: "subprocess.Popen[bytes]", until: float) -> int:
    """Wait for a process, and for no longer: the largest memory of its tree, in bytes."""
    peak = 0
    try:
        while True:
            try:
                process.wait(SAMPLE_SECONDS)
                return peak
            except subprocess.TimeoutExpired:
                peak = max(peak, sum(map(memory, tree(process.pid))))
            if time.time() > until:
                raise Failed("it took longer than the limit")
    finally:
        if process.poll() is None:
            stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all below it."""
    below = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for pid in below:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def tree(root: int) -> list[int]:
    """A process and those below it, by their parents."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                parent = int(
                    (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
                )
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def memory(pid: int) -> int:
    """The proportional set size of a process in bytes: of a page that n processes map, an n-th."""
    with suppress(OSError, ValueError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return 0


def versions(names: Mapping[str, str]) -> str:
    """Versions of installed packages in words: name -> distribution."""
    from importlib.metadata import PackageNotFoundError, version

    said = []
    for title, name in names.items():
        with suppress(PackageNotFoundError):
            said.append(f"{title} {version(name)}")
    return ", ".join(said)
