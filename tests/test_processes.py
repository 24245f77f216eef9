"""Jobs side by side: each is done once, in a process with its share of the cores; one lost leaves the others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sigexp import machine
from sigexp.processes import Lost, side_by_side


def described(job):
    number, folder = job
    if number == "lost":
        os._exit(3)
    Path(folder, f"{number}-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while number in (0, 1) and len({*map(str, (0, 1))} & {p.name[0] for p in Path(folder).iterdir()}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return number, os.getpid(), machine.cores()


def first(jobs):
    return jobs[0]


def last(jobs):
    return jobs[-1]


def test_two_jobs_are_under_way_at_a_time_and_processes_are_used_again(tmp_path):
    begun, ended = [], []
    jobs = [(number, str(tmp_path)) for number in range(6)]
    for job, answer in side_by_side(described, jobs, 2, first, begun.append):
        ended.append((job, answer))
        assert len(begun) - len(ended) <= 1
    assert begun == jobs
    assert sorted(job for job, _ in ended) == jobs
    assert all(job[0] == answer[0] for job, answer in ended)
    pids = {answer[1] for _, answer in ended}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {answer[2] for _, answer in ended} == {max(1, machine.cores() // 2)}
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_who_chooses_says_what_is_next(tmp_path):
    jobs = [(number, str(tmp_path)) for number in (4, 5, 6)]
    assert [answer[0] for _, answer in side_by_side(described, jobs, 1, last, id)] == [6, 5, 4]


def test_a_process_that_ends_by_itself_leaves_the_other_jobs(tmp_path):
    jobs = [(name, str(tmp_path)) for name in ("lost", 2, 3)]
    found = dict(side_by_side(described, jobs, 1, first, id))
    assert isinstance(found[jobs[0]], Lost)
    assert "status 3" in str(found[jobs[0]])
    assert [found[job][0] for job in jobs[1:]] == [2, 3]


WAITS = """
import sys, time
from pathlib import Path
from sigexp.processes import side_by_side
sys.path.insert(0, {tests!r})
from test_processes import saves
for _ in side_by_side(saves, [{folder!r}], 1, lambda jobs: jobs[0], id):
    pass
"""


def saves(folder):
    Path(folder, "begun").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path(folder, "saved").touch()
        raise


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_who_interrupts_lets_them_save_and_who_kills_leaves_none_behind(tmp_path, number):
    script = WAITS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    # By a pipe of its own, which stays open as long as any process lives.
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as main:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        main.send_signal(number)
        assert main.stdout is not None
        began = time.monotonic()
        main.stdout.read()
        assert time.monotonic() - began < 10
    assert (tmp_path / "saved").exists() == (number == signal.SIGINT)


def test_numbers_too_small_to_be_normal_are_0_in_every_thread():
    """With them the arithmetic of a saturated sigmoid is three times as slow."""
    code = """
import threading, torch
from sigexp import machine
machine.configure_torch(2, deterministic=True)
tiny, found = torch.full((1_000_000,), 1e-39), []
work = lambda: found.append(int(torch.count_nonzero(tiny * 1.0)))
work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[0, 0]\n"
