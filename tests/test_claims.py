"""Claims: their YAML is checked, their arithmetic is that of the textbook, and reproduce runs, reuses and judges."""

import json
import math
import subprocess
import sys

import pytest

from sigexp import catalog
from sigexp.cli import main
from sigexp.report import claims_file, verdicts
from sigexp.report.claims import Claim, Condition, Threshold, matching, plan, words
from sigexp.report.series import remaining
from sigexp.reproduce import check

TINY = (
    "dataset.size: 20, dataset.test_size: 4, dataset.image_size: 24, footprint: 5, search.max_samples: 64, "
    "search.members: 2, search.survivors: 1, search.initial_samples: 10, search.round_samples: 10, "
    "search.valid_samples: 20, trainer.batch_size: 5, trainer.threads: 1"
)


def write(workdir, text, name="gaussian"):
    folder = workdir / "conf" / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


def claim(text="it shows something", run=None, conditions=(), **fields):
    return Claim("gaussian", "it", text, run or {"model": "linear"}, tuple(conditions), fields.get("tested_on", {}), "")


GOOD = "it: {text: words, run: {model: linear}, metric: test.mse, at_most: 1.0e-4}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("it: {txt: words}", ["it.txt", "did you mean text"]),
        ("it: [1, 2]", ["it: expected fields"]),
        ("- it", ["expected claims"]),
        ("it: {text: [", ["not YAML"]),
        (GOOD.replace("text: words, ", ""), ["it.text", "one sentence"]),
        (GOOD.replace("model: linear", "model: liner"), ["it.run.model=liner", "did you mean linear"]),
        (GOOD.replace("model: linear", "model: linear, dataset: gausian"), ["run.dataset=gausian", "gaussian"]),
        (GOOD.replace("model: linear", "model: linear, search: automl"), ["run.search=automl", "automlp"]),
        (GOOD.replace("model: linear", "footprint: 5"), ["it.run.model", "missing"]),
        (GOOD.replace("model: linear", "model: linear, seed: 3"), ["it.run.seed", "leave it out"]),
        (GOOD.replace("{model: linear}", "{model: linear, search: {members: 3}}"), ["it.run.search", "search.FIELD"]),
        (GOOD.replace("test.mse", "tst.mse"), ["it.metric=tst.mse", "did you mean test"]),
        (GOOD.replace("test.mse", "references.mse"), ["references.NAME.METRIC"]),
        (GOOD.replace("test.mse", "7"), ["it.metric", "such as test.mse"]),
        (GOOD.replace("at_most: 1.0e-4", "at_mots: 1"), ["it.at_mots", "did you mean at_most"]),
        (GOOD.replace("at_most: 1.0e-4", "lecture: 1"), ["exactly one of at_most, at_least, told", "got none"]),
        (GOOD.replace("at_most: 1.0e-4", "at_most: 1, at_least: 0"), ["got at_most and at_least"]),
        (GOOD.replace("at_most: 1.0e-4", "told: 1"), ["it.told=1", "expected true"]),
        (GOOD.replace("1.0e-4", "few"), ["it.at_most=few", "expected a number"]),
        (GOOD.replace("1.0e-4", ".nan"), ["it.at_most=nan", "expected a number"]),
        (GOOD.replace("1.0e-4", "true"), ["it.at_most=True", "expected a number"]),
        (GOOD.replace("1.0e-4", "{reference: exact, fctor: 2}"), ["it.at_most.fctor", "did you mean factor"]),
        (GOOD.replace("1.0e-4", "{factor: 2}"), ["it.at_most.reference"]),
        (GOOD[:-1] + ", also: {metric: test.mse}}", ["it.also", "a list"]),
        (GOOD[:-1] + ", also: [{metric: test.mse}]}", ["it.also[0]", "exactly one"]),
        (GOOD[:-1] + ", quick: {at_least: 1}}", ["it.quick", "got at_most and at_least"]),
        (GOOD[:-1] + ", quick: {lecture: 1}}", ["it.quick.lecture"]),
        (GOOD[:-1] + ", quick: true}", ["it.quick"]),
        (GOOD.replace("it:", "i t:"), ["letters, digits and _"]),
        (GOOD.replace("it:", "linear:"), ["linear", "choose another"]),
    ],
)
def test_a_wrong_claim_is_told_in_a_few_lines(text, parts, workdir, capsys):
    write(workdir, text)
    assert main(["reproduce", "gaussian", "--list"]) == 2
    message = capsys.readouterr().err
    assert "conf/claims/gaussian.yaml" in message
    assert len(message.strip().splitlines()) <= 2
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD.replace("test.mse", "test.psnr"), ["gaussian/it", "test.psnr", "no such metric"]),
        (GOOD.replace("test.mse", "train.mse_inner"), ["did you mean mse_interior"]),
        (GOOD.replace("1.0e-4", "{reference: exct}"), ["references.exct.mse", "did you mean exact"]),
        (GOOD.replace("1.0e-4", "{reference: exact, metric: psnr}"), ["references.exact.psnr", "no such metric"]),
        (GOOD.replace("model: linear", "model: linear, dataset.sgima: 3"), ["gaussian/it", "dataset.sgima"]),
        (GOOD.replace("model: linear", "model: linear, search.members: 0"), ["gaussian/it", "search.members=0"]),
        (GOOD[:-1] + ", tested_on: {dataset.sise: 3}}", ["gaussian/it", "dataset.sise"]),
    ],
)
def test_what_no_run_could_show_is_refused_before_any_run(text, parts, workdir, capsys):
    write(workdir, text)
    assert main(["reproduce", "gaussian/it", "-o", "out"]) == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message
    assert not (workdir / "out").exists()


def test_wrong_names_and_numbers_end_with_exit_code_2(workdir, capsys):
    for words_, parts in (
        (["gausian"], ["gausian", "did you mean gaussian"]),
        (["gaussian/liner"], ["gaussian/liner", "did you mean linear"]),
        (["gaussian/separable", "--quick"], ["--quick leaves it out"]),
        (["--seeds", "0"], ["--seeds 0", "at least 1"]),
        (["--sedes", "1"], ["--sedes"]),
    ):
        assert main(["reproduce", *words_]) == 2
        message = capsys.readouterr().err
        assert all(part in message for part in parts), message
    write(workdir, GOOD, "gausian")
    assert main(["reproduce"]) == 2
    assert "no experiment 'gausian'; did you mean gaussian" in capsys.readouterr().err


def test_listing_imports_no_torch():
    code = (
        "import sys; from sigexp.cli import main; assert main(['reproduce', '--list']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sigexp experiment=gaussian model=linear\n    linear: test.mse at most 1.02 x" in done.stdout


def test_every_experiment_has_claims_and_quick_ones_are_few():
    assert claims_file.experiments() == [choice.name for choice in catalog.choices("experiment")]
    whole, quick = claims_file.select([]), claims_file.select([], quick=True)
    assert {c.experiment for c in quick} < {c.experiment for c in whole}
    assert 0 < len(plan(quick)) < len(plan(whole))


# bayer is judged by a reference, menon, that its problem has to carry before its claims can be checked
@pytest.mark.parametrize("experiment", claims_file.experiments())
def test_packaged_claims_are_about_numbers_that_their_runs_have(experiment):
    for quick in (False, True):
        for run in plan(claims_file.load(experiment, quick=quick)):
            seeded, source = check(run)
            assert seeded
            assert source


def test_claims_on_small_errors_have_ten_thousand_test_examples():
    for one in claims_file.select([]):
        for condition in one.conditions:
            small = condition.comparison == "at_most" and condition.metric in ("test.error", "test.pixel_error")
            if small and condition.threshold.offset <= 0.002:
                assert one.run["dataset.test_size"] >= 10_000, one.name


def test_quick_replaces_fields_and_merges_the_run(workdir):
    write(
        workdir,
        "it: {text: words, run: {model: linear, footprint: 5}, metric: test.mse, at_most: 1, also: [{metric: samples, "
        "at_most: 5}], quick: {run: {search.max_samples: 9}, at_most: 2, also: []}}\n"
        "not_quick: {text: words, run: {model: linear}, metric: test.mse, told: true, quick: false}",
    )
    whole, quick = ({c.id: c for c in claims_file.load("gaussian", quick=q)} for q in (False, True))
    assert whole["it"].run == {"model": "linear", "footprint": 5}
    assert [c.threshold.offset for c in whole["it"].conditions] == [1, 5]
    assert quick["it"].run == {"model": "linear", "footprint": 5, "search.max_samples": 9}
    assert [c.threshold.offset for c in quick["it"].conditions] == [2]
    assert "not_quick" in whole
    assert "not_quick" not in quick


def test_equal_settings_share_a_run_whatever_their_order():
    one = claim(run={"model": "linear", "footprint": 5})
    two = claim(run={"footprint": 5, "model": "linear"}, tested_on={"dataset.image_size": 32})
    other = claim(run={"model": "linear"})
    runs = plan([one, other, two])
    assert [run.claims for run in runs] == [(one, two), (other,)]
    assert runs[0].overrides(2) == ["experiment=gaussian", "model=linear", "footprint=5", "seed=2", "dataset.seed=2"]


def test_values_are_spelled_as_hydra_reads_them():
    settings = {"a": None, "b": True, "c": [1, 2.5], "d": "two words", "e": "it's", "f": 1e-5}
    assert words(settings) == ["a=null", "b=true", "c=[1,2.5]", "d='two words'", "e='it\\'s'", "f=1e-05"]


CHOICES = {"experiment": "gaussian", "dataset": "gaussian", "model": "linear", "search": "automlp"}


@pytest.mark.parametrize(
    ("run", "overrides", "same"),
    [
        ({"model": "linear"}, ["experiment=gaussian"], True),
        ({"model": "linear"}, ["model=linear", "experiment=gaussian", "seed=7", "outputs=x", "device=cpu"], True),
        ({"model": "linear", "dataset": "gaussian"}, ["experiment=gaussian"], True),
        ({"model": "separable"}, ["experiment=gaussian"], False),
        ({"model": "linear"}, ["experiment=gaussian", "footprint=7"], False),
        ({"model": "linear", "footprint": 7}, ["experiment=gaussian", "footprint=7"], True),
        ({"model": "linear", "footprint": 7}, ["experiment=gaussian", "footprint=9"], False),
        ({"model": "linear"}, ["dataset=gaussian"], False),
    ],
)
def test_a_run_matches_claims_of_its_own_settings(run, overrides, same):
    assert bool(matching([claim(run=run)], overrides, CHOICES)) == same


def test_a_claim_tested_elsewhere_is_for_reproduce_alone():
    assert not matching([claim(tested_on={"dataset.image_size": 32})], ["experiment=gaussian"], CHOICES)


def result(mse, exact=0.5, **more):
    return {"test": {"mse": mse}, "train": {}, "references": {"exact": {"mse": exact}}, **more}


def test_the_interval_is_students():
    # s = 1, t(0.975, 2) = 4.302653
    assert verdicts.half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    # s = sqrt(2), t(0.975, 1) = 12.706205
    assert verdicts.half_interval([3.0, 5.0]) == pytest.approx(12.706205, rel=1e-6)
    assert verdicts.half_interval([3.0]) is None
    assert verdicts.mean([]) is None


def test_a_claim_holds_by_the_mean_of_values_against_the_mean_of_bounds():
    bound = Threshold(offset=0.1, factor=2.0, reference="exact", metric="mse")
    at_most = claim(conditions=[Condition("test.mse", "at_most", bound)])
    judged = verdicts.judge(at_most, [result(1.0), result(1.2, exact=0.6), result(1.1)])
    (part,) = judged.measured
    assert part.values == (1.0, 1.2, 1.1)
    assert part.bounds == pytest.approx((1.1, 1.3, 1.1))
    assert part.mean == pytest.approx(1.1)
    assert part.bound == pytest.approx(3.5 / 3)
    assert judged.holds is True
    assert verdicts.judge(at_most, [result(1.2), result(1.2)]).holds is False
    at_least = claim(conditions=[Condition("test.mse", "at_least", bound)])
    assert verdicts.judge(at_least, [result(1.2), result(1.0)]).holds is True


def test_every_condition_must_hold_and_told_ones_set_none():
    low, high = Condition("test.mse", "at_most", Threshold(2.0)), Condition("test.mse", "at_least", Threshold(1.5))
    assert verdicts.judge(claim(conditions=[low, high]), [result(1.0)]).holds is False
    assert verdicts.judge(claim(conditions=[low, high]), [result(1.7)]).holds is True
    told = verdicts.judge(claim(conditions=[Condition("test.mse", "told")]), [result(1.0), result(2.0)])
    assert told.holds is None
    assert told.measured[0].mean == 1.5


def test_a_failed_run_or_a_missing_number_fails_its_claim():
    easy = claim(conditions=[Condition("test.mse", "at_most", Threshold(9.0))])
    failed = verdicts.judge(easy, [result(1.0), "every member diverged"])
    assert failed.holds is False
    assert failed.problems == ("every member diverged",)
    assert failed.measured[0].values == (1.0, None)
    null = verdicts.judge(easy, [result(None)])
    assert null.holds is False
    assert "test.mse is None" in null.problems[0]
    other = claim(conditions=[Condition("references.menon.psnr", "at_least", Threshold(9.0))])
    assert verdicts.judge(other, [result(1.0)]).problems == ("the result has no references.menon.psnr",)


def test_the_time_left_is_that_of_the_same_runs_before():
    left = ["one", "other", "other"]
    assert remaining(left, {"one": 10.0, "other": 30.0}) == "about 70 s left"
    assert remaining(left, {"one": 10.0, "other": 30.0}, at_once=2) == "about 35 s left"
    assert remaining(left[:2], {"one": 100.0}) == "about 3 min left"
    assert remaining([], {}) == "that was the last"


OWN = f"""
easy:
  text: The error is a number below one.
  run: {{model: linear, {TINY}}}
  metric: test.mse
  at_most: 1.0
  also: [{{metric: best.samples, at_most: 64}}, {{metric: train.mse, at_most: 1.0}}]
larger:
  text: On larger images too.
  run: {{model: linear, {TINY}}}
  tested_on: {{dataset.image_size: 40}}
  metric: test.mse
  at_least: {{reference: exact}}
impossible:
  text: The error is negative.
  run: {{model: linear, {TINY}}}
  metric: test.mse
  at_most: -1.0
diverges:
  text: It trains at any learning rate.
  run: {{model: linear, {TINY}, trainer.optimizer.lr: 1.0e+30, search.lr_max: 1.0e+31}}
  metric: test.mse
  told: true
"""


def folders(workdir):
    return sorted(path.parent for path in (workdir / "out").rglob("result.json"))


def test_reproduce_runs_judges_writes_and_reuses(workdir, capsys):
    write(workdir, OWN)
    words_ = ["reproduce", "gaussian/easy", "gaussian/larger", "--seeds", "2", "-o", "out"]
    assert main(words_) == 0
    shown = capsys.readouterr()
    assert "run 1 of 2: gaussian model=linear" in shown.err
    assert "run 2 of 2" in shown.err
    assert "2 of 2 claims hold" in shown.out
    assert all(ord(char) < 128 or char == "±" for char in shown.out), "plain where it is piped"
    assert len(folders(workdir)) == 2, "two claims share their runs"
    written = json.loads((workdir / "out" / "claims.json").read_text())
    assert written["schema_version"] == 1
    assert written["seeds"] == [0, 1]
    assert {"machine", "versions", "command", "runs"} <= set(written)
    easy, larger = written["claims"]
    assert easy["holds"]
    assert larger["holds"]
    values = [
        json.loads((f / "result.json").read_text())["best"]["test"]["mse"] for f in map(workdir.joinpath, easy["runs"])
    ]
    assert easy["conditions"][0]["values"] == values
    assert easy["conditions"][0]["mean"] == pytest.approx(sum(values) / 2)
    seeds = [json.loads((f / "result.json").read_text())["seeds"] for f in map(workdir.joinpath, easy["runs"])]
    assert seeds == [{"seed": 0, "dataset": 0}, {"seed": 1, "dataset": 1}]
    assert larger["conditions"][0]["values"] != values

    (workdir / easy["runs"][1] / "result.json").unlink()  # as if it had been interrupted
    assert main(words_) == 0
    shown = capsys.readouterr()
    assert shown.err.count("reused from") == 1
    assert "2 runs, 1 of them from before" in shown.out
    assert len(folders(workdir)) == 2
    again = json.loads((workdir / "out" / "claims.json").read_text())
    assert [c["conditions"] for c in again["claims"]] == [c["conditions"] for c in written["claims"]]
    assert [run["reused"] for run in again["runs"]] == [True, False]


def test_a_claim_that_fails_and_a_run_that_fails_end_with_exit_code_1(workdir, capsys):
    write(workdir, OWN)
    assert main(["reproduce", "gaussian/impossible", "gaussian/easy", "--seeds", "1", "-o", "out"]) == 1
    shown = capsys.readouterr()
    assert "1 of 2 claims hold" in shown.out
    assert main(["reproduce", "gaussian/diverges", "gaussian/easy", "--seeds", "1", "-o", "out"]) == 1
    shown = capsys.readouterr()
    assert "failed after" in shown.err
    assert "diverged" in shown.err
    found = {c["id"]: c for c in json.loads((workdir / "out" / "claims.json").read_text())["claims"]}
    assert found["diverges"]["holds"] is False
    assert "diverged" in found["diverges"]["problems"][0]
    assert found["easy"]["holds"] is True


def test_a_run_by_hand_says_which_claims_it_bears_out(workdir, capsys):
    write(workdir, OWN)
    settings = [f"{name}={value}" for name, value in (pair.split(": ") for pair in TINY.split(", "))]
    assert main(["experiment=gaussian", *settings, "seed=5"]) == 0
    shown = capsys.readouterr().out
    assert "claim holds: The error is a number below one. (test.mse at most 1" in shown
    assert "claim does not hold: The error is negative." in shown
    (path,) = (workdir / "outputs" / "gaussian" / "linear").iterdir()
    found = {c["id"]: c for c in json.loads((path / "result.json").read_text())["claims"]}
    assert set(found) == {"easy", "impossible"}
    assert found["easy"]["holds"] is True
    assert found["easy"]["measured"] == json.loads((path / "result.json").read_text())["best"]["test"]["mse"]
