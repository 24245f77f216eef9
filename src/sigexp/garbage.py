"""Python's search for garbage, which is put off until everything is imported.

What imports make is never garbage, but there is half a million objects of it: looking through them takes a fifth of a
second in the course of the imports, and half a second at Python's end. For processes of our own only.
"""

import gc

RARELY = (100_000, 10, 10)  # objects, and collections of these, between two collections
USUAL = gc.get_threshold()


def later() -> None:
    """Search rarely until `now`."""
    gc.set_threshold(*RARELY)


def now() -> None:
    """Search as usual, in what is made from now on. Nothing where `later` was not called, as in a user's process."""
    if gc.get_threshold() == RARELY:
        gc.freeze()
        gc.set_threshold(*USUAL)


def never() -> None:
    """The process is about to end."""
    gc.freeze()
