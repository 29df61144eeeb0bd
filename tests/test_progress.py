"""Progress: plain lines elsewhere than on a terminal, a live panel there, nothing when quiet."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from malt_jax import progress
from malt_jax.progress import Dashboard, Progress, duration, open_progress

STATS = {
    "tokens_generated": 9000,
    "seconds": 3.0,
    "padding_waste": 0.031,
}


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_lines_elsewhere_than_on_a_terminal(capsys, clock):
    with Progress(clock=clock) as shown:
        shown.update("search/000", 0, 400)
        clock.now += 10
        shown.update("search/000", 100, 400, leaves_right="61.2%")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("[   0.0 s] search/000: 0/400")
    assert second.startswith("[  10.0 s] search/000: 100/400, leaves right 61.2%")
    assert second.endswith("left 0:30")


def test_quick_updates_do_not_flood_but_first_and_last_are_said(capsys, clock):
    shown = Progress(clock=clock)
    for step in range(1001):
        clock.now += 0.01
        shown.update("train/000/refiner/sft", step, 1000, loss=1 / (step + 1))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # the first, one at 5 s, the last
    assert ": 0/1,000" in lines[0] and ": 1,000/1,000" in lines[-1]
    assert "left" not in lines[-1]


def test_a_new_stage_is_said_at_once_and_starts_its_own_clock(capsys, clock):
    shown = Progress(clock=clock)
    shown.update("search/000", 1, 2, leaves_right="50%")
    clock.now += 1
    shown.update("eval", 0, 8)
    clock.now += 10
    shown.update("eval", 2, 8)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "leaves right" not in lines[1]
    assert "left 0:30" in lines[2]


def test_watched_figures_stand_beside_every_update(capsys, clock):
    shown = Progress(clock=clock)
    shown.watch(lambda: STATS)
    shown.update("search/000", 1, 2)
    line = capsys.readouterr().err
    assert "tokens/s 3,000, padding waste 3.1%" in line and "memory" in line


def test_figures_before_the_first_token_are_left_out(capsys, clock):
    shown = Progress(clock=clock)
    shown.watch(lambda: {**dict.fromkeys(STATS, 0)})
    shown.update("search/000", 0, 2)
    assert "tokens/s" not in capsys.readouterr().err


def test_quiet_says_nothing(capsys, clock):
    shown = open_progress(quiet=True)
    shown.note("hello")
    shown.update("search/000", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_piped_standard_error_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    assert type(open_progress()) is Progress


def dashboard(clock: Clock) -> tuple[Dashboard, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=20, color_system=None)
    return Dashboard("run", clock, console), out


def plain(text: str) -> str:
    """Without the terminal's own sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_panel_shows_stage_count_and_figures(clock):
    shown, out = dashboard(clock)
    with shown:
        shown.watch(lambda: STATS)
        shown.update("search/000", 0, 2000)
        clock.now += 60
        shown.update("search/000", 500, 2000, leaves_right="61.2%")
        shown.console.print(shown.panel())
    text = plain(out.getvalue())
    assert "malt run  1:00" in text and "search/000" in text and "500/2,000" in text
    for figure in ("tokens/s 3,000", "padding waste 3.1%", "leaves right 61.2%", "left 3:00"):
        assert figure in text


def test_markup_and_escape_sequences_in_texts_are_inert(clock, capsys):
    nasty = "[bold red]x[/] \x1b[2J\x1b]0;title\x07 [link=http://a]b[/link]\nnext"
    shown, out = dashboard(clock)
    with shown:
        shown.note(nasty)
        shown.update(nasty, 1, 2, **{"[red]name": nasty})
        shown.console.print(shown.panel())
    text = out.getvalue()
    assert "\x1b[2J" not in text and "\x1b]0" not in text and "\x07" not in text
    assert "[bold red]x[/]" in text and "\\x1b[2J" in text
    Progress(clock=clock).note(nasty)
    err = capsys.readouterr().err
    assert "\x1b" not in err and err.count("\n") == 1


def test_closing_twice_and_noting_after_it_are_harmless(clock):
    shown, out = dashboard(clock)
    shown.close()
    shown.close()
    shown.note("the end")
    assert "the end" in plain(out.getvalue())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.9, "0:07"), (751, "12:31"), (11551, "3:12:31")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text
