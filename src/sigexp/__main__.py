"""`python -m sigexp` is `sigexp`."""

import os
import sys

# Python puts the working directory first, so that a file there would be imported in a package's place.
if sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from sigexp.cli import script

if __name__ == "__main__":
    script()
