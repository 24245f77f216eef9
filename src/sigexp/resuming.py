"""`sigexp resume RUN`: go on with a run that was interrupted or killed, from its last checkpoint.

The folder may be a stranger's: its config is checked as that of a model that is loaded, and nothing is written through
a link.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sigexp.usage import TRUST, Parser, WrongCommand

SETTINGS = r"device|trainer\.(processes|engine|tune_allocator|memory_limit)|dataset\.(images|digits)"
EPILOG = """\
The run goes on in its own folder as if nothing had happened: on a CPU the result is bit for bit that of a run which was
never interrupted, with any number of processes. A run that was killed before its first checkpoint starts again from
its config. A damaged checkpoint is left out, and the one before is used. A finished run is left as it is.

  sigexp resume outputs/bayer/deep/RUN
  sigexp resume outputs/bayer/deep/RUN trainer.processes=1"""


def resume(words: list[str]) -> int:
    """Carry out the verb."""
    parser = Parser(
        prog="sigexp resume",
        description="Go on with a run that was interrupted or killed, from its last checkpoint.",
        epilog=EPILOG,
        verbatim=True,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that is not finished")
    parser.add_argument(
        "settings", nargs="*", metavar="NAME=VALUE", help="device, trainer.engine, trainer.processes, "
        "trainer.tune_allocator, trainer.memory_limit; dataset.images or dataset.digits where they lead out of the "
        "working directory"
    )  # fmt: skip
    parser.add_argument("--trust", action="append", default=[], metavar="PREFIX", help=TRUST)
    given = parser.parse_intermixed_args(words)
    for word in given.settings:
        if not re.fullmatch(f"({SETTINGS})=.*", word, re.DOTALL):
            raise WrongCommand(f"{word}: what determines the result stays as it was; `sigexp rerun` takes a change")
    folder: Path = given.run
    check(folder)
    if (folder / "result.json").is_file():
        print(f"{folder}: finished already, nothing to resume", file=sys.stderr)
        return 0
    from sigexp import cli
    from sigexp.report.terminal import show_result

    cli.prepare(given.trust)
    done = resume_run(folder, given.settings, given.trust)
    show_result(done.result, str(done.folder))
    return 0


def resume_run(folder: Path, settings: Sequence[str] = (), trust: Sequence[str] = ()) -> Any:
    """Go on with an unfinished run; what it came to is an `experiment.Run`. Raises ValueError for what cannot be."""
    from sigexp import cli
    from sigexp.restoring import restored
    from sigexp.track import record

    check(folder)
    config, names = restored(folder, settings, trust)
    overrides = record.overrides(folder)
    return cli.start(config, names, overrides, shlex.join(["sigexp", *overrides]), again=folder)


def check(folder: Path) -> None:
    """Raise ValueError for what is no run's folder, or has links in it."""
    from sigexp.track.find import below, wrong_folder
    from sigexp.track.record import is_run

    if not is_run(folder) and not (folder / "config.yaml").is_file():
        found = below(folder) if folder.is_dir() else []
        unfinished = [run for run in found if not (run / "result.json").is_file()]
        if unfinished:
            raise WrongCommand(f"{folder}: not a run's folder; unfinished in it: {max(unfinished, key=str)}")
        raise WrongCommand(wrong_folder(folder) if not found else f"{folder}: every run in it is finished")
    for path in [*folder.iterdir(), *folder.glob("checkpoints/*")]:
        if path.is_symlink():
            raise ValueError(f"{path}: a link, through which nothing is written")
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{path}: neither a file nor a folder")
