"""What a demonstration gives: a title, Markdown and pictures in reading order, and the numbers that they show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A PNG, its file name without the suffix, and what it shows, in words."""

    name: str
    png: bytes
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """parts: paragraphs and tables of Markdown, and pictures. numbers: what was measured, by name, unrounded."""

    title: str
    parts: Sequence[str | Picture]
    numbers: Mapping[str, float]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
