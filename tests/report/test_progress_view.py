"""What a person sees of a run at work: on terminals of any width and kind, in a notebook, and in a file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from ddim_lightning.report import progress_view
from ddim_lightning.report.progress_view import Drawing, Tick, make_line, make_view
from ddim_lightning.report.run_clock import TimeLeft
from ddim_lightning.types import Progress

EDIT = Progress("car-turn", "edit", "edit 2/3", 23, 50, 2.0, 100, windows=4)
TICK = Tick(3, 20, EDIT, TimeLeft(760.0), num_skipped=1, num_finished=4, sheet=Path("out/bear/sheet.png"))
NASTY = "[red]\x1b[31m:cat:\x9b\u202e\udce9[bold]"
SHOWN = r"[red]\x1b[31m:cat:\x9b\u202e\xe9[bold]"


def draw(drawing, width, **console):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, **console)
    console.print(drawing)
    return console.file.getvalue()


def test_a_drawing_says_clip_stage_step_what_is_left_and_the_sheet():
    lines = draw(Drawing(TICK, age_s=10.0), 80, color_system=None).splitlines()
    assert lines[0].split() == ["clip", "3/20", "car-turn", "1", "skipped", "4", "finished", "before"]
    assert lines[1].startswith("edit 2/3 (4 windows) 23/50")
    assert lines[2].strip() == "154 NFE left, 12:30 left in all"
    assert lines[3].split() == ["last", "sheet", "out/bear/sheet.png"]


@pytest.mark.parametrize("width", [1, 10, 20, 40, 80, 200])
def test_a_drawing_has_four_lines_of_any_width(width):
    progress = Progress("a very long name of a clip, 視頻 " * 3, "edit", "edits 1-10", 23, 50, 2.0, 100, windows=4)
    tick = Tick(3, 20, progress, TimeLeft(1e5, is_least=True), 1, 4, Path("/a/long", "way/" * 20, "bear", "sheet.png"))
    lines = draw(Drawing(tick), width, color_system=None).splitlines()
    assert len(lines) == 4
    assert max(map(cell_len, lines)) <= width
    if width >= 40:
        assert lines[0].startswith("clip 3/20")
        assert lines[1].startswith("edits 1-10 (4 windows) 23/50")
        assert lines[2].startswith("154 NFE left, over 27:46:40 left in all"[:width])
        assert lines[3].rstrip().endswith("/bear/sheet.png")


def test_a_bar_shows_how_far_a_stage_is_without_colors():
    for done in (0, 25, 50):
        progress = Progress("clip", "invert", "invert", done, 50, 1.0, 0)
        line = draw(Drawing(Tick(1, 1, progress)), 80, color_system=None).splitlines()[1]
        assert line.count("\u2501") == 40 * done // 50


def test_colors_are_left_out_where_they_are_not_wanted(monkeypatch):
    assert "\x1b[36m" in draw(Drawing(TICK), 80, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in draw(Drawing(TICK), 80, color_system="standard")


def test_the_sheet_is_a_link_of_terminals_that_have_links():
    tick = Tick(1, 1, sheet=Path("out/a clip [1]/sheet.png"))
    assert f"{Path('out').absolute().as_uri()}/a%20clip%20%5B1%5D/sheet.png" in draw(Drawing(tick), 80)


def test_a_line_says_the_same():
    left = "154 NFE left, 12:40 left in all"
    counts = "1 skipped; 4 finished before; last sheet out/bear/sheet.png"
    assert make_line(TICK) == f"clip 3/20 car-turn: edit 2/3 (4 windows) 23/50, {left}; {counts}"
    stream = Tick(3, None, Progress("clip", "invert", "invert", 1, 2, 1.0, 3), TimeLeft(4000.0, is_least=True))
    assert make_line(stream) == "clip 3 clip: invert 1/2, 4 NFE left, over 1:06:40 left of this clip"
    assert make_line(Tick(3, 4, num_skipped=3)) == "clip 3/4; 3 skipped"


@pytest.fixture
def clock(monkeypatch):
    """Sets the time of views."""
    now = [1000.0]
    monkeypatch.setattr(progress_view.time, "monotonic", lambda: now[0])
    return now


def test_clips_that_are_passed_by_get_no_line_at_once(clock):
    stream = io.StringIO()
    view = make_view(Console(file=stream, width=20))
    for k in range(25):
        clock[0] += 1
        view.show(Tick(k + 1, 100, num_finished=k + 1))
    assert stream.getvalue().splitlines() == [f"clip {k}/100; {k} finished before" for k in (10, 20)]


def test_lines_come_at_once_and_then_every_ten_seconds(clock):
    stream = io.StringIO()
    view = make_view(Console(file=stream, width=20))
    for k in range(100):
        view.show(Tick(1, 1, Progress("[b]", "invert", "invert", k, 100, 1.0, 0), sheet=TICK.sheet))
        clock[0] += 1
    view.close()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == [
        "clip 1/1 [b]: invert 0/100, 100 NFE left; last sheet out/bear/sheet.png",
        "clip 1/1 [b]: invert 10/100, 90 NFE left",
    ]
    assert len(lines) == 10


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(environment):
    stream = io.StringIO()
    view = make_view(Console(file=stream, width=20, force_terminal=True, _environ=environment))
    view.show(TICK)
    view.close()
    assert stream.getvalue() == f"{make_line(TICK)}\n"


def test_another_bar_keeps_the_terminal():
    stream, above = io.StringIO(), []
    view = make_view(Console(file=stream, width=20, force_terminal=True), above.append)
    view.show(TICK)
    view.close()
    assert (stream.getvalue(), above) == ("", [make_line(TICK)])


def test_an_id_is_shown_as_it_is_written():
    for terminal in (False, True):
        stream = io.StringIO()
        view = make_view(Console(file=stream, force_terminal=terminal, width=200, color_system=None))
        view.show(Tick(1, 1, Progress(NASTY, "decode", "decode", 1, 1, 0.0, 0)))
        view.close()
        assert SHOWN in stream.getvalue()
        assert not set(stream.getvalue()) & {"\x9b", "\u202e"}
