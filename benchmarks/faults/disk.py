"""A disk that is full, at each of a run's first writes and on a small file system."""

import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.faults import runs
from benchmarks.faults.table import Row
from sigexp.track.checkpoint import Checkpoints

COUNT, RESUMED = 100, 10
WORDS = [*runs.WORDS, "search.max_samples=10000", "search.round_samples=200", "search.initial_samples=200"]
# Every write from number FULL_AT on, to a file below FULL_BELOW, finds no space; so do flushes and new names.
FULL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>
static atomic_long count;
static int full(int fd) {
    const char *below = getenv("FULL_BELOW"), *at = getenv("FULL_AT");
    char link[64], path[PATH_MAX];
    if (!below || !at) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return !strncmp(path, below, strlen(below)) && atomic_fetch_add(&count, 1) + 1 >= atol(at);
}
#define FAIL_IF_FULL(fd) if (full(fd)) { errno = ENOSPC; return -1; }
ssize_t write(int fd, const void *data, size_t n) {
    FAIL_IF_FULL(fd)
    return ((ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(fd, data, n);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    FAIL_IF_FULL(fd)
    return ((ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64"))(fd, data, n, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    FAIL_IF_FULL(fd)
    return ((ssize_t(*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev"))(fd, parts, n);
}
"""


def rows(short: bool) -> list[Row]:
    if shutil.which("cc") is None:
        return [Row("disk full: needs a C compiler to be shown", 0, 0, "not run")]
    with runs.folder_for_work() as folder:
        work = Path(folder)
        known = runs.fingerprint(runs.whole(WORDS, work, "whole"))
        library = work / "full.so"
        source = work / "full.c"
        source.write_text(FULL)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        numbers = [1, 9, 40] if short else range(1, COUNT + 1)
        jobs = [partial(full_at, work, library, number, known, number % RESUMED == 9 or short) for number in numbers]
        found = list(runs.side_by_side(jobs, "disk full"))
        good = [one for one in found if not one[0]]
        resumed = [one for one in found if one[1] is not None]
        bad = next((one[0] for one in found if one[0]), "")
        return [
            Row("disk full from each of the first writes on: exit 4, one message, checkpoints whole", len(found),
                len(good), bad),
            Row("resumed with space again: the same result", len(resumed), sum(bool(one[1]) for one in resumed), ""),
            *small_file_system(work, known),
        ]  # fmt: skip


def full_at(work: Path, library: Path, number: int, known: dict, resume: bool) -> tuple[str, bool | None]:
    """What went wrong, if anything, and whether the run was resumed to the same result."""
    name = f"full{number}"
    outputs = work / name
    extra = {"LD_PRELOAD": str(library), "FULL_BELOW": f"{outputs}/", "FULL_AT": str(number)}
    run = runs.start([*WORDS, f"outputs={outputs}"], work, name, extra)
    code, said = run.process.wait(), run.log.read_text(errors="replace")
    problem = judged(code, said, outputs)
    folders = list(outputs.glob("*/*/*/config.yaml"))
    if not resume or not folders:
        return problem, None
    code = runs.start(["resume", str(folders[0].parent)], work, name).process.wait()
    return problem, code == 0 and runs.fingerprint(folders[0].parent) == known


def judged(code: int, said: str, outputs: Path) -> str:
    if code != 4:
        return f"exit {code}: {said[-300:]}"
    if "Traceback" in said or "Logging error" in said:
        return f"a traceback: {said[-600:]}"
    for path in outputs.glob("*/*/*/checkpoints"):
        told: list[str] = []
        if Checkpoints(path.parent).latest(told.append) is None and any(path.glob("*.json")):
            return f"no whole checkpoint: {told}"
    return ""


def small_file_system(work: Path, known: dict) -> list[Row]:
    """On a real one, where this user may mount one."""
    place = Path(tempfile.mkdtemp(dir=work))
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return [Row("a small file system", 0, 0, "not run: this user may not mount one")]
    try:
        run = runs.start([*WORDS, f"outputs={place}/out"], work, "small")
        code, said = run.process.wait(), run.log.read_text(errors="replace")
        problem = judged(code, said, place / "out")
        subprocess.run(["mount", "-o", "remount,size=100M", place], check=True)
        folders = list(place.glob("out/*/*/*/config.yaml"))
        same = False
        if folders:
            again = runs.start(["resume", str(folders[0].parent)], work, "small")
            same = again.process.wait() == 0 and runs.fingerprint(folders[0].parent) == known
        note = problem or f"resumed with more space: {'the same result' if same else 'another result'}"
        return [Row("a file system of 300 kB: exit 4, checkpoints whole, resumed", 1, int(not problem and same), note)]
    finally:
        subprocess.run(["umount", place], check=False)
        os.sync()
