"""Pages of the gallery: the half above the mark is written by hand and kept, the half below is measured.

And experiments/README.md, the overview of all pages there are.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigexp import catalog
from sigexp.demonstrations import DEMONSTRATIONS
from sigexp.report import claims_file
from sigexp.track import folder as folders

SIGN = "<!-- measured:"
MARK = SIGN + " what follows is written by `sigexp {} --gallery`, what stands above is kept -->"
PICTURE = re.compile(r"\]\(([^/\\()]+\.png)\)")  # linked in a page, in the page's own folder
START = """# Experiments and demonstrations

What each experiment shows, measured: `sigexp reproduce` runs and checks all of it. Demonstrations need no training:
`sigexp demonstrate` computes them."""


def write(path: Path, start: str, verb: str, parts: Sequence[str]) -> Path:
    """A page of parts, behind what stands above its mark, or for a new one `start`; `verb` is what writes it.

    Pictures that the parts before these showed, and the page no longer does, are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    above, _, below = text.partition(SIGN)
    kept = above.rstrip() if SIGN in text else start
    page = "\n\n".join([kept, MARK.format(verb), *parts]) + "\n"
    folders.write(path, page)
    for name in set(PICTURE.findall(below)) - set(PICTURE.findall(page)):
        (path.parent / name).unlink(missing_ok=True)
    return path


def overview(root: Path, found: Mapping[str, Any] | None = None) -> Path:
    """README.md of a gallery: a line for every page; with what claims.json holds, the state of those claims.

    Experiments that it does not tell of keep what the overview says of them.
    """
    path = root / "README.md"
    states = {**known_states(path), **(claim_states(found) if found else {})}
    lines = ["| page | what it shows | claims that hold |", "|---|---|---|"]
    for name in sorted(page.parent.name for page in root.glob("*/README.md")):
        lines.append(f"| [{name}]({name}/README.md) | {description(name)} | {states.get(name, '')} |")
    for name in sorted(page.parent.name for page in root.glob("demonstrations/*/README.md")):
        meaning = DEMONSTRATIONS.get(name, "")
        lines.append(f"| [{name}](demonstrations/{name}/README.md) | {meaning} | demonstration |")
    return write(path, START, "reproduce", ["\n".join(lines)])


def description(experiment: str) -> str:
    return next((choice.description for choice in catalog.choices("experiment") if choice.name == experiment), "")


def claim_states(found: Mapping[str, Any]) -> dict[str, str]:
    """Of each experiment of claims.json: how many of its claims hold, of how many that were run and set a bound."""
    held: dict[str, list[bool | None]] = {}
    for claim in found["claims"]:
        held.setdefault(claim["experiment"], []).append(claim["holds"])
    stated = claims_file.experiments()
    states = {}
    for name, outcomes in held.items():
        bounded = [outcome for outcome in outcomes if outcome is not None]
        all_of_it = len(claims_file.load(name)) if name in stated else len(outcomes)
        rest = f"; {all_of_it - len(outcomes)} more not run" if all_of_it > len(outcomes) else ""
        quick = ", small budgets" if found.get("quick") else ""
        states[name] = f"{sum(map(bool, bounded))} of {len(bounded)}{quick}{rest}"
    return states


def known_states(path: Path) -> dict[str, str]:
    """What an overview that is there says of its experiments."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        cells = [part.strip() for part in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].startswith("["):
            found[cells[0][1:].partition("]")[0]] = cells[2]
    return found
