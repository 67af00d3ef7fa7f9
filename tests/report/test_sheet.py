"""The contact sheet: what is drawn where, and that long texts stay in their place."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ddim_lightning.report.sheet import Row, make_sheet, write_sheet


def _frames(colors, height=16, width=24):
    return torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, height, width).contiguous()


REDS = [(200 - 5 * i, 10, 20) for i in range(13)]
GREENS = [(10, 200 - 5 * i, 20) for i in range(13)]


def _find_boxes(sheet, colors):
    """Where frame ``i`` is: left, top, right and bottom of the pixels of its color, all of which must be filled."""
    pixels = np.asarray(sheet)
    boxes = {}
    for index, color in enumerate(colors):
        rows, columns = np.nonzero((pixels == color).all(-1))
        if len(rows):
            boxes[index] = (columns.min(), rows.min(), columns.max(), rows.max())
            filled = (columns.max() - columns.min() + 1) * (rows.max() - rows.min() + 1)
            assert filled == len(rows)
    return boxes


def test_each_row_shows_the_same_frames_from_first_to_last_in_order():
    rows = [Row("source", _frames(REDS)), Row("edit 00", _frames(GREENS), "a green wall", "PSNR 12.0 dB")]
    sheet = make_sheet(rows, title="clip", subtitle="13 frames", fps=Fraction(8))
    upper, lower = _find_boxes(sheet, REDS), _find_boxes(sheet, GREENS)
    assert list(upper) == list(lower) == [0, 2, 3, 4, 6, 8, 9, 10, 12]
    lefts = [box[0] for box in upper.values()]
    assert lefts == sorted(lefts) == [box[0] for box in lower.values()]
    assert max(box[3] for box in upper.values()) < min(box[1] for box in lower.values())
    # 16 x 24 pixels grow by a whole factor and keep their aspect.
    widths = {(box[2] - box[0] + 1, box[3] - box[1] + 1) for box in [*upper.values(), *lower.values()]}
    assert widths == {(216, 144)}


def test_frames_that_fit_are_all_shown():
    sheet = make_sheet([Row("source", _frames(REDS[:5]))], title="clip", fps=Fraction(8))
    assert list(_find_boxes(sheet, REDS)) == [0, 1, 2, 3, 4]


def test_large_frames_shrink_and_keep_their_aspect():
    sheet = make_sheet([Row("source", _frames(REDS[:2], 480, 720))], title="clip", fps=Fraction(8))
    left, top, right, bottom = _find_boxes(sheet, REDS)[0]
    assert (right - left + 1, bottom - top + 1) == (216, 144)


@pytest.mark.parametrize("text", ["word " * 200, "x" * 500, "a short one"])
def test_no_text_runs_into_the_frames_or_the_next_row(text):
    label = "a label of some length, longer than its column"
    rows = [Row(label, _frames(colors[:5]), text, text) for colors in (REDS, GREENS)]
    sheet = make_sheet(rows, title=text, subtitle=text, fps=Fraction(30000, 1001))
    pixels = np.asarray(sheet)
    left = min(box[0] for box in _find_boxes(sheet, REDS[:5]).values())
    below_header = int((pixels == REDS[0]).all(-1).nonzero()[0].min())
    assert (pixels[below_header:, left - 8 : left] == 255).all()
    written = np.asarray(sheet.convert("L"))[below_header:, : left - 8].min(1) < 200
    assert written.any()
    # Two equal rows with a clear gap between them: the texts of the first end before the second begins.
    gaps = np.diff(np.flatnonzero(written))
    assert gaps.max() >= 20
    assert (pixels[:, -40:] == 255).all()
    assert (pixels[-40:] == 255).all()


@pytest.mark.parametrize("text", ["x" * 200_000, "x " * 200_000, "\x1b[31m\udce9\ud83d\u202e\x00\n" * 9, ""])
def test_texts_of_any_length_and_of_any_characters_are_drawn_at_once(text):
    rows = [Row(text, _frames(REDS[:5]), text, text)]
    began = time.process_time()
    sheet = make_sheet(rows, title=text, subtitle=text, fps=Fraction(8))
    assert time.process_time() - began < 30  # letter by letter these would take hours
    lines = [Row("x", _frames(REDS[:5]), "a word\n" * 20, "")]
    assert sheet.height <= make_sheet(lines, title="x", subtitle="x", fps=Fraction(8)).height + 80


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("1", "2"):
        write_sheet(tmp_path / name, [Row("source", _frames(REDS), "a prompt")], title="clip", fps=Fraction(8))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert Image.open(tmp_path / "1").format == "PNG"


def test_rows_of_different_shapes_are_refused():
    rows = [Row("source", _frames(REDS)), Row("edit", _frames(REDS[:9]))]
    with pytest.raises(ValueError, match=r"^rows: must have one shape.*\(9, 3, 16, 24\)"):
        make_sheet(rows, title="clip", fps=Fraction(8))
