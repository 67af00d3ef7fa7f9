"""What a notebook shows of results in memory and of a folder, and what a console does."""

from __future__ import annotations

import base64
import re
from fractions import Fraction

import pytest
import torch

from ddim_lightning import show
from ddim_lightning.data.video import read_info
from ddim_lightning.output import show as module
from ddim_lightning.types import Clip, ClipResult, UnreadableClip
from tests.clip_results import make_result, make_small_result, write_run

HOSTILE = '<script>window.hacked = 1</script> "><img src=x onerror="window.hacked=1">'
FILES = re.compile(r'<(img|video) src="data:(image/png|video/mp4);base64,([^"]+)"')


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    broken = ClipResult(UnreadableClip("d", "d.mp4", HOSTILE), "skipped", HOSTILE)
    return write_run(tmp_path_factory.mktemp("runs") / "run", *map(make_result, "abc"), broken, sheets=True)


def test_a_result_shows_its_sheet_its_videos_and_its_numbers(tmp_path):
    html = show(make_result("clip"))._repr_html_()
    found = FILES.findall(html)
    assert [(tag, kind) for tag, kind, _ in found] == [("img", "image/png"), *[("video", "video/mp4")] * 4]
    (tmp_path / "edit.mp4").write_bytes(base64.b64decode(found[-1][2]))
    assert read_info(tmp_path / "edit.mp4").num_frames == 9
    for text in (
        "PSNR 31.25 dB",
        "PSNR to source 20.00 dB",
        "350 NFE",
        "1.50 s",
        "ein grüner Kreis",
        "prompt truncated",
    ):
        assert text in html
    assert "<script" not in html


def test_results_come_in_lists_of_lists_and_twice():
    one, two = make_small_result("one"), make_small_result("two")
    shown = show([[one, two], (one,)])
    assert [record["id"] for record in shown.records] == ["one", "two", "one"]
    assert len(FILES.findall(shown._repr_html_())) == 6


def test_a_folder_shows_what_its_files_are(run):
    shown = show(run, most=2)
    html = shown._repr_html_()
    videos = [base64.b64decode(data) for tag, _, data in FILES.findall(html) if tag == "video"]
    names = ("source.mp4", "reconstruction.mp4", "edit-00.mp4", "edit-01.mp4")
    assert videos == [(run / clip / name).read_bytes() for clip in "ab" for name in names]
    assert "and 2 more" in html
    assert repr(shown).splitlines() == [
        f"a: done, {run / 'a' / 'sheet.png'}",
        f"b: done, {run / 'b' / 'sheet.png'}",
        "and 2 more",
    ]
    assert [record["id"] for record in show(run / "b").records] == ["b"]


def test_large_files_are_linked_to(run, monkeypatch):
    monkeypatch.setattr(module, "EMBED_MOST", 100)
    monkeypatch.chdir(run.parent)
    html = show("run/a")._repr_html_()
    assert 'src="run/a/edit-00.mp4"' in html
    assert "base64" not in html
    monkeypatch.chdir(run / "b")  # above which a notebook's page sees nothing
    assert f'src="{(run / "a" / "edit-00.mp4").as_uri()}"' in show(run / "a")._repr_html_()
    html = show(make_result("clip"))._repr_html_()
    assert "too large" in html
    assert "src=" not in html


def test_texts_from_outside_are_texts(run):
    hostile = Clip(HOSTILE, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), Fraction(8), (HOSTILE,), HOSTILE)
    for shown in (
        show(make_result(HOSTILE, warnings=[HOSTILE])),
        show(ClipResult(hostile, "skipped", HOSTILE)),
        show(run),
    ):
        assert "hacked" in shown._repr_html_()
        assert "<script" not in shown._repr_html_()
        assert "<img src=x" not in shown._repr_html_()


def test_what_was_not_done_is_told():
    finished, broken = (
        make_result("a", status="finished"),
        make_result("b", status="skipped", reason="it is\x1b broken"),
    )
    shown = show([finished, broken])
    assert repr(shown).splitlines() == ["a: finished", r"b: skipped: it is\x1b broken"]
    assert r"it is\x1b broken" in shown._repr_html_()
    assert "src=" not in shown._repr_html_()


def test_a_result_is_a_line_on_a_console():
    assert repr([make_result("clip")]) == "[ClipResult('clip', done, 2 edits, 350 NFE)]"
    assert "tensor" not in repr(make_result("clip").clip) + repr(make_result("clip").edits)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"what: .* got a Tensor"):
        show(torch.zeros(1))
    with pytest.raises(ValueError, match=r"most: .* got 0"):
        show([], most=0)
    with pytest.raises(FileNotFoundError, match="run: "):
        show(tmp_path)
