"""Runs by what a user names: a run's folder, a folder of runs, the folder of a sweep, a glob of any of them."""

import glob
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from sigexp.track import sweep
from sigexp.track.record import Record, Unreadable, is_run, load_yaml, mapping, overrides, printable, read

SWEEP = "multirun.yaml"  # what Hydra leaves in a sweep's folder; its runs lie with all others
UNFINISHED = "no result.json; run.log says how far it came"
MOST_JOBS = 10_000  # of a sweep
MOST_CHARACTERS = 5000  # of one of its overrides
STAMP = len("2026-01-01_00-00-00")


class NothingFound(ValueError):
    """None of the words led to a finished run."""


def wrong_folder(folder: Path, *, several: bool = False) -> str:
    """What is wrong with a folder that is named where a run's is expected (or several), and what to give."""
    if not folder.is_dir():
        return f"{folder}: no such folder; give the folder of a run"
    if is_run(folder):
        return f"{folder}: not finished ({UNFINISHED}); give the folder of a finished run"
    runs = below(folder)
    if not runs:
        return f"{folder}: not the folder of a run (no result.json), and none is in it"
    deep = {len(run.relative_to(folder).parts) for run in runs}
    latest = max(runs, key=lambda run: run.name)
    given = folder.joinpath(*["*"] * deep.pop()) if several and len(deep) == 1 < len(runs) else latest
    count = f"{len(runs)} runs" if len(runs) > 1 else "a run"
    return printable(f"{folder}: a folder with {count} in it, not a run; give {given}")


def find(words: Sequence[str], tell: Callable[[str], None]) -> list[Record]:
    """The finished runs of the words, each once, in their order. `tell` gets a line for everything that is none;
    raises `NothingFound` where nothing is left."""
    found: dict[Path, Record] = {}
    problems: list[str] = []
    for word in words:
        try:
            folders = list(folders_of(word))
        except Unreadable as error:
            problems.append(str(error))
            continue
        for folder in folders:
            if folder.resolve() in found:
                continue
            try:
                found[folder.resolve()] = read(folder)
            except Unreadable as error:
                problems.append(str(error))
    if not found and len(problems) == 1:
        raise NothingFound(printable(problems[0]))
    for problem in problems:
        tell(problem)
    if not found:
        raise NothingFound(f"no finished run in {', '.join(words)}; give the folder of a run, or of several")
    return list(found.values())


def folders_of(word: str) -> Iterator[Path]:
    """The folders of runs that a word names, finished or not. Raises `Unreadable` where there are none."""
    path = Path(word)
    if path.name == "result.json" and path.is_file():
        yield path.parent
    elif path.is_dir():
        yield from inside(path)
    elif glob.has_magic(word):
        places = [Path(name) for name in sorted(glob.glob(word, recursive=True)) if Path(name).is_dir()]
        if not places:
            raise Unreadable(f"{word}: matches no folder")
        for place in places:
            yield from inside(place)
    else:
        raise Unreadable(wrong_folder(path))


def inside(folder: Path) -> list[Path]:
    if is_run(folder):
        return [folder]
    if (folder / sweep.FILE).is_file():
        if runs := sweep.runs(folder):
            return runs
        raise Unreadable(f"{folder}: a sweep, of whose jobs none has begun")
    if (folder / SWEEP).is_file():
        return swept(folder)
    found = below(folder)
    if not found:
        raise Unreadable(wrong_folder(folder))
    return found


def below(folder: Path) -> list[Path]:
    """Every run's folder below another, by name."""
    found = []
    for place, names, _ in os.walk(folder):
        if is_run(Path(place)):
            found.append(Path(place))
            names.clear()  # nothing below a run is another
        names.sort()
    return found


def finished(root: Path, signature: str) -> Path | None:
    """The latest finished run of a signature in a model's folder."""
    found = [path for path in root.glob(f"*-{signature}*") if (path / "result.json").is_file()]
    return max(found, default=None)


def unfinished(root: Path, signature: str) -> Path | None:
    """The latest run of a signature in a model's folder that has no result."""
    found = [path for path in root.glob(f"*-{signature}*") if is_run(path) and not (path / "result.json").is_file()]
    return max(found, default=None)


def swept(folder: Path) -> list[Path]:
    """The runs of a sweep without sweep.jsonl, as other sweepers leave it: for each of its jobs the first run that
    began no earlier and has its overrides."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    words = mapping(mapping(mapping(load_yaml(folder, SWEEP)).get("hydra")).get("overrides")).get("task")
    try:
        parsed = OverridesParser.create().parse_overrides([str(word)[:MOST_CHARACTERS] for word in words or []])
        counts = [len(list(islice(one.sweep_iterator(), MOST_JOBS + 1))) for one in parsed if one.is_sweep_override()]
        if math.prod(counts) > MOST_JOBS:
            raise ValueError(f"more than {MOST_JOBS:,} jobs")
        jobs = [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    except (HydraException, TypeError, ValueError, RecursionError) as error:
        raise Unreadable(f"{folder}: {SWEEP} cannot be read ({' '.join(str(error).split())[:120]})") from error
    later = [run for run in below(folder.parent.parent) if run.name[:STAMP] >= folder.name[:STAMP]]
    waiting = {run: overrides(run) for run in sorted(later, key=lambda run: run.name)}
    found = []
    for job in jobs:
        run = next((run for run, given in waiting.items() if given == job), None)
        if run is not None:
            found.append(run)
            del waiting[run]
    if not found:
        raise Unreadable(f"{folder}: none of the sweep's {len(jobs)} runs lies in {folder.parent.parent}")
    return found
