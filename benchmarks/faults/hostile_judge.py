"""Whether a verb did with a stranger's folder as it should: refused it with a reason, or showed it harmlessly."""

import re
from html.parser import HTMLParser
from pathlib import Path

from benchmarks.faults.guard import Outcome

PAGES = {"report": "page.html", "compare": "compare.html", "load": "notebook.html"}  # that a verb writes
MOST_BYTES = 2**30  # that a verb may grow by on a folder of a few kB
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def judged(outcome: Outcome, must_refuse: bool, page: Path) -> str:
    """What is wrong with an outcome; 'fine' where nothing is."""
    if outcome.tried:
        return f"tried to {'; '.join(outcome.tried[:2])}"
    if outcome.code is None:
        return "took too long, or too much"
    err = outcome.err.strip()
    if outcome.code not in (0, 2) or "Traceback" in err:
        return f"exit code {outcome.code}: {err[-300:]}"
    if outcome.grown_bytes > MOST_BYTES or "not enough memory" in err:
        return f"took {outcome.grown_bytes / 2**30:.1f} GB"
    if must_refuse and outcome.code == 0:
        return "was not refused"
    if outcome.code == 2 and not 1 <= len(err.splitlines() or outcome.out.split()[:1]) <= 4:
        return f"refused in {len(err.splitlines())} lines"
    colours = re.compile(r"\x1b\[[\d;]*m")
    if steering := STEERING.search(colours.sub("", outcome.out + outcome.err)):
        return f"prints {steering[0]!r}"
    wrong = in_page(page) if page.is_file() else ""
    return f"{page.name} {wrong}" if wrong else "fine"


class Tags(HTMLParser):
    """What a page holds that a report has no use for."""

    allowed = frozenset(
        [
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "main",
            "script",
            "header",
            "footer",
            "section",
            "p",
            "h1",
            "h2",
            "h3",
            "ul",
            "li",
            "span",
            "div",
            "figure",
            "figcaption",
            "img",
            "table",
            "caption",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "small",
            "svg",
            "g",
            "text",
            "polyline",
            "circle",
            "line",
            "rect",
            "path",
            "b",
            "details",
            "summary",
            "pre",
            "dl",
            "dt",
            "dd",
            "a",
            "code",
            "input",
            "label",
        ]
    )

    def __init__(self) -> None:
        super().__init__()
        self.wrong, self.scripts = list[str](), 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        given = {name: value or "" for name, value in attrs}
        if tag not in self.allowed or any(name.startswith("on") for name in given):
            self.wrong.append(f"<{tag} {' '.join(given)}>")
        for name, starts in (("src", "data:image/png;base64,"), ("href", "./")):
            if name in given and not given[name].startswith(starts):
                self.wrong.append(f"{name}={given[name][:60]}")


def in_page(path: Path) -> str:
    """What is wrong with a page, '' for nothing."""
    text = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    if tags.wrong or tags.scripts > 1:
        return f"{tags.scripts} scripts; {'; '.join(tags.wrong[:3])}"
    if found := STEERING.search(text):
        return f"holds {found[0]!r}"
    return "" if "notebook" in path.name or "default-src 'none'" in text else "no policy"
