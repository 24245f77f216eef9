"""The loop every search runs in: train a round, score it, keep the best, ask for the next."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sigexp import clock
from sigexp.population.crew import WorkerLost
from sigexp.population.feed import Feed
from sigexp.population.fused import FusedPopulation
from sigexp.population.optimizers import Schedule
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.sending import wait
from sigexp.population.shards import Shards
from sigexp.population.state import Snapshot, join, take
from sigexp.problem import Batch, Problem
from sigexp.search.base import Candidate, HParams, Round, Search, batch_step
from sigexp.search.progress import Progress, recent
from sigexp.search.records import Diverged, MemberRecord, Outcome, RoundRecord

log = logging.getLogger("sigexp")
Carried = Population | Shards | FusedPopulation
MINIBATCHES = 4  # of the trainer's size that the population is given at a time
BY_STATISTICS = 32  # the same where it learns from statistics, a minibatch in less than a millisecond
VALIDATED_VALUES = 20_000_000  # of the inputs of all members that are validated at once, 80 MB; 1,000 examples at most
MOST_LOST = 3  # times that a round begins again with new processes


def at_once(plan: Plan, batch_size: int) -> int:
    """Examples that a population is given at a time: enough to be quick, few enough to end soon where a signal asks."""
    return (BY_STATISTICS if plan.way == "moments" else MINIBATCHES) * batch_size


class SearchLoop:
    """One search from its first round to its last, or from where another one was.

    on_round sees every record, on_progress the member-samples after every step. on_pause is called between two steps,
    with the loop, and whether a round begins there; it may take `saved()`, or raise to end the search.
    """

    def __init__(
        self,
        search: Search,
        population: Carried,
        feed: Feed,
        problem: Problem,
        *,
        hparams: HParams,
        seed: int,
        lr_schedule: str,
        on_round: Callable[[RoundRecord, Carried], None],
        on_progress: Callable[[int], None],
        on_pause: Callable[["SearchLoop", bool], None] = lambda loop, begins: None,
        step: int | None = None,
    ) -> None:
        """step: examples that the population is given at a time, by default `at_once`; it changes no result."""
        self.search, self.population, self.feed, self.problem = search, population, feed, problem
        self.start, self.rng, self.lr_schedule = search.start(hparams), np.random.default_rng([seed, 1]), lr_schedule
        self.on_round, self.on_progress, self.on_pause = on_round, on_progress, on_pause
        size = problem.sizes["valid"]
        assert size is not None
        self.valid = feed.validation(min(size, search.valid_samples))
        self.chunk = step or at_once(population.plan, int(hparams["batch_size"]))
        self.batch_step = batch_step(int(hparams["batch_size"]))
        self.losses: list[list[Tensor]] = []
        self.past: list[list[Candidate]] = []  # what every round trained, as it is recorded
        self.lost = 0

    def run(self, progress: Progress | None = None, past: Sequence[Sequence[Candidate]] = ()) -> Outcome:
        """The search to its end, from `saved()` of one before where that is given, and `past` of that one."""
        self.past = [list(trained) for trained in past]
        if progress is None:
            first = self._within_budget(self.search.first(self.start, self.rng), 0)
            self.now = Progress(first)
            self._begin(first, self.population.snapshot())
        else:
            self.now = progress
            self.rng.bit_generator.state = dict(progress.rng)
            if progress.stopped is None:
                assert progress.snapshot is not None
                self._restore(progress.snapshot)
        while self.now.stopped is None:
            self._whole_round()
        assert self.now.best is not None
        return Outcome(
            self.now.best, self.now.best_state, self.now.total, self.now.train_seconds, self.now.number,
            self.now.stopped,
        )  # fmt: skip

    def saved(self) -> Progress:
        """Where the search is, for `run` of another loop."""
        snapshot = self.population.snapshot() if self.now.stopped is None else None
        losses = [recent(values) for values in self.losses]
        return replace(self.now, snapshot=snapshot, losses=losses, rng=self.rng.bit_generator.state)

    def _within_budget(self, round_: Round, total: int) -> Round:
        left = (self.search.max_samples - total) // len(round_.parents)
        return replace(round_, samples=min(round_.samples, left))

    def _begin(self, round_: Round, pool: Snapshot) -> None:
        """Give the population the round's members: fresh ones as they are, others from the pool."""
        parents = [i if parent is None else parent for i, parent in enumerate(round_.parents)]
        members = take(pool.members, torch.tensor(parents))
        columns = {name: [h[name] for h in round_.hparams] for name in round_.hparams[0]}
        if round_.recorded is None:
            columns["batch_size"] = [min(self._rounded(size), round_.samples) for size in columns["batch_size"]]
        for name, values in columns.items():
            like = members[f"hparams/{name}"]
            members[f"hparams/{name}"] = torch.tensor(values, dtype=like.dtype, device=like.device)
        kept = take(pool.members, torch.tensor(round_.keep)) if round_.keep else {}
        position = self.now.position if round_.recorded is None else round_.recorded.position
        self.now = replace(
            self.now, round=round_, done=0, kept=kept, round_seconds=0.0, position=position, snapshot=None,
            losses=[torch.empty(0)] * len(parents),
        )  # fmt: skip
        self._restore(Snapshot(members, pool.unfinished, pool.plans))
        try:
            self.on_pause(self, True)
        except WorkerLost as error:
            self._recover(error)

    def _restore(self, snapshot: Snapshot) -> None:
        """Let the population and the losses be what they were; where processes can be lost, that is kept."""
        self.losses = [[values.to(self.population.device)] for values in self.now.losses]
        apart = isinstance(self.population, Shards) and self.population.remote
        self.again = (self.now, snapshot) if apart else None
        try:
            self.population.restore(snapshot)
        except WorkerLost as error:
            self._recover(error)

    def _rounded(self, size: float) -> int:
        return min(max(1, round(size / self.batch_step)) * self.batch_step, self.search.batch_max)

    def _whole_round(self) -> None:
        """What is left of the round under way, what it came to, and the next one."""
        while True:
            try:
                self._train()
                members, after = self._score(), self.population.snapshot()
                break
            except WorkerLost as error:
                self._recover(error)
        self.lost = 0
        self._finish(members, after)

    def _recover(self, error: WorkerLost) -> None:
        """Go back to where the round began, or was taken up, with new processes; raises the error after too many."""
        assert isinstance(self.population, Shards)
        while True:
            self.lost += 1
            if self.lost > MOST_LOST or self.again is None:
                raise error
            log.warning("%s; round %d begins again in new processes", error, self.now.number + 1)
            try:
                self.population.restart()
                break
            except WorkerLost as another:  # with a node actors are lost one after the other
                error = another
        self.now, snapshot = self.again
        self._restore(snapshot)

    def _schedule(self) -> Schedule:
        """The round's share of the budget, which the learning rates follow."""
        now, budget, recorded = self.now, self.search.max_samples, self.now.round.recorded
        first, slope = now.total / budget, len(now.round.parents) / budget
        if recorded is not None:
            first, slope = recorded.progress[0], (recorded.progress[1] - recorded.progress[0]) / now.round.samples
        return Schedule(self.lr_schedule, first, slope)

    def _train(self) -> None:
        """Advance all members over the rest of the round's examples."""
        count, samples = len(self.now.round.parents), self.now.round.samples
        self.population.schedule = self._schedule()
        while self.now.done < samples:
            began = clock.seconds()
            here = min(self.chunk, samples - self.now.done)
            for member, values in enumerate(self.population.advance(self.feed, self.now.position, here)):
                self.losses[member].append(values)
            if self.now.done + here == samples:
                wait(self.feed.device)  # or what is left to do would be no training time
            seconds = self.now.round_seconds + clock.seconds() - began
            done, position = self.now.done + here, self.now.position + here
            self.now = replace(self.now, done=done, position=position, round_seconds=seconds)
            self.on_progress(self.now.total + done * count)
            if done < samples:
                self.on_pause(self, False)
        self.population.drop_pending()

    def _finish(self, members: list[MemberRecord], after: Snapshot) -> None:
        """Take the round's members into the pool, tell, and begin the next round, if there is one."""
        now, round_ = self.now, self.now.round
        if sick := [m.id for m in members if m.diverged]:
            log.warning("round %d: diverged, and rank last: members %s", now.number + 1, ", ".join(map(str, sick)))
        # A batch is cut to a short round's samples, but inherited as it was proposed.
        pairs = zip(members, round_.hparams, strict=True)
        trained = [Candidate(m.id, hparams, self._score_of(m), m.parent) for m, hparams in pairs]
        self.past.append([Candidate(m.id, m.hparams, self._score_of(m), m.parent) for m in members])
        kept = [now.candidates[i] for i in round_.keep]
        pool = after._replace(members=join(after.members, now.kept)) if kept else after
        candidates = trained + kept
        if all(math.isinf(c.score) for c in candidates):
            raise Diverged(f"all {len(candidates)} members diverged in round {now.number + 1}")
        champion = min(members, key=self._score_of)
        least = self._score_of(now.best) if now.best else math.inf
        best, best_state = now.best, now.best_state
        if best is None or self._score_of(champion) < least:
            best, best_state = champion, take(after.members, torch.tensor([members.index(champion)]))
        improved = self._score_of(champion) < least * (1 - self.search.min_improvement)
        trained_samples = round_.samples * len(members)
        self.now = now = replace(
            now,
            candidates=candidates,
            lineage={**{c.id: now.lineage[c.id] for c in kept}, **{m.id: m.samples for m in members}},
            number=now.number + 1,
            waited=0 if improved else now.waited + 1,
            total=now.total + trained_samples,
            next_id=now.next_id + len(members),
            train_seconds=now.train_seconds + now.round_seconds,
            best=best,
            best_state=best_state,
        )
        self.on_round(
            RoundRecord(now.number, members, now.total, trained_samples, now.round_seconds, best, improved, best_state),
            self.population,
        )
        following = self._following()
        if isinstance(following, Round):
            self._begin(following, pool)
        else:
            self.now = replace(now, stopped=following, kept={}, losses=[])
            self.on_pause(self, True)

    def _following(self) -> Round | str:
        """The next round, or why there is none."""
        now = self.now
        if now.total >= self.search.max_samples:
            return "budget"
        patience = self.search.rounds_to_wait(self.lr_schedule)
        if patience is not None and now.waited >= patience:
            return f"no improvement in {now.waited} rounds"
        following = self.search.next(now.candidates, self.rng, self.past, self.start)
        if following is None:
            return "search ended"
        following = self._within_budget(following, now.total)
        return following if following.samples >= min(2, self.search.batch_min) else "budget"

    def _score(self) -> list[MemberRecord]:
        records = []
        valid, now = self._validate(), self.now
        for p, parent in enumerate(now.round.parents):
            before = now.candidates[parent] if parent is not None else None
            values = recent(self.losses[p]).cpu().double()
            train = float(values.mean()) if len(values) else math.nan
            loss = float(valid["loss"][p])
            diverged = not (math.isfinite(train) and math.isfinite(loss))
            hparams = {name: value[p].item() for name, value in self.population.hparams.items()}
            records.append(
                MemberRecord(
                    round=now.number + 1,
                    id=now.next_id + p,
                    parent=before.id if before else None,
                    hparams=hparams,
                    samples=now.round.samples + (now.lineage[before.id] if before else 0),
                    train_loss=train,
                    valid_loss=math.inf if diverged else loss,
                    valid=float(valid[self.problem.headline][p]),
                    diverged=diverged,
                )
            )
        return records

    def _validate(self) -> dict[str, Tensor]:
        """Mean validation loss and headline metric of every member: name -> [P] float64."""
        sums: dict[str, Tensor] = {}
        count, members = len(self.valid.inputs), len(self.now.round.parents)
        size = max(1, min(1000, VALIDATED_VALUES // (members * self.valid.inputs[0].numel())))
        for i in range(0, count, size):
            here = Batch(*(part[i : i + size] for part in self.valid))
            values = self.population.evaluate(here, [self.problem.headline])
            for name in ("loss", self.problem.headline):
                sums[name] = sums.get(name, 0) + values[name]
        return {name: total / count for name, total in sums.items()}

    def _score_of(self, member: MemberRecord) -> float:
        if member.diverged:
            return math.inf
        return member.valid_loss if self.search.selection == "valid" else member.train_loss
