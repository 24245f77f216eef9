"""Many runs that start in the same second."""

import os
import sys
import time
from pathlib import Path

from benchmarks.faults import runs
from benchmarks.faults.table import Row

COUNT = 64
WORDS = [
    "experiment=gaussian", "dataset.size=20", "dataset.test_size=4", "search.max_samples=64", "search.members=2",
    "search.survivors=1", "search.initial_samples=10", "search.round_samples=10", "search.valid_samples=20",
    "trainer.batch_size=5", "trainer.threads=1",
]  # fmt: skip
START = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "1"
import torch
torch.set_num_threads(1)
from sigexp import cli, experiment
from sigexp.track import folder
create, count = folder.create, int(sys.argv[1])
(there, here), (gate, shut) = os.pipe(), os.pipe()
def together(*arguments):
    os.write(here, b".")
    os.read(gate, 1)  # until the parent closes the other end: all go on at the same instant
    return create(*arguments)
folder.create = together
children = []
for i in range(count):
    child = os.fork()
    if child == 0:
        os.close(shut)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1), os.dup2(devnull, 2)
        os._exit(cli.main(sys.argv[2:]))
    children.append(child)
os.close(here)
while count and (arrived := os.read(there, count)):  # nothing is left to read where one has ended before
    count -= len(arrived)
os.close(shut)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(codes.count(0))
"""


def rows(short: bool) -> list[Row]:
    import subprocess

    count = 6 if short else COUNT
    with runs.folder_for_work() as folder:
        work = Path(folder)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", START, str(count), *WORDS, "outputs=out"], cwd=work, capture_output=True, text=True,
            env={**runs.environment(work), "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
        )  # fmt: skip
        folders = [path.parent for path in work.glob("out/*/*/*/result.json")]
        stamps = {path.name[:19] for path in folders}
        whole = sum((path / "report.html").is_file() for path in folders)
        note = f"{done.stdout.strip()} exit codes 0, {len(stamps)} time stamp(s), {time.perf_counter() - began:.0f} s"
        note += f" {done.stderr[-200:]}" if whole < count else ""
        return [Row(f"{count} processes start at one instant: as many folders", count, whole, note)]
