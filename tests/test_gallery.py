"""The gallery's pages: hand-written text kept, claims and tables as measured, pictures in place."""

import json
from pathlib import Path
from typing import Any

import pytest

from sigexp import gallery
from sigexp.pages import MARK
from sigexp.report import claims_file


def result(seed: int, psnr: float) -> dict[str, Any]:
    return {
        "command": f"sigexp experiment=bayer model=linear seed={seed}",
        "model": {"name": "linear"},
        "seeds": {"seed": seed},
        "parameters": 228,
        "samples": 200_000,
        "seconds": 30.0 + seed,
        "device": "cpu: some",
        "budget": {"max_samples": 200_000, "lecture_max_samples": 1_000_000},
        "best": {"test": {"psnr": psnr, "mse": 7e-4}, "valid": {"loss": 1e-4, "psnr": 40.0}},
        "references": {"menon": {"psnr": 35.0, "mse": 4e-4}, "noise_floor": {"mse": 1e-5}},
        "references_valid": {"menon": {"psnr": 41.0}},
        "excess": None,
    }


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """claims.json of two runs, whose folders are there."""
    runs = []
    for seed, psnr in enumerate((32.0, 33.0)):
        run = tmp_path / f"run{seed}"
        run.mkdir()
        (run / "result.json").write_text(json.dumps(result(seed, psnr)))
        members = [
            {"total_samples": 1000 * n, "valid_loss": 1 / n + late, "valid": 30.0 + n, "diverged": late > 1}
            for n in (1, 2)
            for late in (0.0, 0.5, float(2))
        ]
        (run / "rounds.jsonl").write_text("".join(json.dumps(member) + "\n" for member in members))
        (run / "examples.png").write_bytes(b"picture of seed %d" % seed)
        runs.append(str(run))
    condition = {
        "metric": "test.psnr", "comparison": "at_least", "threshold": "menon - 1", "bound": 34.0, "mean": 32.5,
        "half_interval_95": 6.353, "values": [32.0, 33.0], "bounds": [34.0, 34.0], "holds": False,
    }  # fmt: skip
    claim = {
        "experiment": "bayer", "id": "linear", "text": "It is near.", "lecture": "1.45e-3", "run": {"model": "linear"},
        "tested_on": {}, "holds": False, "conditions": [condition], "problems": [], "runs": runs,
    }  # fmt: skip
    return {
        "claims": [claim], "seeds": [0, 1], "command": "sigexp reproduce bayer", "machine": "cpu: some",
        "versions": {"torch": "2"},
    }  # fmt: skip


def test_a_page_says_what_was_measured(found, tmp_path):
    pages = gallery.write(found, tmp_path / "experiments")
    folder = tmp_path / "experiments" / "bayer"
    assert pages == [folder / "README.md", tmp_path / "experiments" / "README.md"]
    page = pages[0].read_text()
    assert page.startswith("# bayer\n\nBayer mosaics to photographs")
    assert "| It is near. | 1.45e-3 | test.psnr at least 34.00 dB (menon - 1) | 32.50 dB ± 6.35 dB | **no** |" in page
    # The best of two predictors first; mean over the seeds with Student's interval, t(0.975, 1) 0.7071 / sqrt(2).
    rows = [line for line in page.splitlines() if line.startswith(("| menon", "| **linear", "| noise_floor"))]
    assert rows[0] == "| menon | 35.00 dB | 4.000e-04 |"
    assert rows[1] == "| **linear, learned** | 32.50 dB ± 6.35 dB | 7.000e-04 |"
    assert rows[2] == "| noise_floor |  | 1.000e-05 |"
    assert (folder / "model-linear-examples.png").read_bytes() == b"picture of seed 0"
    assert (folder / "model-linear-curves.png").read_bytes().startswith(b"\x89PNG")
    overview = pages[1].read_text()
    assert "| [bayer](bayer/README.md) | Bayer mosaics to photographs" in overview
    assert f"| 0 of 1; {len(claims_file.load('bayer')) - 1} more not run |" in overview


def test_what_stands_above_the_mark_is_kept(found, tmp_path):
    path = gallery.write(found, tmp_path / "experiments")[0]
    mine = "# Mosaics\n\nWritten by hand."
    path.write_text(f"{mine}\n\n{MARK.format('reproduce')}\n\nold measurements\n")
    other = tmp_path / "experiments" / "color"
    other.mkdir()
    (other / "README.md").write_text("# color\n")
    gallery.write({**found, "claims": [{**found["claims"][0], "experiment": "color"}]}, tmp_path / "experiments")
    overview = (tmp_path / "experiments" / "README.md").read_text()
    assert overview.count("| 0 of 1; ") == 2  # bayer's line stays as it was
    gallery.write(found, tmp_path / "experiments")
    text = path.read_text()
    assert text.startswith(mine)
    assert "old measurements" not in text


def test_pictures_that_a_page_no_longer_shows_are_removed(found, tmp_path):
    folder = tmp_path / "pages" / "bayer"
    gallery.write(found, tmp_path / "pages")
    (folder / "by-hand.png").write_bytes(b"mine")
    before = {path.name for path in folder.glob("model-linear-*.png")}
    assert before
    found["claims"][0]["run"] = {"model": "linear", "search.max_samples": 5}
    gallery.write(found, tmp_path / "pages")
    after = {path.name for path in folder.glob("*.png")}
    assert not before & after
    assert {"by-hand.png", "model-linear-search-max-samples-5-examples.png"} <= after


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("sigexp reproduce bayer -o /home/me/runs --gallery /tmp/x", "sigexp reproduce bayer"),
        ("sigexp reproduce --gallery=/tmp/x --seeds 3 --output='/a b'", "sigexp reproduce --seeds 3"),
        ("sigexp reproduce -o/home/me bayer/linear --quick", "sigexp reproduce bayer/linear --quick"),
    ],
)
def test_the_command_of_a_page_names_no_folder_of_a_machine(typed, shown):
    assert gallery.portable(typed) == shown


def test_progress_is_the_best_healthy_member_of_every_round(found):
    assert gallery.progress(Path(found["claims"][0]["runs"][0])) == [(1000, 31.0), (2000, 32.0)]


def test_a_net_that_no_claim_looks_at_is_not_shown(found, tmp_path):
    closed = {**found["claims"][0]["conditions"][0], "metric": "learning_curve.passes_linear_at"}
    claim = {**found["claims"][0], "conditions": [closed]}
    page = gallery.write({**found, "claims": [claim]}, tmp_path / "closed")[0].read_text()
    assert "In closed form" in page
    assert "learned**" not in page
    assert not (tmp_path / "closed" / "bayer" / "model-linear-curves.png").exists()
    shared = gallery.write({**found, "claims": [claim, found["claims"][0]]}, tmp_path / "shared")[0].read_text()
    assert "learned**" in shared  # another claim on the same run looks at it
