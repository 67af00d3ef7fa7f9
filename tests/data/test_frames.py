from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from ddim_lightning.data.fitting import measure_crop
from ddim_lightning.data.frames import check_num_frames, choose_frames, make_size
from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import FrameSelection
from tests.data.messages import make_pattern

LIMITS = VideoLimits(num_frames=49, height=480, width=720, multiple=16, temporal=4)


def test_unset_count_is_the_most_that_the_model_takes():
    choice = choose_frames(132, LIMITS)
    assert choice.indices == list(range(49))
    assert choice.selection == FrameSelection(start=0, stride=1, count=49, dropped=83)
    assert choice.warning == "frames 49..131 of 132 were not used (model takes 49 at once, num_frames='all' takes all)"


def test_unset_count_is_the_largest_4k_plus_1_of_a_short_clip():
    choice = choose_frames(20, LIMITS, start=2)
    assert choice.indices == list(range(2, 19))
    assert choice.selection == FrameSelection(start=2, stride=1, count=17, dropped=1)
    assert choice.warning == "frames 19..19 of 20 were not used (the count must be 4k + 1)"


def test_nothing_is_said_when_nothing_is_left_out():
    choice = choose_frames(9, LIMITS)
    assert choice.selection == FrameSelection(start=0, stride=1, count=9, dropped=0)
    assert choice.warning is None


def test_all_takes_what_the_clip_has_whatever_the_model_takes_at_once():
    choice = choose_frames(132, LIMITS, start=1, num_frames="all")
    assert choice.indices == list(range(1, 130))
    assert choice.selection == FrameSelection(start=1, stride=1, count=129, dropped=2)
    assert choice.warning == "frames 130..131 of 132 were not used (the count must be 4k + 1)"
    assert choose_frames(132, LIMITS, num_frames=97).indices == list(range(97))
    assert choose_frames(132, LIMITS, num_frames="all", stride=2).indices == list(range(0, 130, 2))
    spread = choose_frames(132, LIMITS, num_frames="all", stride="spread")
    assert spread.count == 129 and spread.selection.dropped == 0


def test_explicit_count():
    choice = choose_frames(132, LIMITS, start=10, num_frames=5, stride=3)
    assert choice.indices == [10, 13, 16, 19, 22]
    assert choice.selection == FrameSelection(start=10, stride=3, count=5, dropped=107)
    assert choice.warning == "frames 25..131 of 132 were not used (num_frames=5)"


def test_last_frame_of_a_stride_may_be_the_last_of_the_clip():
    choice = choose_frames(9, LIMITS, stride=2)
    assert choice.indices == [0, 2, 4, 6, 8]
    assert choice.selection.dropped == 0


def test_fractional_stride_is_exact():
    choice = choose_frames(23, LIMITS, num_frames=9, stride=2.4)
    assert choice.stride == Fraction(12, 5)
    assert choice.indices == [0, 2, 4, 7, 9, 12, 14, 16, 19]
    assert choice.selection.stride == 2.4


@pytest.mark.parametrize(("total", "start"), [(132, 0), (49, 0), (50, 0), (100, 7), (1000, 3)])
def test_spread_covers_everything_evenly(total, start):
    choice = choose_frames(total, LIMITS, start=start, stride="spread")
    count, rest = choice.count, total - start
    assert count == 49
    assert choice.count * choice.stride == rest  # the new clip lasts as long as the old
    gaps = {b - a for a, b in zip(choice.indices, choice.indices[1:], strict=False)}
    assert gaps <= {rest // count, rest // count + 1}
    assert choice.indices[0] == start
    assert total - choice.indices[-1] <= rest // count + 1
    assert choice.selection.dropped == 0
    assert choice.warning is None


def test_spread_over_a_clip_shorter_than_the_model_takes():
    assert choose_frames(8, LIMITS, stride="spread").indices == [0, 1, 3, 4, 6]


@pytest.mark.parametrize(
    ("total", "options", "message"),
    [
        (4, {"stride": 1.0}, "too few frames: 4 of 4 can be used, at least 5"),  # nothing that nobody asked for
        (132, {"start": 200}, "too few frames: 0 of 132 … (start=200), at least 5"),
        (12, {"stride": 3.0}, "too few frames: 4 of 12 … (stride=3), at least 5"),
        (4, {"stride": "spread"}, "too few frames: 4 of 4 … (stride=spread), at least 5"),
        (132, {"num_frames": 8}, "num_frames … 4k + 1 … at least 5, got 8"),
        (132, {"num_frames": 1}, "num_frames … 4k + 1 … at least 5, got 1"),
        (
            20,
            {"num_frames": 21, "start": 2},
            "num_frames … at most 18 … 20 frames … (start=2), got 21",
        ),
        (132, {"stride": 0.5}, "stride … >= 1 … got 0.5"),
        (132, {"stride": "wide"}, "stride … >= 1 … got 'wide'"),
        (132, {"stride": float("nan")}, "stride … >= 1 … got nan"),
        (132, {"stride": float("inf")}, "stride … >= 1 … got inf"),
    ],
)
def test_broken_rules_are_named(total, options, message):
    with pytest.raises(ValueError, match=make_pattern(message)):
        choose_frames(total, LIMITS, **options)


def test_any_number_of_frames_without_temporal_compression():
    free = VideoLimits(num_frames=1000, height=48, width=32, multiple=1, temporal=1)
    check_num_frames(8, free)
    assert choose_frames(38, free).count == 38


def test_size():
    assert make_size(LIMITS) == (480, 720)
    assert make_size(LIMITS, width=64) == (480, 64)
    with pytest.raises(ValueError, match=r"^width .*multiple of 16.*got 100"):
        make_size(LIMITS, 32, 100)
    with pytest.raises(ValueError, match=r"^height .*multiple of 16.*got 0"):
        make_size(LIMITS, 0, 32)


@pytest.mark.parametrize(
    ("h", "w", "lost"),
    [(1920, 1080, 0.625), (720, 1280, 1 - 1080 / 1280), (480, 720, 0), (960, 1440, 0), (1, 9, 7 / 9)],
)
def test_what_a_crop_loses_is_measured_and_told(h, w, lost):
    """A portrait clip of a phone loses more than half of its picture at CogVideoX's size."""
    assert measure_crop(h, w, 480, 720) == pytest.approx(lost, abs=0.12 if h == 1 else 1e-6)
    choice = replace(choose_frames(49, LIMITS), cropped=measure_crop(h, w, 480, 720))
    assert choice.selection.cropped == pytest.approx(choice.cropped, abs=1e-4)
    assert len(choice.warnings) == (lost > 0.1)
    if lost > 0.1:
        assert f"{choice.cropped:.0%}" in choice.warnings[0]


def test_a_crop_is_measured_in_shown_pixels():
    # 176 x 144 pixels of 128:117 are shown as 192.5 x 144; a square keeps 144 of these columns.
    assert measure_crop(144, 176, 48, 48, Fraction(128, 117)) == pytest.approx(1 - 144 / 192.5, abs=0.01)
