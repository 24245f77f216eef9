"""Where a run says what it is at."""

import io
from contextvars import ContextVar
from typing import Any

from rich.console import Console

SILENT = ContextVar("SILENT", default=False)  # of a run that takes turns with others


class Silence(Console):
    """Prints nothing, and does not even set it."""

    def print(self, *objects: Any, **settings: Any) -> None:
        pass


def progress_console() -> Console:
    """Standard error; nothing at all for a run that is to be silent."""
    return Silence(file=io.StringIO()) if SILENT.get() else Console(stderr=True, highlight=False)
