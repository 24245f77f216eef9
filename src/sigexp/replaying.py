"""`sigexp replay RUN`: train the best line's recorded hyperparameter schedule alone.

The line is the best member and its parents back to the first round, out of rounds.jsonl. One member is trained as they
were: a segment for every round, with the recorded hyperparameters, on the examples that round saw. The folder may be a
stranger's: its config is checked as that of a model that is loaded.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sigexp.restoring import REPLAY, restored
from sigexp.usage import TRUST, Parser, WrongCommand

PLACE = ("position", "progress")  # of a segment in its search
REPLAY_NAME = "replay"
SETTINGS = (
    r"seed|device|outputs|dataset\.\w+|"
    r"trainer\.(threads|processes|engine|execution|memory_limit|compile|tune_allocator)"
)
EPILOG = """\
A replay is a run like any other, with `search: replay`; search.max_samples becomes what the line saw. It shows whether
the schedule alone gives what the search found: with the same seed, or with seed=1 from other weights.

Exact up to rounding: the initial weights, which seed and member determine; the examples and their order; learning
rates and their schedule, momentum, weight decay and batch sizes, which are recorded; the optimizer's state, which a
child inherits. Not exact: what draws random numbers while it trains (dropout) draws others. The weights themselves
are not in the record, so that nothing can be replayed from its middle.

  sigexp replay outputs/bayer/deep/RUN
  sigexp replay outputs/bayer/deep/RUN seed=1"""


def replay(words: list[str]) -> int:
    """Carry out the verb."""
    parser = Parser(
        prog="sigexp replay",
        description="Train the best line's recorded hyperparameter schedule alone.",
        epilog=EPILOG,
        verbatim=True,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "settings", nargs="*", metavar="NAME=VALUE", help="seed, device, outputs, dataset.*, or how to compute"
    )
    parser.add_argument("--trust", action="append", default=[], metavar="PREFIX", help=TRUST)
    given = parser.parse_intermixed_args(words)
    for word in given.settings:
        if not re.fullmatch(f"({SETTINGS})=.*", word, re.DOTALL):
            raise WrongCommand(f"{word}: a replay takes {parser._actions[2].help}; `sigexp rerun` takes all others")
    from sigexp import cli
    from sigexp.report.terminal import show_replay, show_result
    from sigexp.track import record
    from sigexp.track.find import wrong_folder

    folder: Path = given.run
    if not (folder / "result.json").is_file():
        raise WrongCommand(wrong_folder(folder))
    found = record.read(folder)
    cli.prepare(given.trust)
    config, names = restored(folder, given.settings, given.trust)
    names = replace(names, search=REPLAY_NAME)
    schedule, first = segments(folder, found.result["best"].get("id"), config["search"]["max_samples"])
    before = record.mapping(found.config.get("search"))
    if before.get("_target_") == REPLAY:
        first = as_before(schedule, before, folder)
    config["search"] = as_search(config["search"], schedule, first)
    overrides = [*found.overrides, "search=replay", *given.settings]
    done = cli.start(config, names, overrides, shlex.join(["sigexp", "replay", *words]))
    show_result(done.result, str(done.folder))
    show_replay(found.result, done.result)
    return 0


def segments(folder: Path, best: object, max_samples: int) -> tuple[list[dict[str, Any]], int]:
    """What the best line went through, round by round, and its number among the initial members.

    Raises ValueError where the record does not hold the whole line.
    """
    from sigexp.report.lineage import winning_line
    from sigexp.track import record

    members = record.members(folder)
    line = winning_line(members, best)
    whole = line and line[0].parent is None and line[0].round == 1 and line[-1].round <= len(members)
    if not whole:
        raise ValueError(f"{folder}: rounds.jsonl is damaged: it does not lead from the best member to the first round")
    begin, position = {1: 0}, {1: 0}  # of every round: member-samples of the search before it, its first example
    rounds: dict[int, list[record.Member]] = {n: [] for n in range(1, line[-1].round + 1)}
    for member in members:
        if member.round in rounds:
            rounds[member.round].append(member)
    for number, round_ in rounds.items():
        end = int(round_[0].total_samples) if round_ else 0
        begin[number + 1] = end
        position[number + 1] = position[number] + (end - begin[number]) // max(1, len(round_))
    found: list[dict[str, Any]] = []
    for before, member in zip([None, *line], line, strict=False):
        samples = int(member.samples - (before.samples if before else 0))
        if samples < 1 or samples != position[member.round + 1] - position[member.round]:
            raise ValueError(f"{folder}: rounds.jsonl is damaged: the samples of round {member.round} do not add up")
        progress = [begin[member.round] / max_samples, begin[member.round + 1] / max_samples]
        place = dict(zip(PLACE, (position[member.round], progress), strict=True))
        found.append({"samples": samples, **place, "hparams": checked(member.hparams, samples, folder)})
    return found, line[0].id


def checked(hparams: Mapping[str, float], samples: int, folder: Path) -> dict[str, float]:
    """A member's recorded hyperparameters, where they are such."""
    lr, momentum, decay, batch = (hparams.get(key, -1.0) for key in ("lr", "momentum", "weight_decay", "batch_size"))
    if not (lr > 0 and 0 <= momentum < 1 and decay >= 0 and 1 <= batch <= samples):
        raise ValueError(f"{folder}: rounds.jsonl is damaged: hyperparameters {dict(hparams)}")
    return {"lr": lr, "momentum": momentum, "weight_decay": decay, "batch_size": int(batch)}


def as_before(schedule: list[dict[str, Any]], search: Mapping[str, Any], folder: Path) -> int:
    """Give the segments of a replay's record the places that it took from its own run; returns its first member."""
    from sigexp.track.record import mapping

    known = search.get("segments")
    first = search.get("first_member")
    if not isinstance(known, list) or len(known) < len(schedule) or type(first) is not int or first < 0:
        raise ValueError(f"{folder}: config.yaml is damaged: its search has not the segments of the record")
    for segment, before in zip(schedule, known, strict=False):
        place = mapping(before)
        position, progress = place.get("position"), place.get("progress")
        shares = isinstance(progress, list) and len(progress) == 2 and all(type(x) in (int, float) for x in progress)
        if not (shares and type(position) is int and position >= 0):
            raise ValueError(f"{folder}: config.yaml is damaged: segment {str(before)[:80]!r}")
        segment.update(position=position, progress=progress)
    return first


def as_search(search: Mapping[str, Any], schedule: list[dict[str, Any]], first_member: int) -> dict[str, Any]:
    """The config's search, as the replay of a schedule."""
    from sigexp.config import Config

    return {
        **{name: value for name, value in search.items() if name in Config().search.__dict__},
        "_target_": REPLAY,
        "members": 1,
        "survivors": 1,
        "max_samples": sum(segment["samples"] for segment in schedule),
        "patience": None,
        "segments": schedule,
        "first_member": first_member,
    }
