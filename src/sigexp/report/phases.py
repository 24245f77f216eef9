"""What a run is at, said on standard error, and how long each of its phases took.

In a terminal the line vanishes when the next phase begins; where output is piped, every phase is a plain line.
"""

from types import TracebackType

from rich.live import Live
from rich.text import Text

from sigexp import clock
from sigexp.report.console import progress_console

WORDS = {
    "data": "drawing data",
    "plan": "choosing how to compute",
    "training": "",  # which report.terminal.Terminal tells
    "testing": "testing",
    "bounds": "best linear filters",
    "report": "report",
}


class Phases:
    """The phases of one run, one after the other; a phase that comes again adds to its seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.now, self.since, self.said = "", clock.seconds(), ""
        self.console = progress_console()
        self.live: Live | None = None

    def __enter__(self) -> "Phases":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def at(self, name: str, *, checked: bool = True) -> None:
        """The run comes to a phase of WORDS.

        checked: False while an error of the user's may still end the run, whose line a plain one would stand above.
        """
        self._end()
        self.now, words = name, WORDS[name]
        if not words:
            return
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            # Refreshed by hand: a thread would compete with what is measured.
            self.live = Live(Text(words, style="dim"), console=self.console, auto_refresh=False, transient=True)
            self.live.start(refresh=True)
        elif checked and self.said != words:
            self.said = words
            self.console.print(words, soft_wrap=True)

    def so_far(self) -> dict[str, float]:
        """The seconds of all phases until now, the one under way too."""
        now = {self.now: self.seconds.get(self.now, 0.0) + clock.seconds() - self.since} if self.now else {}
        return self.seconds | now

    def finished(self) -> dict[str, float]:
        """The seconds of all phases until now, in the order in which they began."""
        self._end()
        return dict(self.seconds)

    def _end(self) -> None:
        here = clock.seconds()
        if self.live:
            self.live.stop()
            self.live = None
        if self.now:
            self.seconds[self.now] = self.seconds.get(self.now, 0.0) + here - self.since
        self.now, self.since = "", here
