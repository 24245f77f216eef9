"""Python's search for garbage, which is rare until torch and all else that a run needs is imported.

What imports make is never garbage, but there is half a million objects of it: looking through them takes a fifth of a
second in the course of the imports, and half a second at Python's end. For processes of our own only.
"""

import gc

RARELY = (100_000, 10, 10)  # objects, and collections of these, between two collections
_usual: list[tuple[int, int, int]] = []  # while the search is rare


def later() -> None:
    """Search rarely until `now`."""
    _usual.append(gc.get_threshold())
    gc.set_threshold(*RARELY)


def now() -> None:
    """Search as usual, in what is made from now on. Nothing where `later` was not called, as in a user's process."""
    if _usual:
        gc.freeze()
        gc.set_threshold(*_usual.pop())


def never() -> None:
    """The process is about to end."""
    gc.freeze()
