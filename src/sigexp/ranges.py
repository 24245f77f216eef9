"""What numbers the settings may have: every range, with its unit, in one table.

Upper ends are far beyond what is of use; they keep a slip of the keyboard from filling the memory or the disk.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Least and largest, both allowed (but for `above`: more than `least`), and what the number counts."""

    least: float
    most: float
    what: str
    above: bool = False

    def refusal(self, value: Any) -> str | None:
        """Why a number is refused: 'a number of examples, at least 1'; None where it is not."""
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.what}, a finite one"
        if value < self.least or (self.above and value == self.least):
            return f"{self.what}, more than {self.least}" if self.above else f"{self.what}, at least {self.least:,}"
        return f"{self.what}, at most {self.most:,}" if value > self.most else None


MOST_SAMPLES = 10**15
MOST_TEST = 10_000_000  # test examples; their numbers are listed
MOST_SEED = 2**63 - 1
MOST_MEMBERS = 10_000
MOST_TAPS = 4095  # of a kernel along an axis
FLOAT32 = 3e38  # the largest number of what trains
EXAMPLES, MEMBERS, FACTOR = "a whole number of examples", "a whole number of members", "a positive number"
RATE = Range(0, FLOAT32, FACTOR, above=True)

RANGES: Mapping[str, Range] = {
    "seed": Range(0, MOST_SEED, "a whole number"),
    "footprint": Range(1, MOST_TAPS, "a whole number of pixels or samples"),
    "lecture.batch_size": Range(1, MOST_SAMPLES, EXAMPLES),
    "lecture.initial_samples": Range(1, MOST_SAMPLES, EXAMPLES),
    "lecture.round_samples": Range(1, MOST_SAMPLES, EXAMPLES),
    "lecture.max_samples": Range(1, MOST_SAMPLES, "a whole number of member-samples"),
    "lecture.weight_decay": Range(0, FLOAT32, "a number"),
    "search.members": Range(1, MOST_MEMBERS, MEMBERS),
    "search.survivors": Range(1, MOST_MEMBERS, MEMBERS),
    "search.initial_samples": Range(1, MOST_SAMPLES, EXAMPLES),
    "search.round_samples": Range(1, MOST_SAMPLES, EXAMPLES),
    "search.max_samples": Range(1, MOST_SAMPLES, "a whole number of member-samples"),
    "search.valid_samples": Range(1, MOST_SAMPLES, EXAMPLES),
    "search.batch_min": Range(1, MOST_SAMPLES, EXAMPLES),
    "search.batch_max": Range(1, MOST_SAMPLES, EXAMPLES),
    "search.patience": Range(1, MOST_SAMPLES, "auto, null or a whole number of rounds"),
    "search.lr_decades": Range(0, 30, "a number of powers of ten"),
    "search.lr_min": RATE,
    "search.lr_max": RATE,
    "search.selection_noise": Range(0, 1, "a share of the score"),
    "search.min_improvement": Range(0, 1, "a share of the score"),
    "trainer.batch_size": Range(1, MOST_SAMPLES, EXAMPLES),
    "trainer.optimizer.lr": RATE,
    "trainer.optimizer.momentum": Range(0, 0.99999, "a number"),
    "trainer.optimizer.weight_decay": Range(0, FLOAT32, "a number"),
    "trainer.clip_norm": Range(0, FLOAT32, "a positive number or null", above=True),
    "trainer.processes": Range(1, 1024, "auto or a whole number"),
    "trainer.threads": Range(1, 1024, "a whole number or null"),
    "trainer.memory_limit": Range(0, 1e6, "a positive number of GB or null", above=True),
    "dataset.seed": Range(0, MOST_SEED, "a whole number"),
    "dataset.test_size": Range(1, MOST_TEST, EXAMPLES),
}


def within(name: str, value: float, least: float, most: float, what: str, *, above: bool = False) -> None:
    """Raise ValueError where a number lies outside least..most, or is `least` where it has to be above."""
    why = Range(least, most, what, above).refusal(value)
    if why:
        raise ValueError(f"{name}={value}: expected {why}")


def out_of_range(config: Mapping[str, Any]) -> str | None:
    """What is wrong with the first number of a resolved config that lies outside its range, in a line; else None."""
    for name, allowed in RANGES.items():
        node: Any = config
        for part in name.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, bool) or not isinstance(node, (int, float)):
            continue  # null, a word such as 'auto', or of a wrong type, which others refuse
        why = allowed.refusal(node)
        if why:
            return f"{name}={node}: expected {why}"
    return None
