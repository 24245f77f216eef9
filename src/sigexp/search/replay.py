"""Replay: the recorded schedule of one line of descent, trained again as the only member.

`sigexp replay RUN` writes the segments; a search that copies members between rounds leaves a schedule behind
(M. Jaderberg et al., 'Population Based Training of Neural Networks', 2017, appendix B.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sigexp.search.base import Candidate, Past, Recorded, Round, Search, Start


@dataclass(frozen=True, kw_only=True)
class Replay(Search):
    """segments: for every round {samples, position, progress: [first, last], hparams: {lr, momentum, weight_decay,
    batch_size}}, as `Recorded`. first_member: the initial member whose random weights the line began
    with."""

    segments: list[dict[str, Any]]
    first_member: int = 0

    def origin(self, member: int) -> int:
        return self.first_member + member

    def first(self, start: Start, rng: np.random.Generator) -> Round:
        return self.segment(0, None)

    def next(self, candidates: Sequence[Candidate], rng: np.random.Generator, past: Past, start: Start) -> Round | None:
        number = candidates[0].id + 1  # one member a round, counted from 0
        return self.segment(number, 0) if number < len(self.segments) else None

    def segment(self, number: int, parent: int | None) -> Round:
        found = self.segments[number]
        first, last = found["progress"]
        recorded = Recorded(found["position"], (first, last))
        return Round([parent], [found["hparams"]], found["samples"], recorded=recorded)
