"""What TensorBoard is given: files it can read, charts that find their scalars, pictures that are right."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from torch import nn

from sigexp.names import Names
from sigexp.problem import Batch, Problem, Reference, blockwise, constant, identity
from sigexp.report import board as boards
from sigexp.report import model_graph, snapshots, tiles
from sigexp.report.board import Board
from sigexp.search.records import MemberRecord, RoundRecord
from sigexp.signal.quality import mse, psnr
from sigexp.track.events import Events
from sigexp.track.tfrecord import masked

ROUNDS = 20
CONFIG = {
    "trainer": {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 10},
    "search": {"members": 3, "max_samples": 100 * ROUNDS},
    "dataset": {"seed": 4},
    "footprint": 5,
    "seed": 1,
}


def problem(metric: str = "mse") -> Problem:
    def draw(rng, split, n):
        images = rng.random((n, 1, 12, 12), dtype=np.float32)
        return images, images / 2

    sample = blockwise(draw, seed=0)
    return Problem(
        kind="image",
        sample=sample,
        sizes={"train": 20, "valid": 20, "test": 20},
        loss=mse,
        metrics={metric: {"mse": mse, "psnr": psnr}[metric]},
        references={
            "identity": identity(),
            "constant": constant(sample, 20),
            "half": Reference(predict=lambda x: x / 2),
        },
    )


def rounds(state: dict[str, torch.Tensor]) -> list[RoundRecord]:
    hparams = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 10}
    found = []
    for number in range(1, ROUNDS + 1):
        losses = [1 / number, 2 / number, math.inf]
        members = [
            MemberRecord(number, 3 * number + i, 3 * number - 3, hparams, 100, loss, loss, loss, math.isinf(loss))
            for i, loss in enumerate(losses)
        ]
        found.append(RoundRecord(number, members, 100 * number, 100, 0.5, members[0], True, state))
    return found


def written(folder: Path, given: Problem, experiment: str = "halves") -> EventAccumulator:
    """A whole run's events, read by TensorBoard."""
    folder.mkdir()
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    state = {f"params/{name}": value[None].detach() for name, value in model.named_parameters()}
    names = Names(experiment, experiment, "conv", "automlp")
    board = Board(folder, given, names, model, torch.device("cpu"), 100 * ROUNDS)
    board.begin(CONFIG)
    board.references({"identity": {given.headline: 0.3}, "constant": {given.headline: 0.2}, "half": {}})
    for done in rounds(state):
        board.round(done)
    board.result(model, {}, None)
    result = {
        "experiment": experiment, "model": {"name": "conv"}, "parameters": 10, "samples": 100 * ROUNDS, "seconds": 1.0,
        "best": {"test": {given.headline: 0.05}}, "references": {"half": {given.headline: 0.01}}, "claims": [],
    }  # fmt: skip
    board.end(result)
    board.close()
    read = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    read.Reload()
    return read


def test_the_checksum_is_tensorboards():
    from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

    for length in (0, 1, 9, 5001):
        data = np.random.default_rng(length).bytes(length)
        assert masked(data) == pywrap_tensorflow.masked_crc32c(data)


def test_tensorboard_reads_the_file(tmp_path: Path):
    events = Events(tmp_path)
    events.scalars({"a": 1.0, "b": math.nan, "c": math.inf}, 7)
    events.text("long", "x" * 100_000)
    events.close()
    (path,) = tmp_path.iterdir()
    found = list(EventFileLoader(str(path)).Load())
    assert [e.step for e in found] == [0, 7, 0]
    assert [v.tag for v in found[1].summary.value] == ["a"]
    assert len(found[2].summary.value[0].tensor.string_val[0]) == 100_000


def test_every_chart_finds_scalars(tmp_path: Path):
    read = written(tmp_path / "run", problem())
    tags = read.Tags()["scalars"]
    layout = layout_pb2.Layout.FromString(read.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Learning", "Population"]
    for chart in (chart for category in layout.category for chart in category.chart):
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in tags), pattern
        for series in chart.margin.series:
            assert {series.value, series.lower, series.upper} <= set(tags)
    assert sum(bool(chart.margin.series) for category in layout.category for chart in category.chart) == 1


def test_scalars_of_a_population(tmp_path: Path):
    read = written(tmp_path / "run", problem())
    last = {tag: read.Scalars(tag)[-1] for tag in read.Tags()["scalars"]}
    assert last["learning/halves/mse/best"].step == 100 * ROUNDS
    assert last["learning/halves/mse/best"].value == pytest.approx(1 / ROUNDS)
    assert last["learning/halves/mse/median"].value == pytest.approx(1.5 / ROUNDS)  # the diverged one does not count
    assert last["population/diverged"].value == 1
    level = read.Scalars("references/halves/mse/constant")
    assert [e.value for e in level] == pytest.approx([0.2] * len(level))
    assert (level[0].step, level[-1].step) == (0, 100 * ROUNDS)
    assert last["test/headline"].value == pytest.approx(0.05)
    assert last["test/best_reference"].value == pytest.approx(0.01)


def test_pictures_at_a_handful_of_rounds(tmp_path: Path):
    read = written(tmp_path / "run", problem())
    assert [e.step for e in read.Images("progress/examples")] == [100, 500, 1000, 1500, 2000]
    assert [e.step for e in read.Images("progress/kernels")] == [100, 500, 1000, 1500, 2000]
    assert [e.step for e in read.Images("search/members")] == [2000]
    assert sum(path.stat().st_size for path in (tmp_path / "run").iterdir()) < 200_000


def drawn(folder: Path) -> list[int]:
    """Steps of the pictures that TensorBoard finds."""
    read = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    known = "progress/examples" in read.Tags()["images"]
    return [e.step for e in read.Images("progress/examples")] if known else []


def test_pictures_wait_while_a_run_is_young(tmp_path: Path, monkeypatch):
    """And are drawn with the next round then; one that is taken up has those that its first part has not."""
    model = nn.Conv2d(1, 1, 3, padding=1)
    state = {f"params/{name}": value[None].detach() for name, value in model.named_parameters()}
    done = rounds(state)

    def board(**before):
        given = problem(), Names("e", "e", "m", "s"), model, torch.device("cpu"), 100 * ROUNDS
        made = Board(tmp_path, *given, **before)
        made.references({})
        return made

    monkeypatch.setattr(boards, "YOUNG_S", 60.0)
    first = board()
    for one in done[:6]:
        first.round(one)
    assert (first.pictured, drawn(tmp_path)) == (-1, [])
    monkeypatch.setattr(boards, "YOUNG_S", 0.0)
    first.round(done[6])
    assert (first.pictured, drawn(tmp_path)) == (500, [100, 500])
    first.close()
    monkeypatch.setattr(boards, "YOUNG_S", 60.0)
    second = board(before=done[:7], pictured=-1)
    second.round(done[7])
    second.round(done[8])
    second.result(model, {}, None)
    second.close()
    assert drawn(tmp_path) == [100, 500, 800, 900]


def test_hparams_have_the_same_columns_whatever_the_experiment(tmp_path: Path):
    def columns(read: EventAccumulator) -> tuple[list[str], list[str], set[str]]:
        contents = read.summary_metadata
        experiment = contents[metadata.EXPERIMENT_TAG].plugin_data.content
        session = contents[metadata.SESSION_START_INFO_TAG].plugin_data.content
        assert metadata.SESSION_END_INFO_TAG in contents
        found = metadata.parse_experiment_plugin_data(experiment)
        start = metadata.parse_session_start_info_plugin_data(session)
        return [h.name for h in found.hparam_infos], [m.name.tag for m in found.metric_infos], set(start.hparams)

    one = columns(written(tmp_path / "one", problem("mse"), "halves"))
    other = columns(written(tmp_path / "other", problem("psnr"), "others"))
    assert one == other
    assert set(one[0]) == one[2]
    assert {"test/headline", "test/mse", "test/psnr"} <= set(one[1])
    assert not [path for path in (tmp_path / "one").iterdir() if path.is_dir()]  # a folder would be a run of its own


def test_a_picture_that_fails_costs_a_line(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(snapshots, "examples", lambda *a, **k: 1 / 0)
    read = written(tmp_path / "run", problem())
    assert "progress/examples" not in read.Tags()["images"]
    assert "progress/kernels" in read.Tags()["images"]
    assert "no picture progress/examples: division by zero" in caplog.text


def test_graph_has_a_box_for_every_layer_and_its_edges():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
            self.last = nn.Conv2d(3, 1, 1)

        def forward(self, x):
            return self.last(torch.cat([x, self.body(x)], 1))

    nodes = {node.name: node for node in model_graph.graph(Skip(), torch.zeros(1, 1, 8, 8))}
    assert list(nodes) == ["input", "body/0.Conv2d", "body/1.ReLU", "cat", "last.Conv2d", "output"]
    assert set(nodes["cat"].inputs) == {"input", "body/1.ReLU"}
    assert nodes["last.Conv2d"].inputs == ["cat"]
    assert nodes["cat"].shape == (1, 3, 8, 8)
    assert nodes["last.Conv2d"].about["parameters"] == "4"


def test_graph_too_large_is_left_out(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(model_graph, "MOST_NODES", 2)
    caplog.set_level("INFO", "sigexp")
    read = written(tmp_path / "run", problem())
    assert "no graph for TensorBoard" in caplog.text
    assert not read.Tags()["graph"]
    assert "progress/examples" in read.Tags()["images"]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_error_column_is_white_red_and_blue():
    target = torch.zeros(2, 1, 96, 96)
    target[:, :, 40:] = 1
    output = target.clone()
    output[0, :, :, :20] += 0.5
    output[0, :, :, 76:] -= 0.5
    image = pixels(snapshots.examples("image", {"input": target, "output": output, "target": target}))
    error = image[snapshots.HEAD :, -96:]
    red, blue, right, second = error[48, 10], error[48, 86], error[48, 48], error[-20, 10]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert min(right) > 245
    assert min(second) > 245


def test_pictures_of_values_that_are_not_finite():
    broken = torch.full((2, 1, 40), math.nan)
    target = torch.rand(2, 1, 40)
    assert snapshots.examples("sequence", {"input": target, "output": broken, "target": target})
    image = torch.full((2, 1, 9, 9), math.inf)
    assert snapshots.examples("image", {"input": image, "output": image, "target": torch.zeros(2, 1, 9, 9)})
    assert snapshots.kernels("conv", torch.full((2, 1, 3, 3), math.nan))
    everyone = rounds({})
    assert snapshots.members([replace(r, members=r.members[-1:]) for r in everyone[:1]]) is None
    assert snapshots.members(everyone)


def test_decisions_are_counted_by_what_is_and_what_is_said():
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    counts = boards.count_decisions(logits, torch.tensor([0, 1, 1]), 2)
    assert counts.tolist() == [[1, 0], [1, 1]]


def test_test_data_become_a_confusion_matrix(tmp_path: Path):
    def draw(rng, split, n):
        return rng.random((n, 1, 4, 4), dtype=np.float32), rng.integers(0, 2, n)

    given = Problem(
        kind="class", sample=blockwise(draw, seed=0), sizes={"train": 20, "valid": 20, "test": 20},
        loss=lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"), classes=2,
        metrics={"error": lambda o, t: (o.argmax(1) != t).float()},
    )  # fmt: skip
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    board = Board(tmp_path, given, Names("e", "e", "m", "s"), model, torch.device("cpu"), 100)
    batch = given.examples("test")
    board.watch(torch.arange(20), Batch(*batch), nn.functional.one_hot(batch.targets, 2).float())
    board.close()
    assert board.confusion.sum() == np.trace(board.confusion) == 20


def test_one_large_kernel_leaves_the_others_visible():
    planes = np.ones((8, 5, 5), np.float32)
    scales, words = tiles.kernel_scales(planes * 0.5)
    assert (scales == 0.5).all()
    assert words == "from -0.5 to 0.5"
    planes[3] *= 40
    scales, words = tiles.kernel_scales(planes)
    assert np.abs(planes / scales).max((1, 2)).tolist() == [1.0] * 8
    assert words == "each scaled to its own largest, 1 to 40"
    assert np.isfinite(tiles.kernel_scales(np.zeros((2, 3)))[0]).all()


def test_an_error_column_is_red_where_the_output_is_too_large_and_blue_where_too_small():
    target = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    off = torch.zeros(2, 1, 8, 8)
    off[:, :, :4], off[:, :, 4:] = 0.1, -0.1
    columns = {"input": target, "target": target, "output": target + off}
    shown = pixels(snapshots.examples("image", columns, side=80))[:, -80:]
    (high, low), head = (shown[-80:-40], shown[-40:]), len(shown) - 2 * 80 - snapshots.GAP
    assert (high[..., 0] > high[..., 2] + 20).all()
    assert (low[..., 2] > low[..., 0] + 20).all()
    assert head > 0
    alone = pixels(snapshots.examples("image", columns, own_scale=True, side=80))
    assert alone.shape[1] == 3 * 80 + 2 * snapshots.GAP


def test_errors_of_a_net_that_diverges_are_measured_all_the_same():
    error = np.array([[[[1e30, np.nan], [-np.inf, 1e30]]]], np.float32)
    limit, errors = snapshots.deviations(error)
    assert limit == pytest.approx(3e30)
    assert errors.shape == (1, 2, 2)
    assert snapshots.deviations(np.zeros((1, 1, 2, 2), np.float32))[0] > 0


def test_a_wrong_decision_is_told_in_red():
    images = torch.zeros(2, 1, 16, 16)
    right, wrong = (pixels(snapshots.decisions(images, ["a, said a", "a, said b"], [False, w])) for w in (False, True))
    red = lambda shown: int(((shown[..., 0] > 150) & (shown[..., 1] < 120)).sum())  # noqa: E731
    assert red(right) == 0
    assert red(wrong[:, 190:]) == red(wrong) > 20
