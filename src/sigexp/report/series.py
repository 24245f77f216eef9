"""What is said of several runs, one after the other or at once: how far they are, and what each came to."""

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sigexp.report.tables import number
from sigexp.report.terminal import CAPTION


@contextlib.contextmanager
def quiet(caption: str, *, live: bool = True) -> Iterator[None]:
    """Keeps a run's own progress to terminals, where it vanishes; run.log has it always.

    caption: what stands above it there. live: False where several processes would write into each other's lines.
    """
    if live and sys.stderr.isatty():
        token = CAPTION.set(caption)
        try:
            yield
        finally:
            CAPTION.reset(token)
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def headline(result: Mapping[str, Any]) -> str:
    """What a finished run came to: its first metric on test data."""
    metric, value = next(iter(result["best"]["test"].items()))
    return f"test {metric} {number(value, metric)}"


def remaining(left: Sequence[str], seconds: Mapping[str, float], at_once: int = 1) -> str:
    """An estimate of the time left: a configuration takes what it took before, or else the mean of the others.

    left: the configurations of the runs that are to come, by the names that `seconds` has.
    """
    if not left:
        return "that was the last"
    if not seconds:
        return f"{len(left)} left"
    usual = sum(seconds.values()) / len(seconds)
    most = sum(seconds.get(name, usual) for name in left) / max(1, min(at_once, len(left)))
    return f"about {most / 60:.0f} min left" if most >= 90 else f"about {most:.0f} s left"
