from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ddim_lightning.data.first_frame import read_first_frame
from ddim_lightning.data.video import read_clip, read_frames, read_info
from ddim_lightning.limits import VideoLimits
from tests.data.messages import make_pattern

LIMITS = VideoLimits(num_frames=9, height=32, width=48, multiple=16, temporal=4)


def write_picture(path, pixels):
    Image.fromarray(np.asarray(pixels.permute(1, 2, 0))).save(path)
    return path


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (144, 176)])
def test_the_clips_own_frame_becomes_the_clips_first(tmp_path, carphone, fit, height, width):
    # Its pixels are no squares, which a PNG of it does not say.
    (own,) = read_frames(carphone, [0])
    path = write_picture(tmp_path / "own.png", own)
    size = {"height": height, "width": width, "fit": fit}
    frame, _ = read_first_frame(path, read_info(carphone), **size)
    frames, _, _ = read_clip(carphone, limits=LIMITS, num_frames=5, **size)
    assert torch.equal(frame, frames[0])


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_picture_at_the_models_size_is_left_as_it_is(tmp_path, carphone, fit):
    drawn = torch.randint(0, 256, (3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = write_picture(tmp_path / "drawn.png", drawn)
    frame, sentences = read_first_frame(path, read_info(carphone), height=32, width=48, fit=fit)
    assert torch.equal(frame, drawn) and sentences == ()


def test_what_was_lost_of_it_is_told(tmp_path, carphone):
    path = write_picture(tmp_path / "wide.png", torch.zeros(3, 32, 96, dtype=torch.uint8))
    frame, sentences = read_first_frame(path, read_info(carphone), height=32, width=48)
    assert frame.shape == (3, 32, 48)
    assert [sentence.startswith("first_frame: 50% ") for sentence in sentences] == [True]


def test_what_is_no_picture_says_so(tmp_path, carphone):
    info, size = read_info(carphone), {"height": 32, "width": 48}
    with pytest.raises(ValueError, match=make_pattern(f"first_frame: {carphone} … one picture, got 120 frames")):
        read_first_frame(carphone, info, **size)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=make_pattern(f"first_frame: {tmp_path / 'text.png'} …")):
        read_first_frame(tmp_path / "text.png", info, **size)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_first_frame(tmp_path / "gone.png", info, **size)
