"""`sigexp compare`: what is grouped, means and intervals, what is no run, the table, CSV and page."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from rich.console import Console
from scipy import stats

from sigexp.cli import main
from sigexp.report import compare, compare_tables
from sigexp.track import record
from sigexp.track.find import find
from sigexp.track.record import Unreadable, printable, read

VALUES = {"linear": [0.11, 0.13, 0.18], "deep": [0.05, 0.06, 0.04]}


def ignored(_: str) -> None:
    pass


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two models over three seeds each; the data's seed varies with them."""
    for model, values in VALUES.items():
        for seed, value in enumerate(values):
            folder = tmp_path / "outputs" / "blur" / model / f"2026-01-01_00-00-0{seed}-abcdef{seed}"
            settings = runs.config(seed, seed, model={"_target_": f"a.{model}", "taps": len(model)})
            found = runs.result(model, {"mse": value, "psnr": 30 + value}, seed, seed)
            runs.write(folder, found, settings, ["experiment=blur", f"model={model}", f"seed={seed}"])
    return tmp_path / "outputs"


def compared(*words: object) -> compare.Comparison:
    (found,) = compare.compare(find([str(word) for word in words], ignored))
    return found


def row(found: compare.Comparison, label: str) -> compare.Row:
    return next(row for row in found.rows if row.label == label)


def test_means_and_intervals_are_scipys(outputs):
    found = compared(outputs)
    assert [r.label for r in found.rows] == ["deep", "least_squares_train", "linear", "constant"]
    for model, values in VALUES.items():
        low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
        shown = row(found, model)
        assert shown.count == 3
        assert shown.mean("mse") == pytest.approx((low + high) / 2)
        assert shown.half_interval("mse") == pytest.approx((high - low) / 2)
    assert found.best("mse") is row(found, "deep")
    assert found.best("psnr") is row(found, "linear"), "a higher PSNR is better"


def test_a_reference_is_averaged_over_the_datas_seeds(outputs, tmp_path):
    found = row(compared(outputs), "constant")
    assert sorted(found.values["mse"]) == [2.0, 3.0, 4.0]
    assert row(compared(outputs), "least_squares_train").half_interval("mse") == 0
    for seed in range(3):  # one data set, three initial weights: the reference is one number
        runs.write(tmp_path / "one" / str(seed), runs.result("linear", {"mse": 0.1}, seed), runs.config(seed))
    constant = row(compared(tmp_path / "one"), "constant")
    assert constant.values["mse"] == [2.0]
    assert constant.half_interval("mse") is None


def test_references_that_differ_say_whose_they_are(tmp_path):
    for model, bound in (("linear", 0.1), ("separable", 0.2)):
        found = runs.result(model, {"mse": 0.3}, references={"least_squares_train": {"mse": bound}})
        runs.write(tmp_path / model, found)
    labels = [r.label for r in compared(tmp_path).rows if not r.learned]
    assert labels == ["least_squares_train (of linear)", "least_squares_train (of separable)"]


def test_what_differs_makes_groups_and_names_them(tmp_path):
    for i, lr in enumerate((0.1, 0.1, 0.5)):
        settings = runs.config(seed=i, trainer={"optimizer": {"lr": lr, "name": "sgd"}})
        runs.write(tmp_path / str(i), runs.result("linear", {"mse": 0.1 + i}, seed=i), settings)
    settings = runs.config(footprint=9, trainer={"optimizer": {"lr": 7.0, "name": "adam"}})
    runs.write(tmp_path / "4", runs.result("deep", {"mse": 0.01}), settings, ["experiment=blur", "footprint=9"])
    found = compared(tmp_path)
    learned = {r.label: r for r in found.rows if r.learned}
    assert set(learned) == {"linear lr=0.1", "linear lr=0.5", "deep footprint=9"}, "not the defaults of another model"
    assert learned["linear lr=0.1"].count == 2
    assert learned["linear lr=0.1"].settings == {"trainer.optimizer.lr": "0.1"}


def test_names_that_end_alike_are_spelled_out(tmp_path):
    for i in range(2):
        settings = runs.config(dataset={"size": i, "seed": 0}, model={"size": i})
        runs.write(tmp_path / str(i), runs.result("linear", {"mse": 0.1}), settings)
    assert {r.label for r in compared(tmp_path).rows if r.learned} == {
        "linear dataset.size=0 model.size=0", "linear dataset.size=1 model.size=1",
    }  # fmt: skip


def test_a_run_repeated_counts_once_and_the_newest_does(tmp_path):
    for name, value in (("2026-01-01_00-00-00-a", 0.1), ("2026-01-02_00-00-00-a", 0.2)):
        runs.write(tmp_path / name, runs.result("linear", {"mse": value}))
    found = compared(tmp_path)
    assert found.repeated == 1
    assert row(found, "linear").values["mse"] == [0.2]
    assert "1 older run " in compare_tables.notes(found)


def test_what_is_no_run_gets_one_line_and_the_others_are_shown(outputs, tmp_path, capsys):
    unfinished = outputs / "blur" / "linear" / "2026-01-01_00-00-09-unfinish"
    unfinished.mkdir()
    (unfinished / "rounds.jsonl").write_text("")
    broken = outputs / "blur" / "deep" / "2026-01-01_00-00-09-broken00"
    for number, text in enumerate(
        ['{"a": ', "[]", '{"experiment": "x", "model": {"name": "y"}, "best": {"test": {}}}']
    ):
        folder = broken.with_name(f"{broken.name}{number}")
        folder.mkdir()
        (folder / "result.json").write_text(text)
    bomb = runs.write(outputs / "blur" / "bomb", runs.result("linear", {"mse": 0.1}))
    (bomb / "config.yaml").write_text("a: &a [x]\nb: &b {c: *a, d: *b}\n")
    (tmp_path / "empty").mkdir()
    words = [str(outputs), str(tmp_path / "empty"), str(tmp_path / "missing"), str(tmp_path / "no*glob")]
    assert main(["compare", *words]) == 0
    shown = capsys.readouterr()
    assert "deep" in shown.out
    *lines, explained = shown.err.splitlines()
    assert all(line.startswith("sigexp: ") for line in lines)
    assert len(lines) == 8
    assert explained.startswith("blur: deep has the best mse")
    for name, part in [
        ("unfinish", "not finished"), ("broken000", "cannot be read"), ("broken001", "damaged"),
        ("broken002", "no best.test"), ("bomb", "aliases"), ("empty", "not the folder"), ("missing", "no such folder"),
        ("no*glob", "matches no folder"),
    ]:  # fmt: skip
        assert any(name in line and part in line for line in lines), (name, part)


def test_nothing_to_show_is_exit_code_2(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "not the folder of a run" in message
    assert len(message.splitlines()) == 1
    assert main(["compare"]) == 2


def test_globs_folders_and_files_find_each_run_once(outputs):
    assert len(find([str(outputs)], ignored)) == 6
    assert len(find([str(outputs / "blur" / "*"), str(outputs)], ignored)) == 6
    assert len(find([str(outputs / "blur" / "deep" / "*-abcdef0")], ignored)) == 1
    assert len(find([str(next(outputs.rglob("result.json")))], ignored)) == 1


def test_a_sweeps_folder_stands_for_its_runs(outputs):
    sweep = outputs / "sweeps" / "2026-01-01_00-00-01"
    sweep.mkdir(parents=True)
    (sweep / "multirun.yaml").write_text(
        json.dumps({"hydra": {"overrides": {"task": ["experiment=blur", "model=deep,linear", "seed=0,2"]}}})
    )
    # Seed 0 began before the sweep did, and is another's.
    found = find([str(sweep)], ignored)
    assert [(r.model, r.result["seeds"]["seed"]) for r in found] == [("deep", 2), ("linear", 2)]
    (sweep / "multirun.yaml").write_text("hydra: {overrides: {task: ['a=b,']}}")
    with pytest.raises(ValueError, match=r"multirun\.yaml cannot be read"):
        find([str(sweep)], ignored)


def terminal(found: compare.Comparison, width: int, **more) -> str:
    buffer = io.StringIO()
    compare_tables.show([found], Console(file=buffer, force_terminal=True, width=width, **more))
    return buffer.getvalue()


def test_the_table_fits_into_80_columns(outputs):
    shown = terminal(compared(outputs), 80, color_system=None)
    table = [line for line in shown.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= 80
    assert "4.000" not in table[0]
    assert any("deep" in line and "5.000e-02 ± 2.484e-02 *" in line for line in table)
    assert not any("…" in line for line in table)
    assert "not shown for want of width" in " ".join(shown.split())
    wide = terminal(compared(outputs), 160, color_system=None)
    assert "want of width" not in wide
    assert "psnr" in wide
    assert "seconds" in wide


def test_no_colour_where_it_is_not_wanted(outputs, monkeypatch):
    assert "\x1b[32m" in terminal(compared(outputs), 80, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in terminal(compared(outputs), 80, color_system="standard")


def test_piped_output_is_plain(outputs, capsys):
    assert main(["compare", str(outputs)]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert "* best mean of the runs; ± half of the 95 % interval" in shown.err
    assert lines[0].split("\t")[:4] == ["experiment", "predictor", "runs", "mse"]
    assert lines[1].split("\t")[:4] == ["blur", "deep", "3", "5.000e-02 ± 2.484e-02 *"]
    assert not any(c in "".join(lines) for c in "│\x1b")


def test_csv_says_the_same(outputs, capsys):
    assert main(["compare", str(outputs), "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = compared(outputs)
    for line in lines:
        shown = next(r for r in found.rows if r.name == line["predictor"])
        assert float(line["mean"]) == shown.mean(line["metric"])
        half = shown.half_interval(line["metric"])
        assert float(line["half_interval_95"] or "nan") == pytest.approx(
            half if half is not None else float("nan"), nan_ok=True
        )
        assert int(line["runs"]) == len(shown.values[line["metric"]])
    best = [(line["predictor"], line["metric"]) for line in lines if line["best"] == "1"]
    assert best == [("deep", "mse"), ("linear", "psnr")]


def test_hostile_names_stay_text(tmp_path, capsys):
    evil = '=HYPERLINK("x")</td><script>alert(1)</script>[red]\n\x1b[31m,"'
    for i in range(2):
        folder = tmp_path / f"<i>{i}"
        found = runs.result(evil, {evil: 0.1 + i, "mse": 0.2}, experiment=evil, references={evil: {evil: 0.3}})
        runs.write(folder, found, runs.config(footprint=evil if i else 3))
    page = tmp_path / "all.html"
    assert main(["compare", str(tmp_path), "--html", str(page)]) == 0
    plain = capsys.readouterr().out
    assert len(plain.splitlines()) == 4
    assert "\x1b" not in plain
    text = page.read_text()
    assert text.count("<script") == 1
    assert "<i>" not in text
    assert "<td></td>" in text or "<td>" in text
    assert main(["compare", str(tmp_path), "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {line["predictor"] for line in lines} == {f"'{printable(evil)}"}, "no formula, one line"
    shown = terminal(compared(tmp_path), 100, color_system=None)
    assert "\x1b[31m" not in shown
    assert "[red]" in shown


def test_the_page_links_to_the_runs_pages(outputs, tmp_path):
    folder = next(outputs.rglob("result.json")).parent
    (folder / "report.html").write_text("")
    path = tmp_path / "pages" / "all.html"
    path.parent.mkdir()
    assert main(["compare", str(outputs), "--html", str(path)]) == 0
    text = path.read_text()
    (link,) = [part.partition('"')[0] for part in text.split('href="')[1:]]
    assert (path.parent / link).resolve() == (folder / "report.html").resolve()
    assert ">5.000e-02<small>± 2.484e-02</small>" in text
    assert "://" not in text


def test_it_imports_no_torch(outputs):
    code = (
        "import sys; from sigexp.cli import main; assert main(sys.argv[1:]) == 0; "
        "loaded = {'torch', 'hydra', 'matplotlib', 'cv2'} & set(sys.modules); assert not loaded, loaded"
    )
    for words in (["compare", str(outputs)], ["compare", str(outputs), "--csv"], ["compare", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0 or words[-1] == "--help", done.stderr
        assert done.stdout


def learned(tmp_path: Path, **values: list[float]) -> compare.Comparison:
    for model, per_seed in values.items():
        for seed, value in enumerate(per_seed):
            settings = runs.config(seed, model={"_target_": f"a.{model}"})
            runs.write(tmp_path / model / str(seed), runs.result(model, {"mse": value}, seed), settings)
    return compared(tmp_path)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([0.5, 0.51, 0.52], "a has the best mse; its interval and b's do not overlap"),
        ([0.1, 0.3, 0.5], "a has the best mse; its interval and b's overlap"),
        ([0.5], "a has the best mse; whether b differs needs more seeds"),
        ([0.1, 0.11, 0.12], "a and b have the same mean mse"),
        ([], ""),
    ],
)
def test_a_sentence_says_who_is_best(tmp_path, others, said):
    found = learned(tmp_path, a=[0.1, 0.11, 0.12], b=others)
    assert compare_tables.sentence(found).startswith(said)
    assert said in " ".join(terminal(found, 120, color_system=None).split())


def test_one_row_alone_is_not_marked_as_the_best(tmp_path):
    shown = terminal(learned(tmp_path, a=[0.1]), 100, color_system=None)
    assert "*" not in shown
    assert "no interval" in shown


def test_replays_are_left_out_unless_asked_for(tmp_path, capsys):
    runs.write(tmp_path / "a", runs.result("linear", {"mse": 0.1}))
    again = runs.write(tmp_path / "b", runs.result("linear", {"mse": 0.2}, search="replay"), runs.config(footprint=9))
    assert main(["compare", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "1 replay left out" in shown.err
    assert "2.000e-01" not in shown.out
    for words in (["--replays", str(tmp_path)], [str(again)]):
        assert main(["compare", *words]) == 0
        shown = capsys.readouterr()
        assert "replay left out" not in shown.err
        assert "2.000e-01" in shown.out


def test_the_page_names_data_date_and_command(outputs, tmp_path):
    path = tmp_path / "all.html"
    assert main(["compare", str(outputs), "--html", str(path)]) == 0
    text = path.read_text()
    assert "test data (blur, signals: drawn)" in text
    assert f"sigexp compare {outputs} --html" in text
    assert re.search(r"<li>\d{4}-\d\d-\d\d \d\d:\d\d</li>", text)
    assert "deep has the best mse; its interval and linear" in text


def test_a_missing_config_is_no_error(tmp_path):
    folder = runs.write(tmp_path / "run", runs.result("linear", {"mse": 0.1}))
    (folder / "config.yaml").unlink()
    (folder / "composed.yaml").unlink()
    assert read(folder).config == {}
    assert row(compared(folder), "linear").count == 1
    with pytest.raises(Unreadable, match="no such folder"):
        read(tmp_path / "other")


def test_yaml_that_is_longer_than_ours_is_not_read(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n" + "# \n" * 40_000)
    with pytest.raises(record.Unreadable, match=r"config\.yaml cannot be read \(120,005 bytes, more than 100,000\)"):
        record.load_yaml(tmp_path, "config.yaml")
