"""report.html: well-formed, offline, escaped, small, and right about who descends from whom."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import runs
import torch

from sigexp.cli import main
from sigexp.metrics import higher_is_better
from sigexp.problem import Batch, Problem, Reference
from sigexp.report import cases, lineage, page, plot, views, wording
from sigexp.track import record

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='x"


class Page(HTMLParser):
    """A page's elements, and whether every one that is opened is closed in order."""

    EMPTY = frozenset({"meta", "img", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.broken: list[str] = []
        self.feed(text)
        self.close()
        self.broken += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(folder: Path) -> Page:
    path = page.write(folder)
    assert path == folder / "report.html"
    assert path.stat().st_size < 3_000_000
    found = Page(path.read_text())
    assert not found.broken
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return runs.write(tmp_path / "run", runs.result("linear", {"mse": 0.1, "mse_interior": 0.09}))


def assert_offline(found: Page) -> None:
    """Nothing is fetched from anywhere: addresses are data or places on the page, and the policy forbids the rest."""
    for tag, attributes in found.tags:
        for name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
        assert not any(name.startswith("on") for name in attributes), attributes
    policy = next(a["content"] for a in found.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|unsafe-eval|script-src[^;]*unsafe-inline", policy)


def test_the_page_says_everything_and_loads_nothing(folder):
    found = read(folder)
    assert_offline(found)
    for part in [
        "linear reaches MSE 1.000e-01 on test data: 25 % worse than least_squares_train (8.000e-02)",
        "ahead of 1 of them", "20 times better", "The winning line in numbers", "Best and worst cases",
        "median 2.000e-01", "sigexp experiment=blur", "signals", "drawn", "cpu: some", "seed 0",
        "10 s, of which training 3 s, testing 4 s", "the model against it",
    ]:  # fmt: skip
        assert part in " ".join(found.text.split()), part
    sources = [image["src"] for image in found.of("img")]
    assert len(sources) == 6, "kernels, three of the slider, two of a case"
    assert any("prefers-color-scheme: dark" in line for line in (folder / "report.html").read_text().splitlines())


def test_its_policy_names_the_hash_of_its_only_script(folder):
    import base64
    import hashlib

    read(folder)
    text = (folder / "report.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_a_reference_of_the_models_name_leaves_the_models_row(tmp_path):
    folder = runs.write(tmp_path / "run", runs.result("wiener", {"mse": 0.1}, references={"wiener": {"mse": 0.05}}))
    text = " ".join(read(folder).text.split())
    assert "wienerlearned1.000e-01" in text
    assert "wienerthe Wiener filter5.000e-02" in text


def test_the_lineage_is_the_records(folder):
    found = read(folder)
    dots = {a["data-id"]: a for a in found.of("circle")[:6]}
    assert {id_: a.get("data-parent") for id_, a in dots.items()} == {
        "0": None, "1": None, "2": None, "3": "1", "4": "1", "5": "3",
    }  # fmt: skip
    assert {id_ for id_, a in dots.items() if a["class"] in ("won", "best")} == {"1", "3", "5"}
    assert dots["5"]["class"] == "best"
    won = [a["data-to"] for a in found.of("polyline") if a["class"] == "winner"]
    assert set(won) == {"3", "5"}
    rows = re.findall(r"<tr><td>(\d)</td><td>(\d)</td><td>([\d.]+)</td>", (folder / "report.html").read_text())
    assert rows == [("1", "1", "0.2"), ("2", "3", "0.3"), ("3", "5", "0.4")], "round, member, lr along the line"


def test_the_best_reference_is_drawn_with_the_curve():
    known = {"menon": 42.0, "edge_aware": 40.0, "bilinear": 36.0, "constant": 10.0}
    assert lineage.nearest(known, [30.0, 38.0], "psnr") == [("menon", 42.0), ("edge_aware", 40.0), ("bilinear", 36.0)]
    assert lineage.nearest({"menon": 42.0}, [30.0], "psnr") == [("menon", 42.0)]
    errors = {"exact": 0.0, "wiener": 0.02, "gaussian": 0.05}
    assert lineage.nearest(errors, [0.1, 0.9], "mse") == [("wiener", 0.02), ("gaussian", 0.05)]


def test_a_ring_in_a_damaged_record_ends(folder):
    lines = [runs.member(1, 2, 1, 0.5), runs.member(2, 1, 2, 0.4), runs.member(5, 5, 3, 0.3)]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": 7, "rou')
    everyone = record.members(folder)
    assert [m.id for m in everyone] == [1, 2, 5]
    assert [m.id for m in lineage.winning_line(everyone, 2)] == [1, 2]
    assert [m.id for m in lineage.winning_line(everyone, 5)] == [5]
    assert lineage.winning_line(everyone, "5") == []
    read(folder)


def test_a_large_population_is_drawn_in_part(folder):
    lines = [
        runs.member(64 * r + i, 64 * (r - 1) + i if r else None, r + 1, 1.0 / (r + 1) + i / 100)
        for r in range(300) for i in range(64)
    ]  # fmt: skip
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = runs.result("linear", {"mse": 0.1})
    found["best"]["id"] = 64 * 299 + 63  # the worst of every round, which the thinning alone would drop
    (folder / "result.json").write_text(json.dumps(found))
    shown = read(folder)
    drawn = {int(str(a["data-id"])) for a in shown.of("circle")}
    assert {64 * r + 63 for r in range(300)} <= drawn
    assert len(drawn) < 2000
    assert "of 19200" in shown.text


def test_names_and_values_cannot_become_markup(tmp_path):
    found = runs.result(EVIL, {"mse": 0.1, EVIL: 0.2})
    found |= dict.fromkeys(("search", "device", "stopped", "experiment"), EVIL)
    found["references"] = {EVIL: {"mse": 0.5, EVIL: 1.0}}
    found["references_valid"] = {EVIL: {"mse": 0.2}}
    found["best"]["hyperparameters"] = {EVIL: 1.0}
    found["claims"] = [{"text": EVIL, "holds": True, "condition": EVIL, "measured": 1.0, "bound": 2.0}]
    found["dataset"] = {"name": EVIL, "source": {EVIL: EVIL}, EVIL: EVIL}
    found["versions"] = {EVIL: EVIL, "sigexp": EVIL}
    found["excess"] = {EVIL: 1.0}
    folder = runs.write(tmp_path / "<b>run", found, {EVIL: EVIL}, [f"x={EVIL}"])
    lines = [{**line, "hparams": {EVIL: 0.1 * i}} for i, line in enumerate(runs.MEMBERS)]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = json.loads((folder / "cases.json").read_text())
    seen["metric"] = seen["window"] = seen["slider"]["index"] = EVIL
    seen["slider"]["pictures"][EVIL] = seen["slider"]["pictures"]["input"]
    seen["best"][0] |= {"index": EVIL, "said": {"is": EVIL, "answer": "b"}, "corner": [EVIL]}
    seen["worst"][0]["pictures"] = {EVIL: EVIL}
    (folder / "cases.json").write_text(json.dumps(seen))
    shown = read(folder)
    assert_offline(shown)
    assert len(shown.of("script")) == 1
    assert all(image["src"].startswith("data:image/png") for image in shown.of("img"))
    assert not shown.of("b") or all(a.get("class") in ("yes", "no", "told") for a in shown.of("b"))
    assert shown.text.count("alert(1)") > 10, "shown as the text that it is"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cases.json", '{"slider": 3, "best": [3, {"pictures": [], "lines": {"input": [[1, "x"], 4]}}], "worst": {}}'),
        ("cases.json", "[" * 100_000),
        ("cases.json", "not JSON"),
        ("rounds.jsonl", '{"id": "a"}\n3\nnull\n[]\n{"id": 5, "round": 1, "total_samples": 1e999, "hparams": 3}\n'),
        ("kernels.png", "not a picture"),
    ],
)
def test_damaged_files_beside_the_result_leave_a_page(folder, name, content):
    (folder / name).write_text(content)
    assert_offline(read(folder))


def test_values_of_other_types_leave_a_page(folder):
    found = json.loads((folder / "result.json").read_text())
    for name in [key for key in found if key not in ("experiment", "model", "best")]:
        for value in (None, "text", 3, [1], {"a": "b"}, 10**400, {"a": {"mse": "x"}}):
            (folder / "result.json").write_text(json.dumps({**found, name: value}))
            assert_offline(read(folder))


def test_pictures_too_large_for_the_page_are_named_instead(folder):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    import cv2

    (folder / "response.png").write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    (folder / "examples.png").write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    shown = read(folder)
    assert "left out" in shown.text
    assert (folder / "kernels.png").stat().st_size < 1000
    assert len(shown.of("img")) >= 6, "the small ones stay"


def test_a_link_to_another_file_is_not_shown(folder, tmp_path):
    (tmp_path / "secret").write_text("seed: 12345\n")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="a link, which is not followed"):
        read(folder)


def test_the_verb_writes_it_again_without_torch(folder, tmp_path):
    code = (
        "import sys; from sigexp.cli import main; assert main(sys.argv[1:]) == 0; "
        "assert 'torch' not in sys.modules and 'hydra' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, "report", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(folder / "report.html")]
    assert Page((folder / "report.html").read_text()).of("svg")


def test_the_verb_refuses_what_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
    first = runs.write(tmp_path / "a", runs.result("linear", {"mse": 0.1}))
    runs.write(tmp_path / "b", runs.result("linear", {"mse": 0.1}))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "one.html")]) == 2
    assert main(["report", str(first), "-o", str(tmp_path / "one.html")]) == 0
    assert (tmp_path / "one.html").is_file()


@pytest.mark.parametrize(
    ("model", "reference", "metric", "said"),
    [
        (1.02, 1.0, "mse", "2 % worse"),
        (1.0, 1.02, "mse", "2 % better"),
        (1.0, 5.0, "mse", "5.0 times better"),
        (1.0, 0.0, "mse", "worse"),
        (0.0, 1.0, "mse", "1 better"),
        (0.5, 0.5, "mse", "equal"),
        (34.68, 35.72, "psnr", "1.04 dB worse"),
        (35.716, 35.72, "psnr", "equal"),
        (35.714, 35.72, "psnr", "0.01 dB worse"),
        (0.1, 0.25, "error", "15 points better"),
        (0.3, 0.0, "pixel_error", "30 points worse"),
        (0.9, 0.8, "hit_rate", "10 points better"),
        (0.9, 0.95, "ssim", "0.05 worse"),
        (None, 1.0, "mse", ""),
    ],
)
def test_a_distance_in_words(model, reference, metric, said):
    assert wording.beside(model, reference, metric) == said


@pytest.mark.parametrize(
    ("value", "state", "part"),
    [
        (36.0, "ahead", "0.50 dB better than menon (35.50 dB), the best of 3 references"),
        (34.0, "between", "1.50 dB worse than menon (35.50 dB), the best of 3 references; ahead of 2 of them"),
        (35.499, "ahead", "as good as menon (35.50 dB), the best of 3 references"),
        (9.999, "behind", "as good as the best constant"),
        (5.0, "behind", "5.00 dB worse than the best constant"),
        (None, "behind", "not a finite number"),
    ],
)
def test_the_verdict(value, state, part):
    references = {"menon": {"psnr": 35.5}, "bilinear": {"psnr": 30.0}, "constant": {"psnr": 10.0}, "other": {"mse": 1}}
    found = wording.verdict("deep", {"psnr": value}, references)
    assert found.state == state
    assert part in found.text


def test_the_verdict_beside_what_is_exact():
    constant, bound = {"constant": {"mse": 0.2}}, {"least_squares_train": {"mse": 1e-15}}
    found = wording.verdict("conv1d", {"mse": 0.07}, {"exact": {"mse": 0.0}, **constant})
    assert found.text.endswith(
        "2.9 times better than the best constant (2.000e-01); the exact algorithm has 0.000e+00."
    )
    found = wording.verdict("conv1d", {"mse": 0.07}, {**bound, **constant})
    assert "far from least_squares_train (1.000e-15), the best of 2 references; ahead of 1 of them" in found.text
    assert found.state == "between"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 17.0), (1e-9, 2e-9), (5.0, 5.0), (0.0, 1e9)])
def test_linear_ticks_are_few_and_inside(low, high):
    axis = plot.upright([low, high])
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(axis.low <= tick <= axis.high for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(1e-16, 1.0), (1e-3, 2e-2), (3.0, 80.0)])
def test_logarithmic_ticks_are_few_and_inside(low, high):
    axis = plot.upright([low, high], log=True)
    assert axis.log
    assert 2 <= len(axis.ticks()) <= 12
    assert all(axis.inside(tick) for tick in axis.ticks())


def metric(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().mean(tuple(range(1, outputs.ndim)))


def problem_of(targets: torch.Tensor, **more) -> Problem:
    def sample(split, index):
        return Batch(torch.zeros_like(targets[index]), targets[index])

    sizes = {"train": 1, "valid": 1, "test": len(targets)}
    return Problem(kind="image", sample=sample, sizes=sizes, loss=metric, metrics={"mse": metric}, **more)


def test_the_best_and_worst_examples_are_found_over_chunks():
    errors = torch.tensor([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0, 0.0])
    problem = problem_of(errors.sqrt()[:, None, None, None].expand(-1, 1, 4, 4))
    seen = cases.Cases(problem)
    for index in torch.arange(10).split(4):
        batch = problem.sample("test", index)
        seen(index, batch, torch.zeros_like(batch.targets))
    assert [case.index for case in seen.best] == [9, 1, 5]
    assert [case.index for case in seen.worst] == [2, 6, 4]
    found = cases.as_dict(seen, {"other": Reference(predict=lambda x: x + 1)}, {"other": {"mse": 1.0}})
    assert found["count"] == 10
    assert found["quantiles"][1] == pytest.approx(4.5, rel=1e-5)
    assert set(found["slider"]["pictures"]) == {"input", "output", "target", "other"}
    assert [case["value"] for case in found["worst"]] == pytest.approx([9, 8, 7], rel=1e-5)
    json.dumps(found)


def test_of_whole_photographs_the_worst_window_is_found():
    targets = torch.zeros(1, 3, 300, 400)
    targets[..., 4 + 128 : 4 + 192, 4 + 64 : 4 + 128] = 0.5
    problem = problem_of(targets, ragged=("test",))
    seen = cases.Cases(problem)
    batch = problem.sample("test", torch.tensor([0]))
    seen(torch.tensor([0]), batch, torch.zeros_like(targets))
    assert seen.worst[0].corner == (132, 68)
    assert seen.worst[0].value == pytest.approx(0.25)
    assert seen.worst[0].target.shape == (3, 64, 64)
    shifted = Reference(predict=lambda x: x + torch.linspace(0, 1, x.shape[-1]))
    found = cases.as_dict(seen, {"other": shifted}, {"other": {"mse": 1.0}})
    assert found["window"] == 64
    assert set(found["slider"]["pictures"]) == {"input", "output", "target", "other"}


def test_targets_of_another_extent_and_values_that_are_not_finite_are_shown_too():
    targets = torch.rand(2, 1, 160, 160)
    targets[1, 0, 3, 3] = float("nan")

    def sample(split, index):
        return Batch(targets[index][..., ::2, ::2], targets[index])

    problem = Problem(
        kind="image", sample=sample, sizes={"train": 1, "valid": 1, "test": 2}, loss=metric, metrics={"mse": metric},
        ragged=("test",),
    )  # fmt: skip
    seen = cases.Cases(problem)
    for index in torch.arange(2).split(1):
        seen(index, problem.sample("test", index), torch.zeros(1, 1, 160, 160))
    found = cases.as_dict(seen, {"other": Reference(predict=lambda x: x)}, {"other": {"mse": 1.0}})
    assert found["window"] is None
    assert [case["index"] for case in found["best"]] == [0, 1], "what is not finite is the worst"


def test_a_sequence_is_shown_by_its_samples():
    signal = torch.linspace(0, 1, 50).reshape(1, 1, 50)

    def sample(split, index):
        return Batch(signal.expand(len(index), -1, -1), 2 * signal.expand(len(index), -1, -1))

    sizes = {"train": 1, "valid": 1, "test": 4}
    problem = Problem(kind="sequence", sample=sample, sizes=sizes, loss=metric, metrics={"mse": metric})
    seen = cases.Cases(problem)
    seen(torch.arange(4), problem.examples("test"), torch.zeros(4, 1, 50))
    found = cases.as_dict(seen, {"wiener": Reference(predict=lambda x: 3 * x)}, {"wiener": {"mse": 1.0}})
    assert list(found["slider"]["lines"]) == ["input", "output", "target", "wiener"]
    assert found["slider"]["lines"]["wiener"][0][-1] == 3.0
    shown = views.slider(json.loads(json.dumps(found)), views.Pictures(Path(), 1000))
    assert shown.count("<polyline") >= 4
    assert "wiener" in shown
    assert "<polyline" in views.cases(found, views.Pictures(Path(), 1000))


def test_a_tie_of_errors_is_decided_by_the_loss():
    labels = torch.tensor([0, 1, 0, 1, 0, 0, 1, 1])
    logits = torch.tensor([[4.0, 0], [0, 3], [0, 1], [2, 0], [1, 0], [9, 0], [0, 8], [0, 2]])
    problem = Problem(
        kind="class",
        sample=lambda split, index: Batch(torch.zeros(len(index), 1, 4, 4), labels[index]),
        sizes={"train": 1, "valid": 1, "test": 8},
        loss=lambda o, t: torch.nn.functional.cross_entropy(o, t, reduction="none"),
        metrics={"error": lambda o, t: (o.argmax(1) != t).float()},
        classes=2,
        labels=("circle", "square"),
    )
    seen = cases.Cases(problem)
    seen(torch.arange(8), problem.examples("test"), logits)
    assert [case.index for case in seen.worst] == [3, 2, 4], "wrong and surest first, then the least sure"
    assert [case.index for case in seen.best] == [5, 6, 0]
    found = cases.as_dict(seen, {}, {})
    assert found["slider"] is None
    assert found["worst"][0]["said"]["is"] == "square"
    assert found["worst"][0]["said"]["answer"] == "circle"
    assert not higher_is_better("error")
