from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from ddim_lightning.data.deinterlace import deinterlace, was_interlaced
from ddim_lightning.data.video import read_clip, read_info
from ddim_lightning.limits import VideoLimits

LIMITS = VideoLimits(num_frames=17, height=64, width=128, multiple=16, temporal=4)


def write_moving_bar(path, *, interlaced, count=30, keyframes=6):
    """Write a bar that moves by 3 columns a field; each frame holds two moments in its even and odd lines."""
    options = {"crf": "5", "x264-params": f"keyint={keyframes}:bframes=2:{'tff=1' if interlaced else 'interlaced=0'}"}
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for i in range(count):
            image = np.full((64, 128, 3), 40, np.uint8)
            for field in (0, 1):
                left = 6 * i % 90 + (3 * field if interlaced else 0)
                image[field::2, left : left + 20] = 220
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return path


def measure_combs(frames):
    """How far a line lies from the mean of its neighbors, in gray levels."""
    luma = frames.float().mean(1)
    return float((luma[:, 1:-1] - (luma[:, :-2] + luma[:, 2:]) / 2).abs().mean())


def run(frames):
    return [frame for frame, _ in deinterlace((frame, None) for frame in frames)]


def test_damage_spreads_to_what_was_made_of_it(tmp_path):
    path = write_moving_bar(tmp_path / "fields.mp4", interlaced=True, count=8)
    with av.open(str(path)) as container:
        decoded = [(frame, "torn" if i == 4 else None) for i, frame in enumerate(container.decode(video=0))]
    found = [damage for _, damage in deinterlace(iter(decoded))]
    assert found == [None, None, None, "torn", "torn", "torn", None, None]


def test_combs_go_and_it_is_said(tmp_path):
    path = write_moving_bar(tmp_path / "fields.mp4", interlaced=True)
    with av.open(str(path)) as container:
        raw = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    frames, fps, choice = read_clip(path, limits=LIMITS)
    assert measure_combs(torch.stack(raw).permute(0, 3, 1, 2)) > 3
    assert measure_combs(frames) < 0.5
    assert (fps, read_info(path).num_frames) == (25, 30)
    assert any("interlaced" in sentence for sentence in choice.warnings)
    # The first field of each frame is kept: the bar stands where it stood in the even lines.
    for i in range(1, 17):
        edges = (frames[i, 0, 32].float() > 130).nonzero().flatten()
        assert abs(int(edges[0]) - 6 * i % 90) <= 3


@pytest.mark.parametrize("start", [1, 5, 6, 7, 12])
def test_a_frame_is_the_same_wherever_reading_begins(tmp_path, start):
    """The filter looks at the frame before, which may lie in front of the keyframe that is jumped to."""
    path = write_moving_bar(tmp_path / "fields.mp4", interlaced=True)
    whole, _, _ = read_clip(path, limits=LIMITS)
    part, _, _ = read_clip(path, limits=LIMITS, start=start, num_frames=5)
    assert torch.equal(part, whole[start : start + 5])


def test_progressive_frames_pass_untouched(tmp_path):
    path = write_moving_bar(tmp_path / "frames.mp4", interlaced=False)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    passed = run(frames)
    assert all(one is other for one, other in zip(frames, passed, strict=True))
    assert read_clip(path, limits=LIMITS)[2].notes == ()


def test_only_flagged_frames_change_and_all_keep_their_times(tmp_path):
    """As in television: a film, then fields, then a film, then frames of another size."""
    parts = [
        write_moving_bar(tmp_path / f"{i}.mp4", interlaced=interlaced, count=6)
        for i, interlaced in enumerate((False, True, False))
    ]
    frames = []
    for path in parts:
        with av.open(str(path)) as container:
            frames += list(container.decode(video=0))
    frames += [av.VideoFrame(64, 32, "yuv420p") for _ in range(2)]
    for i, frame in enumerate(frames):
        frame.pts, frame.time_base = 7 * i, Fraction(1, 90)
    passed = run(frames)
    assert [(frame.pts, frame.time_base) for frame in passed] == [(7 * i, Fraction(1, 90)) for i in range(20)]
    assert [was_interlaced(frame) for frame in passed] == [6 <= i < 12 for i in range(20)]
    assert all(passed[i] is frames[i] for i in range(20) if not 6 <= i < 12)


def test_what_was_decoded_before_the_damage_comes_out(tmp_path):
    path = write_moving_bar(tmp_path / "fields.mp4", interlaced=True)

    def decode_four():
        with av.open(str(path)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i == 4:
                    raise av.error.InvalidDataError(1, "cut short")
                yield frame, None

    seen = []
    with pytest.raises(av.error.InvalidDataError):
        seen.extend(frame for frame, _ in deinterlace(decode_four()) if seen.append(frame.pts))
    assert len(seen) == 4
