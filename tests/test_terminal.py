"""What a person sees while a run trains, and at its end: in a terminal, piped, without colour."""

import io
import re
import time

import pytest
from rich.console import Console
from runs import result

from sigexp.report import terminal
from sigexp.search.rounds import MemberRecord, RoundRecord

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
    return RoundRecord(number, members, 1000 * number, 1000, 0.1, members[-2], True)


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    """Standard error as a terminal of 80 columns."""
    shown = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(
        terminal,
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
    assert "\x1b" not in "".join(lines)


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
