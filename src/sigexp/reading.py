"""The verbs that read finished runs and execute nothing of them: compare, report. They import no torch."""

import shlex
import sys
from pathlib import Path

from sigexp.usage import Parser, WrongCommand

REPLAY = "replay"  # what result.json of a replay says of its search


def report(words: list[str]) -> int:
    """`sigexp report RUN...`: write report.html again."""
    parser = Parser(prog="sigexp report", description="Write report.html again, from what lies in a run's folder.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a folder of runs, a sweep or a glob")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to write (RUN/report.html)")
    given = parser.parse_intermixed_args(words)
    from sigexp.report import page
    from sigexp.track.find import find
    from sigexp.track.record import printable

    records = find(given.runs, complain)
    if given.output and len(records) > 1:
        raise WrongCommand(f"-o {given.output}: one file for {len(records)} runs; name one run")
    for record in records:
        print(printable(str(page.write(record.folder, given.output))))
    return 0


def compare(words: list[str]) -> int:
    """`sigexp compare RUN...`: a table over runs."""
    parser = Parser(
        prog="sigexp compare",
        description="A table over finished runs for every experiment. Runs of one config are one row: mean and 95 % "
        "interval (Student's t) over their seeds, written as ± half of it. References stand beside them; * marks the "
        "best mean of several rows.",
        epilog="example: sigexp compare 'outputs/bayer/*' --html bayer.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a folder of runs, a sweep or a glob")
    parser.add_argument("--csv", action="store_true", help="a line for every predictor and metric, on standard output")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")
    parser.add_argument("--replays", action="store_true", help="replays too, which repeat a run's best line alone")
    given = parser.parse_intermixed_args(words)
    from rich.console import Console

    from sigexp.report import compare_tables
    from sigexp.report.compare import compare as compared
    from sigexp.report.wording import counted
    from sigexp.track import folder
    from sigexp.track.find import find
    from sigexp.track.record import printable

    records = find(given.runs, complain)
    searched = [one for one in records if one.result.get("search") != REPLAY]
    if searched and len(searched) < len(records) and not given.replays:
        complain(f"{counted(len(records) - len(searched), 'replay')} left out (--replays shows replays too)")
        records = searched
    found = compared(records)
    if given.csv:
        print(compare_tables.as_csv(found), end="")
    else:
        compare_tables.show(found, Console(highlight=False))
    if given.html:
        folder.write(given.html, compare_tables.as_page(found, given.html, shlex.join(["sigexp", "compare", *words])))
        print(printable(str(given.html)), file=sys.stderr)
    return 0


def complain(problem: str) -> None:
    from sigexp.track.record import printable

    print(f"sigexp: {printable(problem)}", file=sys.stderr)
