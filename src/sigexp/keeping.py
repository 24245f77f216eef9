"""What keeps a run from being lost: when its state is saved, and how it is taken up again."""

import logging
import math
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

from sigexp import clock
from sigexp.config import ConfigError
from sigexp.population.calibrate import Calibration
from sigexp.population.population import Population
from sigexp.report.board import Board
from sigexp.report.phases import Phases
from sigexp.search.base import Candidate
from sigexp.search.progress import Progress, decode, encode, hparams_of, number, plan_of
from sigexp.search.records import MemberRecord, RoundRecord
from sigexp.search.rounds import SearchLoop
from sigexp.stopping import Request
from sigexp.track import record
from sigexp.track.checkpoint import Checkpoint, Checkpoints

log = logging.getLogger("sigexp")


@dataclass
class Keeper:
    """The checkpoints of one run.

    signature: of the run. resumed: what it goes on from, None at a beginning.
    """

    checkpoints: Checkpoints
    signature: str
    phases: Phases
    resumed: Checkpoint | None = None
    began: float = field(default_factory=clock.seconds)

    @classmethod
    def of(cls, folder: Path, signature: str, phases: Phases, *, again: bool) -> "Keeper":
        """again: whether the run may have checkpoints; its record is cut to what belongs to the one that is taken.

        Raises ConfigError where that is of another config, or of other data.
        """
        keeper = cls(Checkpoints(folder), signature, phases)
        if not again:
            return keeper
        keeper.resumed = found = keeper.checkpoints.latest(lambda line: log.warning("%s", line))
        if found is not None and found.data.get("signature") != signature:
            raise ConfigError(
                f"{folder}: its checkpoint is of another config, other data or another version of sigexp; "
                "`sigexp rerun` starts it anew"
            )
        keeper.checkpoints.clean(found.files if found else {})
        if found is None:
            log.warning("no checkpoint: the run starts again from its config")
        else:
            log.info("taken up after %s rounds", found.data.get("number"))
            spent = record.numbers(found.data.get("phases"))
            phases.seconds.update({name: seconds for name, seconds in spent.items() if seconds is not None})
        return keeper

    @property
    def pictured(self) -> int:
        """The member-samples at which the run was last pictured; -1 where it never was."""
        step = self.resumed.data.get("pictured") if self.resumed else None
        return step if type(step) is int else -1

    @property
    def seconds_before(self) -> float:
        """That the run took before it was taken up."""
        return record.finite(self.resumed.data.get("seconds")) or 0.0 if self.resumed else 0.0

    def pause(self, loop: SearchLoop, begins: bool, request: Request, calibration: Calibration, board: Board) -> None:
        """Between two steps: save where that is due, and end where a signal asked for it."""
        ended = loop.now.stopped is not None
        if request or ended or (loop.now.seen() and self.checkpoints.due(begins)):  # the config has what comes before
            if request:
                board.catch_up()
            now = loop.saved()
            tensors, data = encode(now)
            data |= {
                "signature": self.signature,
                "calibration": asdict(calibration),
                "pictured": board.pictured,
                "phases": self.phases.so_far(),
                "seconds": self.seconds_before + clock.seconds() - self.began,
            }
            self.checkpoints.save(tensors, data)
            if request:
                log.info("saved after %d member-samples", now.seen())
                request.raise_noted(f"{now.seen():,} of {loop.search.max_samples:,} member-samples are saved")
        request.raise_noted()

    def progress(self, population: Population) -> tuple[Progress, Calibration]:
        """Where the search of the checkpoint is, and how it was computed. Raises ConfigError where the checkpoint is
        not of such a population."""
        assert self.resumed is not None
        try:
            found = self.resumed.data["calibration"]
            rates = {str(name): number(rate) for name, rate in found["rates"].items()}
            calibration = Calibration(plan_of(found["plan"]), rates, number(found["seconds"]), bool(found["cached"]))
            progress = decode(self.resumed.tensors, self.resumed.data, population.view())
            if progress.snapshot is not None and len(progress.snapshot.plans) != calibration.plan.shards:
                raise ValueError("parts")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ConfigError(
                f"{self.checkpoints.folder}: not of this run, or of another version of sigexp ({error})"
            ) from error
        return progress, calibration

    def past(self, selection: str) -> list[list[Candidate]]:
        """What the rounds before have trained, from the record."""
        if self.resumed is None:
            return []

        def score(one: MemberRecord) -> float:
            return math.inf if one.diverged else one.valid_loss if selection == "valid" else one.train_loss

        return [[Candidate(m.id, m.hparams, score(m), m.parent) for m in trained] for trained in self._members()]

    def rounds(self) -> list[RoundRecord]:
        """The rounds before, without weights; `best` is in all of them the best of all."""
        if self.resumed is None:
            return []
        rounds, best = self._members(), record.mapping(self.resumed.data.get("best")).get("id")
        found = [one for trained in rounds for one in trained if one.id == best]
        return [
            RoundRecord(trained[0].round, trained, int(lines[0].total_samples), 0, 0.0, found[0], False, {})
            for trained, lines in zip(rounds, self._lines(), strict=True)
            if found
        ]

    def _lines(self) -> list[list[record.Member]]:
        lines = record.members(self.checkpoints.run) if self.resumed else []
        return [list(lines) for _, lines in groupby(lines, key=lambda line: line.round)]

    def _members(self) -> list[list[MemberRecord]]:
        return [[as_before(line) for line in lines] for lines in self._lines()]


def as_before(line: record.Member) -> MemberRecord:
    """A line of rounds.jsonl as it was written. Raises ConfigError for what never was."""

    def loss(value: float | None, none: float) -> float:
        return none if value is None else value

    try:
        hparams = hparams_of({**line.hparams, "batch_size": int(line.hparams["batch_size"])})
    except (KeyError, ValueError) as error:
        raise ConfigError(f"rounds.jsonl is damaged: hyperparameters of member {line.id} ({error})") from error
    return MemberRecord(
        line.round, line.id, line.parent, hparams, int(line.samples), loss(line.train_loss, math.nan),
        loss(line.valid_loss, math.inf), loss(line.valid, math.nan), line.diverged,
    )  # fmt: skip
