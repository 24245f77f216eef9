"""Folders from a stranger: whatever they hold, no code of theirs runs, nothing is started, sent, or written elsewhere.

Every case is a copy of one good run, poisoned (`hostile_cases`, `hostile_contents`), on which every verb that reads a
folder is carried out under an audit hook (`guard`). A verb refuses it with a reason and exit code 2, or shows it
harmlessly (`hostile_judge`). And the user's own run, with his own dataset and model in ./conf, still loads, applies,
reruns and replays.

    python -m benchmarks.faults hostile
"""

import gc
import importlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.faults import hostile_cases as cases
from benchmarks.faults import hostile_contents as contents
from benchmarks.faults.guard import Task, watched
from benchmarks.faults.hostile_cases import Case
from benchmarks.faults.hostile_judge import PAGES, judged
from benchmarks.faults.table import Row

TINY = [
    "experiment=gaussian", "dataset.image_size=24", "footprint=5", "dataset.size=40", "dataset.test_size=4",
    "search.max_samples=120", "search.members=2", "search.survivors=1", "search.initial_samples=20",
    "search.round_samples=20", "search.valid_samples=10", "trainer.batch_size=10", "trainer.threads=1",
    "trainer.processes=1", "trainer.tune_allocator=false",
]  # fmt: skip
SHOWING = ("inspect", "report", "compare", "csv")
READING = (*SHOWING, "apply", "rerun", "replay", "load")
SHORT = 20  # of how many cases the short form takes one


def rows(short: bool) -> list[Row]:
    """Every family of cases, and the user's own run."""
    warm()
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        root = Path(name)
        good = made(root)
        found: dict[str, list[str]] = {}
        every = chosen(short)
        typed = list(contents.wrong_types(good))[:: SHORT if short else 1]
        for what in dict.fromkeys(case.what for case in every):
            found[what] = tried([case for case in every if case.what == what], good, root)
        found[typed[0].what] = tried(typed, good, root, (*SHOWING, "load", "rerun"))
        found["the user's own run, with a conf of his own"] = own(root, short)
    table = []
    for what, told in found.items():
        wrong = [line.removesuffix(" ") for line in told if not line.endswith(": fine")]
        for line in wrong:
            print(f"{what}: {line}", file=sys.stderr)
        table.append(Row(what, len(told), len(told) - len(wrong), "; ".join(wrong[:2])[:200]))
    return table


def warm() -> None:
    """Import what the verbs need, and keep the machine's settings as they are, before anything is forked."""
    import torch

    from sigexp import verbs

    needed = ["matplotlib.font_manager", *(f"sigexp.{name}" for name in ("api", "converting", "experiment"))]
    needed += [function.rpartition(".")[0] for function, _ in verbs.VERBS.values()]
    for name in (*needed, "sigexp.report.page", "sigexp.report.compare_tables"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    gc.freeze()  # the children share what is there
    os.environ["SIGEXP_NATIVE"] = "0"  # else a compiler is started


def made(root: Path) -> Path:
    """The one good run."""
    from sigexp.cli import main

    work = root / "good"
    work.mkdir()
    (outcome,) = watched([Task(lambda: main([*TINY]), work, [], root)], trusted=True)
    assert outcome.code == 0, outcome
    (folder,) = (work / "outputs/gaussian/linear").iterdir()
    return folder


def chosen(short: bool) -> list[Case]:
    from sigexp.verbs import VERBS

    found = [*cases.code(), *cases.paths(), *contents.bombs(), *contents.markup()]
    found += contents.checkpoints() if "resume" in VERBS else []
    return random.Random(0).sample(found, len(found) // SHORT) if short else found


def tried(some: Sequence[Case], good: Path, root: Path, verbs: Sequence[str] = ()) -> list[str]:
    """What is wrong with each verb on poisoned copies; 'CASE: VERB: fine' where nothing is."""
    whole = Path(tempfile.mkdtemp(dir=root))
    planned: list[tuple[Case, str, Task]] = []
    for i, case in enumerate(some):
        work = whole / str(i)
        run, outside = work / "run", work / "outside"
        shutil.copytree(good, run)
        (work / "out").mkdir()
        case.poison(run, outside)
        for verb in verbs or verbs_for(case):
            where = run if "conf" in case.name and verb in cases.BUILDS else work
            task = Task(partial(carry_out, verb, run, work), where, [work / "out", work / "outputs", run], outside)
            planned.append((case, verb, task))
    outcomes = watched([task for _, _, task in planned])
    told = [
        f"{case.name}: {verb}: {judged(outcome, must_refuse(case, verb), task.writable[0] / PAGES.get(verb, ''))}"
        for (case, verb, task), outcome in zip(planned, outcomes, strict=True)
    ]
    shutil.rmtree(whole)
    return told


def must_refuse(case: Case, verb: str) -> bool:
    """Whether a verb may not take a folder; `resume` takes the config that `replay` takes."""
    config = case.name.startswith(("config", "dataset", "images", "name"))
    return verb in case.refused or (verb == "resume" and config and "replay" in case.refused)


def verbs_for(case: Case) -> Sequence[str]:
    from sigexp.verbs import VERBS

    resume = ("resume",) if "resume" in VERBS else ()
    return resume if case.what == "checkpoints" else (*READING, *resume)


def carry_out(verb: str, run: Path, work: Path) -> int:
    """A verb on a run's folder: the exit code."""
    from sigexp.cli import main

    out = work / "out"
    page = out / PAGES.get(verb, "")
    words = {
        "inspect": [run], "report": [run, "-o", page], "compare": [run, "--html", page],
        "csv": [run, "--csv"], "apply": [run, picture(work), "-o", out / "applied"], "rerun": [run, "--cfg", "job"],
        "replay": [run], "resume": [run],
    }  # fmt: skip
    if verb == "load":
        return loaded(run, page)
    os.environ["SIGEXP_DATA"] = str(out / "cache")
    if verb == "replay" or (verb == "resume" and os.path.lexists(run / "model.json")):
        if verb == "resume" and (run / "result.json").is_file():
            (run / "result.json").unlink()  # a finished run is not resumed
        return accepted([verb, str(run)])
    os.environ.pop("FORCE_COLOR", None)
    if verb in SHOWING:
        os.environ["FORCE_COLOR"] = "1"  # the terminal's form, whose own colours are taken out before it is judged
    return main(["compare" if verb == "csv" else verb, *map(str, words[verb])])


class Accepted(BaseException):
    """A config was accepted, and training would begin."""


def accepted(words: list[str]) -> int:
    """A verb up to where training would begin, which takes seconds and is the same for every folder."""
    from sigexp import cli

    def stop(*_: object, **__: object) -> None:
        raise Accepted

    start, cli.start = cli.start, stop
    try:
        return cli.main(words)
    except Accepted:
        return 0
    finally:
        cli.start = start


def picture(work: Path) -> Path:
    import numpy as np
    import PIL.Image

    path = work / "out/picture.png"
    if not path.exists():
        PIL.Image.fromarray(np.arange(24 * 24, dtype=np.uint8).reshape(24, 24)).save(path)
    return path


def loaded(run: Path, page: Path) -> int:
    """What a notebook does with a folder: load it, look at it, predict; 2 where that is refused."""
    import numpy as np

    import sigexp

    try:
        result = sigexp.load(run)
        print(repr(result))
        page.write_text(f"<!doctype html><table></table>{result._repr_html_()}", encoding="utf-8")
        result.predict(np.zeros((24, 24), np.float32))
    except ValueError as error:
        print(repr(str(error))[:500], file=sys.stderr)
        return 2
    return 0


OWN_CODE = """\
from torch import nn

from sigexp.datasets.gaussian import gaussian_impulses


def impulses(*, size: int = 40, seed: int = 0):
    return gaussian_impulses(image_size=24, size=size, test_size=4, seed=seed)


def net(input_shape, target_shape, *, width: int = 3):
    return nn.Conv2d(input_shape[0], target_shape[0], width, padding=width // 2)
"""
OWN_CONF = {
    "dataset/mine": "_target_: mine.impulses\nsize: 40\nseed: 0\n",
    "model/mine": "_target_: mine.net\nwidth: 5\n",
    "experiment/mine": "# @package _global_\n# mine\ndefaults: [override /dataset: mine, override /model: mine]\n",
}


def own(root: Path, short: bool = False) -> list[str]:
    """A run of the user's own dataset and model: used beside his ./conf, refused elsewhere, let in by --trust."""
    from sigexp.cli import main

    work = root / "own"
    for name, text in OWN_CONF.items():
        (work / "conf" / name).with_suffix(".yaml").parent.mkdir(parents=True, exist_ok=True)
        (work / "conf" / name).with_suffix(".yaml").write_text(text)
    (work / "mine.py").write_text(OWN_CODE)
    (work / "out").mkdir()
    settings = [word for word in TINY if word.startswith(("search.", "trainer."))]
    told = [
        called("run", lambda: main(["experiment=mine", *settings]), work, 0),
    ]
    (run,) = (work / "outputs/mine/mine").iterdir()
    for verb in ("load", "rerun") if short else ("load", "apply", "rerun", "replay", "inspect"):
        told.append(called(verb, partial(carry_out, verb, run, work), work, 0))
    elsewhere = root / "elsewhere"
    (elsewhere / "out").mkdir(parents=True)
    for verb in ("load",) if short else ("load", "apply", "replay"):
        told.append(called(f"{verb} elsewhere", partial(carry_out, verb, run, elsewhere), elsewhere, 2))
    shutil.copy(work / "mine.py", elsewhere)
    words = ["apply", str(run), str(picture(elsewhere)), "-o", str(elsewhere / "out/trusted"), "--trust", "mine"]
    if not short:
        told.append(called("replay, trained", partial(main, ["replay", str(run)]), work, 0))
    told.append(called("apply --trust elsewhere", partial(main, words), elsewhere, 0))
    return told


def called(name: str, call: Callable[[], int], where: Path, expected: int) -> str:
    """A call in a child that may write anywhere below the temporary folder, and imports the user's code."""
    (outcome,) = watched([Task(call, where, [], where)], trusted=True)
    told = "fine" if outcome.code == expected else f"exit code {outcome.code}: {outcome.err.strip()[-300:]}"
    return f"{name}: {told}"
