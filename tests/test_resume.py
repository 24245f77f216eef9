"""A search that is taken up from any of its checkpoints is, bit for bit, the one that was never interrupted."""

import json
import os
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import sigexp
from sigexp import keeping, stopping
from sigexp.cli import main
from sigexp.datasets.gaussian import gaussian_impulses
from sigexp.population.crew import WorkerLost
from sigexp.population.feed import Feed
from sigexp.population.plan import Plan
from sigexp.population.population import Population
from sigexp.population.shards import Shards
from sigexp.search.automlp import AutoMLP
from sigexp.search.base import Candidate, Round
from sigexp.search.halving import Halving
from sigexp.search.optuna import Optuna
from sigexp.search.pbt import PBT
from sigexp.search.progress import decode, encode
from sigexp.search.rounds import SearchLoop
from sigexp.track.checkpoint import KEPT, Checkpoints, Damaged, sealed, unsealed
from sigexp.track.folder import InUse, logging_to

needs_optuna = pytest.mark.skipif(
    not (find_spec("optuna") and find_spec("cmaes")), reason="the extra 'optuna' is not installed"
)
TINY = [
    "experiment=gaussian", "dataset.size=40", "dataset.test_size=4", "dataset.image_size=16", "search.members=3",
    "search.survivors=1", "search.initial_samples=20", "search.round_samples=20", "search.max_samples=400",
    "search.valid_samples=10", "search.patience=null", "trainer.batch_size=5", "trainer.threads=1", "outputs=out",
]  # fmt: skip


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Dropout(0.3), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1))


def linear() -> nn.Module:
    return nn.Conv2d(1, 1, 3, padding=1)


class Interrupting(AutoMLP):
    """AutoMLP whose members start with different batch sizes, so that minibatches straddle the steps."""

    def first(self, start, rng) -> Round:
        found = super().first(start, rng)
        sizes = [8, 12, 20, 4]
        return replace(found, hparams=[{**h, "batch_size": b} for h, b in zip(found.hparams, sizes, strict=False)])


def loop(
    make, plan, *, optimizer="adam", on_pause=lambda loop, begins: None, records=None, processes=1, kind=None,
    cluster=None,
):  # fmt: skip
    problem = gaussian_impulses(image_size=12, size=60, density=0.1, sigma=(1.0, 1.0))
    problem = replace(problem, sizes={**problem.sizes, "valid": 10})
    defaults = {
        "lr_decades": 0.3, "lr_min": 1e-7, "lr_max": 1.0, "batch_min": 1, "batch_max": 100, "valid_samples": 10,
        "selection": "valid", "selection_noise": 0.1, "patience": None, "min_improvement": 0.0,
    }  # fmt: skip
    settings = (kind or Interrupting)(
        members=4, survivors=2, initial_samples=50, round_samples=50, max_samples=1000, **defaults
    )
    torch.manual_seed(3)
    hparams = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 4}
    columns = {name: torch.full((4,), float(value)) for name, value in hparams.items()}
    population = Population(
        [make() for _ in range(4)], loss=problem.loss, metrics=problem.metrics, optimizer=optimizer, hparams=columns,
        plan=plan,
    )  # fmt: skip
    carried = Shards(population, processes, seed=1, cluster=cluster) if plan.shards > 1 else population
    made = SearchLoop(
        settings, carried, Feed(problem, seed=0, device=torch.device("cpu")), problem, hparams=hparams, seed=0,
        lr_schedule="cosine", on_round=lambda done, _: (records if records is not None else []).append(done),
        on_progress=lambda _: None, on_pause=on_pause, step=16,
    )  # fmt: skip
    return made, population


@pytest.mark.parametrize(
    ("make", "plan"),
    [
        (plain, Plan(way="together", slice=3)),
        (plain, Plan(way="one by one")),
        (plain, Plan(way="one by one", shards=3)),
        (plain, Plan(way="together", shards=2)),
        (normalised, Plan(way="together")),
        (normalised, Plan(way="together", shards=2)),
        (normalised, Plan(way="together", shards=4)),
        (normalised, Plan(way="one by one", channels_last=True)),
        (linear, Plan(way="moments")),
        (linear, Plan(way="together")),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_a_search_goes_on_from_every_pause_bit_for_bit(make, plan):
    taken_up_everywhere(make, plan)


@pytest.mark.parametrize("inside", [False, True], ids=["rounds", "inside them"])
def test_what_is_learned_is_saved_and_nothing_before(inside, workdir, monkeypatch):
    """When rounds begin, unless that took long; inside long ones; and at the end."""
    saved, real = [], Checkpoints.save

    def save(self, tensors, data):
        saved.append((data["number"], data["done"], data["stopped"]))
        real(self, tensors, data)

    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr("sigexp.track.checkpoint.SHARE", -1.0 if inside else 1.0)
    monkeypatch.setattr("sigexp.track.checkpoint.EVERY_S", 0.0 if inside else 1e9)
    assert main([*TINY, "search.round_samples=400", "search.initial_samples=400", "search.max_samples=3600"]) == 0
    *before, (rounds, _, stopped) = saved
    assert stopped == "budget"
    if inside:
        assert [number for number, done, _ in before if done][:2] == [0, 0], "steps of the first round"
        assert all(done for _, done, _ in before)
    else:
        assert [number for number, done, _ in before] == [*range(1, rounds)], "all but the first round's beginning"
        assert not any(done for _, done, _ in before)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(PBT, id="pbt"),
        pytest.param(Halving, id="halving"),
        pytest.param(Optuna, id="tpe", marks=needs_optuna),
        pytest.param(partial(Optuna, sampler="cmaes"), id="cmaes", marks=needs_optuna),
    ],
)
def test_every_search_goes_on(kind):
    taken_up_everywhere(plain, Plan(way="together", slice=3), kind)


def taken_up_everywhere(make, plan, kind=None) -> None:
    saved: list[tuple[dict, str, list[list[Candidate]]]] = []

    def keep(running: SearchLoop, begins: bool) -> None:
        tensors, data = encode(running.saved())
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})  # as `Checkpoints` writes it
        saved.append((load(content), sealed(data), [list(t) for t in running.past]))

    records: list = []
    whole, _ = loop(make, plan, on_pause=keep, records=records, kind=kind)
    outcome = whole.run()
    assert len(saved) > 10
    assert any(unsealed(data.encode())["done"] for _, data, _ in saved), "also in the middle of rounds"
    for tensors, data, past in saved[:: max(1, len(saved) // 9)] + saved[-2:]:
        torch.manual_seed(99)
        again: list = []
        taken_up, population = loop(make, plan, records=again, kind=kind)
        progress = decode(tensors, unsealed(data.encode()), population.view())
        other = taken_up.run(progress, past)
        assert other.best == outcome.best
        assert other.total_samples == outcome.total_samples
        assert other.stopped == outcome.stopped
        assert all(torch.equal(outcome.state[name], other.state[name]) for name in outcome.state)
        for before, after in zip(records[len(records) - len(again) :], again, strict=True):
            assert before.members == after.members


def test_a_member_has_the_same_schedule_alone_and_beside_others():
    """Learning rates follow the examples, whatever batch sizes the others have."""
    states = []
    for sizes in ([4], [4, 12]):
        torch.manual_seed(0)
        first, second = linear(), linear()
        columns = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
        hparams = {name: torch.full((len(sizes),), value) for name, value in columns.items()}
        problem = gaussian_impulses(image_size=12, size=60, density=0.1, sigma=(1.0, 1.0))
        population = Population(
            [first, second][: len(sizes)], loss=problem.loss, metrics=problem.metrics, optimizer="sgd",
            hparams={**hparams, "batch_size": torch.tensor(sizes)}, plan=Plan(way="together"),
        )  # fmt: skip
        from sigexp.population.optimizers import Schedule

        population.schedule = Schedule("cosine", slope=1 / 48)
        feed = Feed(problem, seed=0, device=torch.device("cpu"))
        for position in (0, 24):
            population.advance(feed, position, 24)
        states.append(population.state())
    for name, tensor in states[0].items():
        assert torch.allclose(tensor[0].double(), states[1][name][0].double(), rtol=1e-5, atol=1e-7), name


def test_lost_processes_are_started_again_and_change_nothing():
    outcomes = []
    for kill in (False, True):
        killed: list[int] = []

        def pause(running, begins, killed=killed, kill=kill):
            if kill and running.now.number == 2 and not begins and not killed:
                killed.append(running.population._crews[0].process.pid)
                running.population._crews[0].process.kill()

        made, _ = loop(plain, Plan(way="together", shards=2), processes=2, on_pause=pause)
        try:
            outcomes.append(made.run())
        finally:
            made.population.close()
        assert bool(killed) == kill
    assert outcomes[0].best == outcomes[1].best
    assert all(torch.equal(outcomes[0].state[name], outcomes[1].state[name]) for name in outcomes[0].state)


def test_processes_that_always_die_end_the_run_with_a_message():
    made, _ = loop(plain, Plan(way="together", shards=2), processes=2)
    made.on_pause = lambda running, begins: running.population._crews[0].process.kill()
    try:
        with pytest.raises(WorkerLost, match=r"trainer\.processes=1"):
            made.run()
    finally:
        made.population.close()


def checkpoints(folder: Path, count: int = 3) -> Checkpoints:
    made = Checkpoints(folder)
    (folder / "rounds.jsonl").write_text("one\n")
    for i in range(count):
        made.save({"a": torch.full((50,), float(i))}, {"number": i, "loss": 0.1 + 1e-17 * i, "none": None})
    return made


def test_the_last_two_checkpoints_are_kept(tmp_path):
    checkpoints(tmp_path, 5)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2 * KEPT
    found = Checkpoints(tmp_path).latest(pytest.fail)
    assert found.data["number"] == 4
    assert torch.equal(found.tensors["a"], torch.full((50,), 4.0))


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_every_damage_is_seen_and_the_one_before_is_used(tmp_path, suffix):
    checkpoints(tmp_path)
    path = tmp_path / "checkpoints" / f"000003{suffix}"
    good = path.read_bytes()
    for i in range(60):
        at = i * len(good) // 60
        flipped = bytearray(good)
        flipped[at] ^= 1 << i % 8
        for bad in (bytes(flipped), good[:at]):
            path.write_bytes(bad)
            told: list[str] = []
            assert Checkpoints(tmp_path).latest(told.append).data["number"] == 1
            assert len(told) == 1
            assert "000003.json is damaged" in told[0]
    path.unlink()
    assert Checkpoints(tmp_path).latest(told.append).data["number"] == 1


def test_a_checkpoint_whose_record_was_lost_is_not_used(tmp_path):
    made = checkpoints(tmp_path, 2)
    with open(tmp_path / "rounds.jsonl", "a") as file:
        file.write("two\n")
    made.save({}, {"number": 9})
    os.truncate(tmp_path / "rounds.jsonl", 5)
    assert Checkpoints(tmp_path).latest(lambda line: None).data["number"] == 1


def test_the_record_is_cut_to_its_checkpoint(tmp_path):
    made = checkpoints(tmp_path)
    (tmp_path / "rounds.jsonl").write_text('one\n{"half a li')
    (tmp_path / "events.out.tfevents.0000000001.x").write_text("later")
    (tmp_path / "checkpoints" / ".000004.json.abc").write_text("half")
    made.clean(made.latest(pytest.fail).files)
    assert (tmp_path / "rounds.jsonl").read_text() == "one\n"
    assert sorted(path.name for path in tmp_path.rglob("*") if "4" in path.name or "events" in path.name) == []


def test_json_without_its_checksum_is_damaged():
    with pytest.raises(Damaged):
        unsealed(b'{"checkpoint": {"number": 1}}')
    with pytest.raises(Damaged):
        unsealed(b"[" * 100_000)


def test_one_process_at_a_run(tmp_path):
    second = logging_to(tmp_path, "second")
    with logging_to(tmp_path, "first"), pytest.raises(InUse, match="another process"), second:
        pass


def fingerprint(folder: Path) -> tuple:
    result = json.loads((folder / "result.json").read_text())
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in rounds:
        del line["seconds"]
    return (folder / "model.safetensors").read_bytes(), rounds, result["best"], result["references"]


def only(pattern: str) -> Path:
    (found,) = Path().glob(pattern)
    return found


@pytest.mark.parametrize("moment", [0, 1, 5, 1000], ids=["at once", "first steps", "later", "after training"])
def test_an_interrupted_run_is_taken_up(workdir, monkeypatch, capsys, moment):
    """By SIGINT between two steps, or by an end without warning after training."""
    assert main([*TINY[:-1], "outputs=whole"]) == 0
    seen = []
    pause = keeping.Keeper.pause

    def interrupting(self, loop, begins, request, calibration, board):
        seen.append(begins)
        if len(seen) == moment + 1 or loop.now.stopped:
            os.kill(os.getpid(), stopping.signal.SIGINT)
        pause(self, loop, begins, request, calibration, board)

    monkeypatch.setattr(keeping.Keeper, "pause", interrupting)
    capsys.readouterr()
    assert main(TINY) == 130
    folder = only("out/gaussian/linear/*")
    said = capsys.readouterr().err
    assert f"Go on with: sigexp resume {folder}" in said
    assert "of 400 member-samples are saved" in said
    assert not (folder / "result.json").exists()
    monkeypatch.setattr(keeping.Keeper, "pause", pause)
    with open(folder / "rounds.jsonl", "a") as file:
        file.write('{"half')
    if moment == 1:
        assert sigexp.resume(folder).result["best"] == sigexp.load(only("whole/gaussian/linear/*")).result["best"]
    else:
        assert main(["resume", str(folder)]) == 0
    assert fingerprint(folder) == fingerprint(only("whole/gaussian/linear/*"))
    assert "taken up after" in (folder / "run.log").read_text()
    assert not list(folder.glob(".*")), "nothing half written is left"
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 0
    assert "finished already" in capsys.readouterr().err


def test_resume_without_a_checkpoint_starts_again(workdir, capsys):
    assert main([*TINY[:-1], "outputs=whole"]) == 0
    assert main(TINY) == 0
    folder = only("out/gaussian/linear/*")
    (folder / "result.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    assert main(["resume", str(folder)]) == 0
    assert fingerprint(folder) == fingerprint(only("whole/gaussian/linear/*"))
    log = (folder / "run.log").read_text()
    assert "is damaged" in log
    assert "starts again from its config" in log
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1


def test_resume_refuses_what_is_not_this_run(workdir, capsys):
    assert main(TINY) == 0
    folder = only("out/gaussian/linear/*")
    (folder / "result.json").unlink()
    capsys.readouterr()
    for words, part in (
        (["resume", "nowhere"], "no such folder"),
        (["resume", str(folder), "seed=3"], "sigexp rerun"),
        (["resume", str(folder.parent)], str(folder)),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert part in said
        assert "Traceback" not in said
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.", "lr: 0.9"))
    assert main(["resume", str(folder)]) == 2
    assert "of another config" in capsys.readouterr().err
    (folder / "rounds.jsonl").rename(folder / "elsewhere")
    (folder / "rounds.jsonl").symlink_to("elsewhere")
    assert main(["resume", str(folder)]) == 2
    assert "a link" in capsys.readouterr().err


def test_steps_in_tensorboard_never_go_back(workdir, monkeypatch):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    pause = keeping.Keeper.pause
    count = iter(range(1000))

    def interrupting(self, loop, begins, request, calibration, board):
        if next(count) in (4, 9):
            os.kill(os.getpid(), stopping.signal.SIGINT)
        pause(self, loop, begins, request, calibration, board)

    monkeypatch.setattr(keeping.Keeper, "pause", interrupting)
    assert main(TINY) == 130
    folder = only("out/gaussian/linear/*")
    assert main(["resume", str(folder)]) == 130
    assert main(["resume", str(folder)]) == 0
    files = sorted(folder.glob("events.out.tfevents.*"))
    assert len(files) == 3
    steps: dict[str, list[int]] = {}
    for path in files:
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    assert len(steps["loss/train/median"]) == len({json.loads(line)["round"] for line in
                                                   (folder / "rounds.jsonl").read_text().splitlines()})  # fmt: skip
    for tag, found in steps.items():
        assert found == sorted(found), tag


@pytest.mark.parametrize("end", ["interrupted", "failed"])
def test_a_young_run_that_ends_early_has_its_pictures(workdir, monkeypatch, end):
    """Which wait while a run is young, and are not drawn again when it is taken up."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    def pictured():
        files = sorted(only("out/gaussian/linear/*").glob("events.out.tfevents.*"))
        values = [(e.step, v) for path in files for e in EventFileLoader(str(path)).Load() for v in e.summary.value]
        return [step for step, value in values if value.tag == "progress/kernels"]

    pause = keeping.Keeper.pause
    count = iter(range(1000))

    def ending(self, loop, begins, request, calibration, board):
        if next(count) == 9:
            if end == "failed":
                raise RuntimeError("broken")
            os.kill(os.getpid(), stopping.signal.SIGINT)
        pause(self, loop, begins, request, calibration, board)

    monkeypatch.setattr(keeping.Keeper, "pause", ending)
    assert main(TINY) == (130 if end == "interrupted" else 1)
    before = pictured()
    assert before
    monkeypatch.setattr(keeping.Keeper, "pause", pause)
    assert main(["resume", str(only("out/gaussian/linear/*"))]) == 0
    if end == "interrupted":
        assert pictured()[: len(before)] == before
        assert len({*pictured()}) == len(pictured()) > len(before)
