"""What runs on a GPU, on the device `strict` (device/), which computes as the processor does but refuses operands from
elsewhere and counts where the host would wait for it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sigexp.population.capturing import Captured, Sight
from sigexp.population.state import join

DEVICE = Path(__file__).parent / "device"
FEW = ["dataset.size=200", "dataset.test_size=20"]

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    code = "import sys, strict_device; from pathlib import Path; strict_device.compiled(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=DEVICE)
    return folder / "strict.so"


def sigexp(library: Path, *words: str) -> list[str]:
    return [sys.executable, str(DEVICE / "strict_device.py"), str(library), *words]


def test_every_model_learns_there_what_it_learns_on_the_cpu_without_a_wait(library):
    done = subprocess.run(
        [sys.executable, "rounds.py", str(library)], cwd=DEVICE, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    trained, graphs = ([one for one in found if key in one] for key in ("apart", "graphs"))
    assert len(trained) > 80
    assert len(graphs) == 7
    assert [one for one in trained if not one["apart"] < 1e-9] == []
    assert [one for one in trained if one["waits"]] == []
    assert [one for one in graphs if one["graphs"] < 2] == []  # of passes, and of updates


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=gaussian"],  # from statistics
        ["experiment=deblur", "model=deep"],
        ["experiment=iir", "model=conv1d", "search=pbt"],
        ["experiment=spikes", "trainer.execution=sequential"],
    ],
    ids=lambda words: words[0].partition("=")[2],
)
def test_a_run_from_beginning_to_end(library, tmp_path, words):
    command = sigexp(library, *words, *FEW, "search.max_samples=2000", "device=mps", f"outputs={tmp_path}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = tmp_path.glob("*/*/*/result.json")
    assert json.loads(result.read_text())["device"].startswith("strict")


INTERRUPTED = """
import os, signal, sys
import strict_device
from sigexp import keeping

pause, seen = keeping.Keeper.pause, []

def interrupting(self, *rest):
    seen.append(rest)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    pause(self, *rest)

keeping.Keeper.pause = interrupting
strict_device.sigexp(*sys.argv[1:])
"""


def test_a_run_that_was_interrupted_goes_on(library, tmp_path):
    """What comes from a checkpoint lies on the CPU: members, and those that wait for a later round."""
    words = ["experiment=gaussian", "search=halving", "trainer.execution=together", *FEW, "search.max_samples=4000"]
    command = [sys.executable, "-c", INTERRUPTED, str(library), *words, "device=mps", f"outputs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=DEVICE)
    assert done.returncode == 130, done.stderr[-2000:]
    (checkpoints,) = tmp_path.glob("*/*/*/checkpoints")
    command = sigexp(library, "resume", str(checkpoints.parent))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (checkpoints.parent / "result.json").is_file()


def test_states_are_joined_where_the_first_is():
    first, other = ({"x": torch.ones(2, 3, device=device)} for device in ("meta", "cpu"))
    assert join(first, other)["x"].device.type == "meta"
    assert join(first, other)["x"].shape == (4, 3)


# What stands in the way of a graph.

OUTSIDE = torch.ones(4)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: [x * 2 + 1], ""),
        (lambda x: [torch.nn.functional.dropout(x)], "random numbers"),
        (lambda x: [x * 2 if x.sum() > 0 else x], "a choice that depends on data"),
        (lambda x: [x[x > 0]], "a choice that depends on data"),
        (lambda x: [x.index_put_((x > 0,), torch.ones(4))], "a choice that depends on data"),
        (lambda x: [x, torch.ones(3, device="meta")], "numbers from another device"),
        (lambda x: [x * OUTSIDE], "numbers from elsewhere"),
        (lambda x: [x[torch.arange(2)]], ""),
    ],
)
def test_what_cannot_be_captured_is_refused(function, reason):
    x = torch.ones(4)
    with Sight([x]) as sight:
        function(x)
    assert sight.refused == reason


def captured(monkeypatch, graph, inputs, function):
    """With a graph that replays as this function of the static inputs does."""
    from sigexp.population import capturing

    monkeypatch.setattr(capturing, "capture", lambda function, inputs: graph(lambda: function(*inputs)))
    return Captured(function, inputs)


def by_calling(work):
    from sigexp.population.capturing import Graph

    results = [result.detach() for result in work()]
    return Graph(lambda: [kept.copy_(new) for kept, new in zip(results, work(), strict=True)], results, 1)


def test_a_graph_changes_what_the_function_changes(monkeypatch):
    def function(total, x):
        total += x
        return [total * 2]

    total, x = torch.zeros(3), torch.arange(3.0)
    graph = captured(monkeypatch, by_calling, [total, x], function)
    assert graph.proves_right()
    assert graph.changed == [0]
    assert not total.any()
    first = graph([total, x])[0]
    graph([total, torch.ones(3)])
    assert total.tolist() == [1.0, 2.0, 3.0]
    assert first.tolist() == [0.0, 2.0, 4.0]  # not overwritten


def test_a_graph_that_gives_something_else_is_not_used(monkeypatch):
    from sigexp.population.capturing import Graph

    def forgetful(work):
        return Graph(lambda: None, [result.detach() for result in work()], 1)

    assert not captured(monkeypatch, forgetful, [torch.ones(3)], lambda x: [x * 2]).proves_right()
