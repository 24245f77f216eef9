"""`sigexp demonstrate`: the pages of what needs no training, computed anew.

What stands above the mark in demonstrations/NAME/README.md is written by hand and stays as it is.
"""

from collections.abc import Sequence
from datetime import date
from importlib import import_module
from pathlib import Path

from sigexp import machine, pages
from sigexp.demonstrations import DEMONSTRATIONS
from sigexp.demonstrations.page import Page, Picture
from sigexp.fields import did_you_mean
from sigexp.track import folder as folders


def select(names: Sequence[str]) -> list[str]:
    """The demonstrations named, by default all; raises ValueError for names of nothing."""
    for name in names:
        if name not in DEMONSTRATIONS:
            raise ValueError(f"{name}: no demonstration of this name{did_you_mean(name, DEMONSTRATIONS)}")
    return list(dict.fromkeys(names)) or list(DEMONSTRATIONS)


def compute(name: str) -> Page:
    found: Page = import_module(f"sigexp.demonstrations.{name}").page()
    return found


def write(names: Sequence[str], root: Path) -> list[Path]:
    """The pages of demonstrations and the overview of a gallery; the files written."""
    written = [page(name, compute(name), root / "demonstrations" / name) for name in names]
    return [*written, pages.overview(root)]


def page(name: str, computed: Page, folder: Path) -> Path:
    """demonstrations/NAME/README.md and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for part in computed.parts:
        if isinstance(part, Picture):
            folders.write(folder / f"{part.name}.png", part.png)
            part = f"![{part.meaning}]({part.name}.png)"
        parts.append(part)
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions().items())
    parts.append(f"Computed {date.today()} by `sigexp demonstrate {name}`: {versions}.")
    return pages.write(folder / "README.md", f"# {computed.title}\n\n{DEMONSTRATIONS[name]}.", "demonstrate", parts)
