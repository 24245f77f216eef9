"""`python -m sigexp` is `sigexp`."""

from sigexp.cli import script

if __name__ == "__main__":
    script()
