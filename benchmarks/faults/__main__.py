"""Every fault and what came of it: `python -m benchmarks.faults [MODULE...] [--short]`; exit 1 where one did harm."""

import argparse
import importlib
import importlib.util
import signal
import sys
import time

from benchmarks.faults.table import Row, print_table

MODULES = (
    "kills",
    "signals",
    "disk",
    "damage",
    "starts",
    "hostile",
    "config_fuzz",
    "input_files",
    "numbers",
)  # each has `rows(short: bool) -> list[Row]`


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"{', '.join(MODULES)}; by default all")
    parser.add_argument("--short", action="store_true", help="a few cases of each")
    given = parser.parse_args()
    if unknown := [name for name in given.modules if name not in MODULES]:
        parser.error(f"{unknown[0]}: expected {', '.join(MODULES)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else what is run in the background is deaf to it
    found: list[Row] = []
    for name in given.modules or MODULES:
        whole = f"{__package__}.{name}"
        if importlib.util.find_spec(whole) is None:
            print(f"{name}: not there", file=sys.stderr)
            continue
        began = time.perf_counter()
        found += importlib.import_module(whole).rows(given.short)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    print_table(found)
    return int(any(row.passed < row.count for row in found))


if __name__ == "__main__":
    sys.exit(main())
