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
print(json.dumps([alone, later, again, once]))
"""


def test_search_is_put_off_and_taken_up_once():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == [True, True, True, True]  # alone, later, again, once
