"""Short forms of `python -m benchmarks.faults`: real processes, real kills."""

import pytest

from benchmarks.faults import damage, disk, kills, signals, starts


@pytest.mark.parametrize("module", [kills, signals, disk, damage, starts], ids=lambda module: module.__name__[18:])
def test_nothing_is_lost(module):
    found = module.rows(short=True)
    assert found
    for row in found:
        assert row.passed == row.count, f"{row.what}: {row.passed} of {row.count}; {row.note}"
