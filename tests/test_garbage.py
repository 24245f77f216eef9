"""When Python searches for garbage."""

import json
import subprocess
import sys

PROGRAM = """
import gc, json
from sigexp import garbage
usual, frozen = gc.get_threshold(), gc.get_freeze_count()
garbage.now()
alone = gc.get_threshold() == usual and gc.get_freeze_count() == frozen
garbage.later()
later = gc.get_threshold()[0] > usual[0]
garbage.now()
again = gc.get_threshold() == usual and gc.get_freeze_count() > frozen
frozen = gc.get_freeze_count()
kept = [[] for _ in range(1000)]
garbage.now()
once = gc.get_freeze_count() == frozen  # else every job of a sweep would leave its garbage behind
garbage.never()
print(json.dumps([alone, later, again, once, gc.get_freeze_count() >= frozen + 1000]))
"""


def test_search_is_put_off_and_taken_up_once():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == [True] * 5  # alone, later, again, once, never


COMMAND = """
import gc, sys, sigexp.cli as cli

def command():
    print(gc.get_threshold()[0])
    return main()

def end(code):
    print(gc.get_threshold()[0], gc.get_freeze_count() > 1e5, code)

main, cli.main, sys.exit = cli.main, command, end
cli.script()
"""


def test_a_command_puts_it_off_and_a_run_takes_it_up(tmp_path):
    words = ["dataset=gaussian", "model=linear", "search=fixed", "search.max_samples=200", "dataset.size=50"]
    words += ["dataset.test_size=10", f"outputs={tmp_path}", "trainer.processes=1"]
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, check=True, text=True)
    said = done.stdout.splitlines()
    assert (said[0], said[-1]) == ("100000", "700 True 0")
