"""Progress over files and their tiles: a live line in a terminal, nothing where output is piped."""

from types import TracebackType

import rich.progress
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn


class Progress:
    """A bar on standard error that moves with every tile; lines said meanwhile stand above it."""

    def __init__(self, files: int) -> None:
        self.files, self.number = files, 0
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar = rich.progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = TaskID(0)

    def __enter__(self) -> "Progress":
        self.bar.start()
        self.task = self.bar.add_task("", total=self.files)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def begin(self, name: str) -> None:
        """The next file."""
        self.number += 1
        text = f"{self.number} of {self.files}: {escape(name)}"
        self.bar.update(self.task, completed=self.number - 1, description=text)

    def advance(self, tiles: int, of: int) -> None:
        """So many tiles of the file are done."""
        self.bar.update(self.task, completed=self.number - 1 + tiles / of)

    def say(self, console: Console, line: str) -> None:
        """A line of results, on standard output."""
        target = self.console if console.is_terminal and self.console.is_terminal else console
        target.print(line, markup=False)

    def complain(self, line: str) -> None:
        """A line of trouble, on standard error."""
        self.console.print(line, markup=False)
