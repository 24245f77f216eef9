"""What a module of faults found, as a table in Markdown."""

from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One kind of fault: how many cases were tried, how many of them came out as they should, and what else to know."""

    what: str
    count: int
    passed: int
    note: str


def print_table(rows: Sequence[Row]) -> None:
    print("| fault | cases | passed | |")
    print("|---|---|---|---|")
    for row in rows:
        note = " ".join(row.note.split()).replace("|", "\\|")
        print(f"| {row.what} | {row.count:,} | {row.passed:,} | {note} |")
