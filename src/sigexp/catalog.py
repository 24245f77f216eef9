"""What can be chosen: the YAML files of the packaged conf/ and of the user's own ./conf. Imports nothing heavy."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KINDS = {"experiments": "experiment", "datasets": "dataset", "models": "model", "searches": "search"}


@dataclass(frozen=True)
class Choice:
    name: str
    description: str
    models: tuple[str, ...] = ()  # of an experiment, default first
    own: bool = False  # from the user's ./conf


def conf_dir() -> Path:
    """The packaged `conf/`: inside the wheel, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    for place in (here / "conf", here.parents[1] / "conf"):
        if (place / "config.yaml").is_file():
            return place
    raise FileNotFoundError("sigexp's conf/ folder is missing: install sigexp again")


def user_conf() -> Path | None:
    """`./conf` of the working directory, where it is the user's, and not sigexp's: of a checkout, installed or not.

    In the folder of a run it is not the user's either: it came with the run, and would let in what it names itself.
    """
    conf = Path.cwd() / "conf"
    if not conf.is_dir() or conf.resolve() == conf_dir().resolve() or (conf.parent / "src/sigexp/catalog.py").is_file():
        return None
    from sigexp.track.record import is_run

    return None if is_run(conf.parent) else conf


def unused_conf() -> bool:
    """Whether there is a `./conf` that is neither the user's nor the packaged one, so that nothing in it is found."""
    conf = Path.cwd() / "conf"
    return conf.is_dir() and user_conf() is None and conf.resolve() != conf_dir().resolve()


def choices(group: str) -> list[Choice]:
    """The choices of a config group, sorted by name; the packaged ones come before the user's of the same name."""
    found: dict[str, Choice] = {}
    for conf in (conf_dir(), user_conf()):
        for path in sorted((conf / group).glob("*.yaml")) if conf else ():
            text = path.read_text(encoding="utf-8", errors="replace")
            found.setdefault(path.stem, Choice(path.stem, _description(text), _models(text), conf != conf_dir()))
    return [found[name] for name in sorted(found)]


def digests(chosen: Mapping[str, str]) -> dict[str, str | None]:
    """Digests of the conf files that a config is composed from: config.yaml, and GROUP/NAME.yaml of every choice."""
    names = [f"{group}/{name}.yaml" for group, name in sorted(chosen.items()) if name not in ("None", "")]
    return {name: digest(name) for name in ["config.yaml", *names]}


def digest(name: str) -> str | None:
    """16 hex digits of the SHA-256 of a conf file, the packaged one or else the user's; None where there is none."""
    for conf in (conf_dir(), user_conf()):
        path = conf / name if conf else None
        if path and path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return None


def _description(text: str) -> str:
    """The first comment line that is not Hydra's `@package`."""
    for line in text.splitlines():
        comment = re.match(r"#\s*(.+)", line)
        if comment and not comment[1].startswith("@package"):
            return comment[1].strip()
        if line.strip() and not comment:
            break
    return ""


def _models(text: str) -> tuple[str, ...]:
    found = re.search(r"^models:\s*\[([^\]]*)\]", text, re.MULTILINE)
    return tuple(name.strip() for name in found[1].split(",") if name.strip()) if found else ()
