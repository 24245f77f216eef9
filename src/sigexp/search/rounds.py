"""The loop every search runs in: train a round, score it, keep the best, ask for the next."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sigexp.population.feed import Feed
from sigexp.population.population import Population, State, join, take
from sigexp.population.shards import Shards
from sigexp.problem import Batch, Problem
from sigexp.search.base import Candidate, HParams, Round, Search

log = logging.getLogger("sigexp")
MINIBATCHES = 4  # that the population is given at a time


class Diverged(RuntimeError):
    """Every member of the population has a loss that is not finite."""


@dataclass(frozen=True)
class MemberRecord:
    """One member at the end of one round; a line of rounds.jsonl."""

    round: int
    id: int
    parent: int | None
    hparams: HParams
    samples: int  # that this member's line has learned from
    train_loss: float  # mean of the last 100 minibatches
    valid_loss: float
    valid: float  # the headline metric on validation data
    diverged: bool


@dataclass(frozen=True)
class RoundRecord:
    round: int
    members: list[MemberRecord]
    total_samples: int  # member-samples of the search so far
    round_samples: int  # of this round
    seconds: float  # of training in this round
    best: MemberRecord  # of the whole search so far
    improved: bool
    best_state: State  # of that member, P = 1


@dataclass
class Outcome:
    best: MemberRecord
    state: State  # of the best member, P = 1
    total_samples: int
    train_seconds: float
    rounds: int
    stopped: str  # why the search ended


def schedule(name: str, progress: float) -> float:
    """What multiplies the learning rate after a share `progress` in 0..1 of the budget."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))) if name == "cosine" else 1.0


def batch_step(batch_size: int) -> int:
    """What batch sizes are multiples of: a divisor of the trainer's, at most a fourth of it.

    Members with different batch sizes train together in passes that end where a minibatch does, and multiples of one
    number end at the same places.
    """
    return next(step for step in range(max(1, batch_size // 4), 0, -1) if batch_size % step == 0)


class SearchLoop:
    """One search from its first round to its last; `on_round` sees every record, `on_progress` every step."""

    def __init__(
        self,
        search: Search,
        population: Population | Shards,
        feed: Feed,
        problem: Problem,
        *,
        hparams: HParams,
        seed: int,
        lr_schedule: str,
        on_round: Callable[[RoundRecord, Population | Shards], None],
        on_progress: Callable[[int], None],
    ) -> None:
        self.search, self.population, self.feed, self.problem = search, population, feed, problem
        self.start, self.rng, self.lr_schedule = search.start(hparams), np.random.default_rng([seed, 1]), lr_schedule
        self.on_round, self.on_progress = on_round, on_progress
        size = problem.sizes["valid"]
        assert size is not None
        valid = problem.examples("valid", 0, min(size, search.valid_samples))
        self.valid = Batch(valid.inputs.to(feed.device), valid.targets.to(feed.device))
        self.batch_step = batch_step(int(hparams["batch_size"]))
        self.total = self.position = self.next_id = 0
        self.train_seconds = 0.0

    def run(self) -> Outcome:
        round_ = self.search.first(self.start, self.rng)
        candidates: list[Candidate] = []
        lineage: dict[int, int] = {}  # samples behind every candidate id
        pool: State = self.population.state()
        best: MemberRecord | None = None
        best_state: State = {}
        waited, number, stopped = 0, 0, "budget"
        while True:
            round_ = self._within_budget(round_)
            self._prepare(round_, pool)
            began = time.perf_counter()
            train_losses = self._train(round_)
            seconds = time.perf_counter() - began
            self.train_seconds += seconds
            members = self._score(number, round_, candidates, lineage, train_losses)
            if sick := [m.id for m in members if m.diverged]:
                log.warning("round %d: diverged, and rank last: members %s", number + 1, ", ".join(map(str, sick)))
            # A batch is cut to a short round's samples, but inherited as it was proposed.
            given = round_.hparams
            trained = [Candidate(m.id, h, self._score_of(m)) for m, h in zip(members, given, strict=True)]
            kept = [candidates[i] for i in round_.keep]
            after = self.population.state()
            pool = join(after, take(pool, torch.tensor(round_.keep))) if round_.keep else after
            candidates = trained + kept
            lineage = {**{c.id: lineage[c.id] for c in kept}, **{m.id: m.samples for m in members}}
            if all(math.isinf(c.score) for c in candidates):
                raise Diverged(f"all {len(candidates)} members diverged in round {number + 1}")
            champion = min(members, key=self._score_of)
            least = self._score_of(best) if best else math.inf
            if self._score_of(champion) < least:
                best = champion
                best_state = take(after, torch.tensor([members.index(champion)]))
            improved = self._score_of(champion) < least * (1 - self.search.min_improvement)
            waited = 0 if improved else waited + 1
            assert best is not None
            number += 1
            trained_samples = round_.samples * len(members)
            self.on_round(
                RoundRecord(number, members, self.total, trained_samples, seconds, best, improved, best_state),
                self.population,
            )
            if self.total >= self.search.max_samples:
                break
            if self.search.patience is not None and waited >= self.search.patience:
                stopped = f"no improvement in {waited} rounds"
                break
            following = self.search.next(candidates, self.rng)
            if following is None:
                stopped = "search ended"
                break
            if self._within_budget(following).samples < min(2, self.search.batch_min):
                break
            round_ = following
        return Outcome(best, best_state, self.total, self.train_seconds, number, stopped)

    def _within_budget(self, round_: Round) -> Round:
        left = (self.search.max_samples - self.total) // len(round_.parents)
        return replace(round_, samples=min(round_.samples, left))

    def _prepare(self, round_: Round, pool: State) -> None:
        """Give the population the round's members: fresh ones as they are, others from the pool."""
        if any(parent is not None for parent in round_.parents):
            parents = torch.tensor([parent for parent in round_.parents if parent is not None])
            self.population.load_state(take(pool, parents))
        columns = {name: [h[name] for h in round_.hparams] for name in round_.hparams[0]}
        if round_.recorded is None:
            columns["batch_size"] = [min(self._rounded(size), round_.samples) for size in columns["batch_size"]]
        self.population.set_hparams(
            {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
        )

    def _rounded(self, size: float) -> int:
        return min(max(1, round(size / self.batch_step)) * self.batch_step, self.search.batch_max)

    def _train(self, round_: Round) -> list[list[Tensor]]:
        """Advance all members over the round's examples, the next ones; every member's minibatch losses."""
        samples, count = round_.samples, len(self.population)
        largest = int(self.population.hparams["batch_size"].max())
        if round_.recorded is not None:
            self.position = round_.recorded.position
            largest = round_.recorded.largest_batch or largest
        losses: list[list[Tensor]] = [[] for _ in range(count)]
        chunk = MINIBATCHES * largest
        done = 0
        while done < samples:
            here = min(chunk, samples - done)
            progress = (self.total + done * count) / self.search.max_samples
            if round_.recorded is not None:
                first, last = round_.recorded.progress
                progress = first + (last - first) * done / samples
            self.population.lr_scale = schedule(self.lr_schedule, progress)
            for member, values in enumerate(self.population.advance(self.feed, self.position, here)):
                losses[member].append(values)
            self.position += here
            done += here
            self.on_progress(self.total + done * count)
        self.population.drop_pending()
        self.total += samples * count
        return losses

    def _score(
        self,
        number: int,
        round_: Round,
        candidates: list[Candidate],
        lineage: dict[int, int],
        losses: list[list[Tensor]],
    ) -> list[MemberRecord]:
        records = []
        valid = self._validate()
        for p, parent in enumerate(round_.parents):
            before = candidates[parent] if parent is not None else None
            recent = torch.cat(losses[p])[-100:].cpu().double()
            train = float(recent.mean()) if len(recent) else math.nan
            loss = float(valid["loss"][p])
            diverged = not (math.isfinite(train) and math.isfinite(loss))
            hparams = {name: value[p].item() for name, value in self.population.hparams.items()}
            records.append(
                MemberRecord(
                    round=number + 1,
                    id=self.next_id,
                    parent=before.id if before else None,
                    hparams=hparams,
                    samples=round_.samples + (lineage[before.id] if before else 0),
                    train_loss=train,
                    valid_loss=math.inf if diverged else loss,
                    valid=float(valid[self.problem.headline][p]),
                    diverged=diverged,
                )
            )
            self.next_id += 1
        return records

    def _validate(self) -> dict[str, Tensor]:
        """Mean validation loss and headline metric of every member: name -> [P] float64."""
        sums: dict[str, Tensor] = {}
        count = len(self.valid.inputs)
        size = max(1, min(250, 8_000_000 // self.valid.inputs[0].numel()))
        for i in range(0, count, size):
            here = Batch(*(part[i : i + size] for part in self.valid))
            values = self.population.evaluate(here, [self.problem.headline])
            for name in ("loss", self.problem.headline):
                sums[name] = sums.get(name, 0) + values[name].cpu().double().sum(1)
        return {name: total / count for name, total in sums.items()}

    def _score_of(self, member: MemberRecord) -> float:
        if member.diverged:
            return math.inf
        return member.valid_loss if self.search.selection == "valid" else member.train_loss
