"""`sigexp rerun RUN [NAME=VALUE ...]`: the same run again, or with a change.

The config is composed anew from the run's composed.yaml: its overrides, those of the command line in their place where
both set the same. The folder may be a stranger's: its overrides are read, checked, and only then composed.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigexp import __version__, catalog
from sigexp.usage import TRUST, Parser, WrongCommand

MOST_CHARACTERS = 5000  # of an override; the parser takes far more time than it takes characters
EPILOG = """\
Composed from composed.yaml and the conf of today. Where a conf file has changed since, rerun refuses, and shows the
command that runs the same overrides with the conf as it is. Of the folder's overrides are refused: what would be
computed or names targets that no conf offers (--trust), hydra's own settings, and paths that lead out of the working
directory, such as a folder of images: say those again.

  sigexp rerun outputs/bayer/deep/RUN
  sigexp rerun outputs/bayer/deep/RUN search.max_samples=600000
  sigexp rerun outputs/bayer/deep/RUN -m seed=1,2,3"""


def rerun(words: list[str]) -> int:
    """Carry out the verb."""
    parser = Parser(
        prog="sigexp rerun",
        usage="sigexp rerun RUN [NAME=VALUE ...] [-m] [--cfg job] [--trust PREFIX]",
        description="The same run again, with a change where one is given; Hydra's options stand behind RUN.",
        epilog=EPILOG,
        verbatim=True,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, finished or not")
    parser.add_argument("--trust", action="append", default=[], metavar="PREFIX", help=TRUST)
    given, rest = parser.parse_known_args(words)
    composed = read(given.run)
    from sigexp import cli

    cli.prepare(given.trust)
    kept = merged(given.run, composed["overrides"], rest, given.trust)
    check_conf(given.run, composed.get("conf"), [*kept, *rest])
    if composed.get("version") != __version__:
        print(f"sigexp: the run is of another version than this, {__version__}; results may differ", file=sys.stderr)
    return cli.hydra_run([*kept, *rest])


def read(folder: Path) -> dict[str, Any]:
    """What composed.yaml holds, its form checked. Raises ValueError."""
    from sigexp.track.find import wrong_folder
    from sigexp.track.record import is_run, load_yaml, mapping

    path = folder / "composed.yaml"
    if not is_run(folder):
        raise WrongCommand(wrong_folder(folder))
    if not path.is_file():
        raise WrongCommand(f"{path}: no such file; a run's folder has it")
    found = mapping(load_yaml(folder, path.name))
    overrides = found.get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(word, str) for word in overrides):
        raise ValueError(f"{path}: damaged, or none of sigexp's (no list of overrides)")
    if mapping(found.get("choices")).get("search") == "replay":
        raise WrongCommand(f"{folder}: a replay, which is not composed of conf files; `sigexp replay` it, or its run")
    return found


def merged(folder: Path, overrides: Sequence[str], rest: Sequence[str], trust: Sequence[str]) -> list[str]:
    """The folder's overrides, checked, without those that the words of the command line set anew.

    `outputs` of the folder counts only where the folder lies there. Raises ValueError for what it may not say.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from sigexp.track.record import printable
    from sigexp.trust import own_outputs

    where = folder / "composed.yaml"
    grammar = OverridesParser.create()
    typed = get_args_parser().parse_known_args(list(rest))[0].overrides
    anew = {(one.key_or_group, one.package) for one in grammar.parse_overrides(list(typed))}
    kept = []
    for word in overrides:
        try:
            if len(word) > MOST_CHARACTERS:
                raise ValueError
            one = grammar.parse_override(word)
        except (HydraException, ValueError, RecursionError) as error:
            raise ValueError(f"{where}: damaged, {printable(word)[:100]!r} is no NAME=VALUE") from error
        if (one.key_or_group, one.package) in anew:
            continue
        if one.key_or_group == "outputs":
            kept += [word] if own_outputs(folder, one.value()) else []
            continue
        check_override(one, where, trust)
        kept.append(word)
    return kept


def check_override(one: Any, where: Path, trust: Sequence[str]) -> None:
    """Raise ValueError for an override of a folder that may not be composed; `one` is Hydra's `Override`."""
    from sigexp.track.record import printable
    from sigexp.trust import check_targets, leads_out, refuse_magic, targets

    name, value = str(one.key_or_group), one.value()
    first = re.split(r"[./@]", name)[0]
    package = str(one.package or "").split(".")
    if "hydra" in (first, *package) or leads_out(name) or one.is_sweep_override():
        raise ValueError(f"{where}: sets {printable(name)!r}, which a folder may not")
    *parents, last = name.split(".")
    node: Any = {last: value}
    refuse_magic({**node, **dict.fromkeys(parents)}, where)
    check_targets(targets(node), ("dataset", "experiment", "model", "search"), trust, where)
    if leads_out(value):
        given = printable(f"{name}={value}")
        raise ValueError(f"{where}: {given} leads out of the working directory; say it again on the command line")


def check_conf(folder: Path, recorded: Any, words: Sequence[str]) -> None:
    """Refuse where a conf file that the run was composed from is another one now."""
    from sigexp.track.record import printable

    anew = printable(f"as the conf is now: sigexp {shlex.join(words)}")
    if not isinstance(recorded, Mapping) or not recorded:
        raise WrongCommand(f"{folder}: composed.yaml does not say what its conf files held; {anew}")
    names = [str(name) for name in recorded if re.fullmatch(r"[\w-]+(/[\w-][\w.-]*)*\.yaml", str(name))]
    changed = [name for name in names if catalog.digest(name) != recorded[name]]
    if changed or len(names) != len(recorded):
        raise WrongCommand(f"{folder}: changed since then: {', '.join(changed)}; {anew}")
