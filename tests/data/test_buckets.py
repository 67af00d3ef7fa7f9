from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from ddim_lightning.data.buckets import check_sizes, choose_size
from ddim_lightning.data.video import VideoInfo
from ddim_lightning.limits import VideoLimits

LIMITS = VideoLimits(num_frames=49, height=480, width=720, multiple=16, temporal=4)


def info(num_frames, height, width, pixel_aspect=1):
    return VideoInfo(Path(), num_frames, Fraction(8), height, width, Fraction(pixel_aspect), 1.0, False)


SIZES = [(49, 480, 720), (49, 720, 480), (49, 240, 368), (17, 480, 480)]


@pytest.mark.parametrize(
    ("clip", "size"),
    [
        (info(100, 1080, 1620), (49, 480, 720)),
        (info(100, 1620, 1080), (49, 720, 480)),
        (info(49, 240, 368), (49, 240, 368)),  # nothing is magnified
        (info(49, 120, 184), (49, 240, 368)),  # all would be magnified: the least
        (info(20, 480, 720), (17, 480, 480)),  # the only one it is long enough for
        (info(100, 1080, 720, Fraction(9, 4)), (49, 480, 720)),  # as it is shown
    ],
)
def test_a_clip_goes_where_most_of_it_is_kept(clip, size):
    assert choose_size([clip], SIZES) == size


def test_the_shape_is_the_sources_and_the_length_that_of_the_shorter():
    assert choose_size([info(100, 480, 720), info(20, 720, 480)], SIZES) == (17, 480, 480)
    assert choose_size([info(100, 720, 480), info(60, 480, 720)], SIZES) == (49, 720, 480)


def test_start_and_stride_count():
    assert choose_size([info(100, 480, 720)], SIZES, stride=2) == (49, 480, 720)
    assert choose_size([info(100, 480, 720)], SIZES, start=4, stride=2) == (17, 480, 480)
    assert choose_size([info(20, 480, 720)], SIZES, stride="spread") == (17, 480, 480)
    with pytest.raises(ValueError, match=r"too few frames: 16 .*at least 17"):
        choose_size([info(20, 480, 720)], SIZES, start=4)


def test_sizes_are_the_models_or_what_it_takes():
    assert check_sizes([], LIMITS) == [(49, 480, 720)]
    assert check_sizes([[17, 32, 48]], LIMITS) == [(17, 32, 48)]
    assert check_sizes([[12, 30, 50]], None) == [(12, 30, 50)]
    for sizes in ([[16, 32, 48]], [[17, 30, 48]], [[17, 32]], [[17, 32, 48], [17, 32, 48]]):
        with pytest.raises(ValueError, match=r"^buckets: "):
            check_sizes(sizes, LIMITS)
    with pytest.raises(ValueError, match=r"^buckets: .*video_limits"):
        check_sizes([], None)
