"""What a person sees while a run trains, and at its end: in a terminal, piped, without colour."""

import io
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console
from runs import result

from sigexp.report import console, terminal
from sigexp.report.phases import Phases
from sigexp.search.records import MemberRecord, RoundRecord

COLOUR = re.compile(r"\x1b\[(?:\d;)*(?:3[0-7]|9[0-7])m")


def record(number: int, count: int = 12) -> RoundRecord:
    """A round of members whose last one diverged; the best is the one with the highest id."""
    members = [
        MemberRecord(
            number,
            100 * number + i,
            None,
            {"lr": 0.1234567 * 10**-i, "batch_size": 20.0},
            50,
            1e-3,
            1e-3,
            20.0 + i,
            False,
        )
        for i in range(count - 1)
    ]
    members.append(MemberRecord(number, 999, None, {"lr": 9.0, "batch_size": 20.0}, 50, 1.0, 1.0, 1.0, True))
    return RoundRecord(number, members, 1000 * number, 1000, 0.1, members[-2], True, {})


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    """Standard error as a terminal of 80 columns."""
    shown = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for module in (terminal, console):
        monkeypatch.setattr(
            module,
            "Console",
            lambda **given: Console(file=shown, force_terminal=True, width=80, height=40, highlight=False),
        )
    return shown


def train(screen: io.StringIO) -> None:
    with terminal.Terminal("run: 12 members", "psnr", ("menon", 35.72), 3000) as seen:
        for number in (1, 2, 3):
            seen.next = 0.0
            seen.round(record(number))


def test_the_live_table_shows_best_and_worst_beside_the_reference(screen):
    train(screen)
    shown = screen.getvalue()
    for part in (
        "best so far",
        "310",
        "worst",
        "diverged",
        "5 more",
        "menon",
        "35.72 dB",
        "-5.72 dB",
        "samples/s",
        "left",
    ):
        assert part in shown
    assert COLOUR.search(shown)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert max(len(line) for line in plain.replace("\r", "\n").splitlines()) <= 80
    assert "…" not in plain


def test_no_color_leaves_colours_out(screen, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    train(screen)
    assert not COLOUR.search(screen.getvalue())


def test_the_table_is_not_drawn_more_often_than_it_may_be(screen):
    with terminal.Terminal("run", "mse", None, 10**6) as seen:
        seen.step(1)
        before = screen.tell()
        seen.next = time.perf_counter() + 3600
        for done in range(1000):
            seen.step(done)
        seen.round(record(1))
        assert screen.tell() == before


def test_piped_rounds_are_lines_at_most_one_a_second_and_the_last_one(capsys):
    with terminal.Terminal("run", "psnr", ("menon", 35.72), 3000) as seen:
        seen.round(record(1))
        seen.next = time.perf_counter() + 3600
        for number in (2, 3):
            seen.round(record(number))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["run, budget 3k member-samples", "round 1", "round 3"]
    assert "left" in lines[1]
    assert lines[2].endswith("training done")
    assert "\x1b" not in "".join(lines)


def test_the_line_names_the_loss_that_decides(capsys):
    with terminal.Terminal("run", "psnr", None, 1000, "valid") as seen:
        seen.round(record(1))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("round")]
    assert "best valid loss 1.000e-03, psnr 30.00 dB" in line
    assert line.endswith("training done"), "no time is left where the budget is spent"


def test_the_table_ranks_by_the_loss_that_decides():
    seen = record(1)
    least = replace(seen.members[3], valid_loss=1e-4)
    members = [*seen.members[:3], least, *seen.members[4:]]
    table = terminal.round_table(replace(seen, members=members, best=least), "psnr", ("menon", 35.72), "valid")
    columns = [list(column.cells) for column in table.columns]
    assert columns[1][:2] == [str(least.id), str(least.id)], "the best so far, and of this round"
    assert columns[4][:2] == ["1.000e-04"] * 2
    shown = io.StringIO()
    Console(file=shown, width=80, force_terminal=True, color_system=None).print(table)
    assert "…" not in shown.getvalue()


def test_a_search_that_stops_early_ends_with_training_done(capsys):
    with terminal.Terminal("run", "psnr", None, 10**6) as seen:
        seen.round(record(1))
    assert capsys.readouterr().err.splitlines()[-1] == "training done"


def test_phases_piped_are_a_line_each_and_their_seconds_add_up(capsys):
    with Phases() as phases:
        phases.at("data", checked=False)
        assert not capsys.readouterr().err, "the line of a user's error stands alone"
        for name in ("data", "plan", "training", "testing", "bounds"):
            phases.at(name)
        phases.at("testing")
        found = phases.finished()
    assert list(found) == ["data", "plan", "training", "testing", "bounds"]
    assert all(seconds >= 0 for seconds in found.values())
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["drawing data", "choosing how to compute", "testing", "best linear filters", "testing"]


def test_a_phase_in_a_terminal_vanishes(screen):
    with Phases() as phases:
        phases.at("testing")
        assert "testing" in screen.getvalue()
    shown = screen.getvalue()
    assert shown.rindex("\x1b[2K") > shown.rindex("testing"), "the line is erased"
    assert "\x1b[?25h" in shown, "the cursor is back"


def test_the_last_lines_say_where_the_time_went(capsys):
    found = shown_result()
    found["phases"] = {"data": 2.2, "plan": 0.1, "training": 3.0, "testing": 4.0, "bounds": 1.0}
    found["dataset"]["source"] = {}
    terminal.show_result(found, "folder")
    shown = capsys.readouterr().out
    assert "3 s training, 10 s in all (data 2 s, testing 4 s, bounds 1 s)" in shown
    assert "data: " not in shown


MANY = {f"metric_{i}": 0.1 * i for i in range(9)}


def shown_result() -> dict:
    found = result("linear", MANY, budget={"lecture_max_samples": None}, member_samples_per_second=3.0)
    found["best"]["hyperparameters"] = {"lr": 0.1}
    found["references"] = {"least_squares_train_with_a_long_name": MANY}
    return found


def test_a_result_is_as_wide_as_the_terminal_and_says_what_it_leaves_out(screen):
    terminal.show_result(shown_result(), "folder")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    table = [line for line in shown.splitlines() if line[:1] in "┏┃┡│└"]
    assert max(map(len, table)) <= 80
    assert "least_squares_train_with_a_long_name" in shown
    assert "not shown for want of width: metric_" in shown


def test_a_piped_result_is_plain_and_whole(capsys):
    terminal.show_result(shown_result(), "folder")
    shown = capsys.readouterr().out
    assert "metric_8" in shown
    assert not set("┏┃│└\x1b…") & set(shown)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.7, "1:00 min"), (125, "2:05 min"), (4200, "1:10 h")])
def test_durations(seconds, text):
    assert terminal.duration(seconds) == text
