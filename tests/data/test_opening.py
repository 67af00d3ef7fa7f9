from __future__ import annotations

import os
import socket
from fractions import Fraction
from pathlib import Path

import pytest

from ddim_lightning.data.dataset import VideoDataset
from ddim_lightning.data.manifest import ClipRequest, find_clips
from ddim_lightning.data.video import read_clip, read_info, write_video
from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import UnreadableClip
from tests.data.messages import make_pattern
from tests.data.timed import write_timed

LIMITS = VideoLimits(num_frames=9, height=48, width=80, multiple=16, temporal=4)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_timed(tmp_path_factory.mktemp("good") / "good.mp4", [Fraction(i, 25) for i in range(20)])


def test_a_codec_that_ffmpeg_does_not_know_is_told(tmp_path, good):
    path = tmp_path / "x.mp4"
    path.write_bytes(good.read_bytes().replace(b"avc1", b"zzzz"))
    for read in (read_info, lambda path: read_clip(path, limits=LIMITS)):
        with pytest.raises(ValueError, match=make_pattern(f"{path} … codec")):
            read(path)
    (clip,) = VideoDataset([ClipRequest(video=path, id="x")], limits=LIMITS)
    assert isinstance(clip, UnreadableClip)


def test_wherever_a_file_is_cut_it_is_a_plain_error_or_a_clip(tmp_path):
    path = write_timed(
        tmp_path / "x.mp4", [Fraction(i, 25) for i in range(20)], container={"movflags": "frag_keyframe+empty_moov"}
    )
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        (clip,) = VideoDataset([ClipRequest(video=path, id="x")], limits=LIMITS)
        assert not isinstance(clip, UnreadableClip) or clip.reason


def test_a_frame_larger_than_any_is_refused_before_it_takes_memory(tmp_path):
    path = tmp_path / "x.y4m"
    path.write_bytes(b"YUV4MPEG2 W9000 H8000 F25:1 Ip C420\nFRAME\n" + bytes(100_000))
    with pytest.raises(ValueError, match=make_pattern(f"{path} … pixels … 9000 x 8000")):
        read_info(path)


@pytest.fixture(params=["pipe", "socket"])
def no_file(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    path = Path("x.mp4")
    if request.param == "pipe":
        os.mkfifo(path)
        yield path
    else:
        with socket.socket(socket.AF_UNIX) as endless:
            endless.bind(str(path))
            yield path


def test_what_would_never_end_is_refused_at_once(no_file, good):
    mask = ClipRequest(video=good, id="x", mask=no_file)
    frames = read_clip(good, limits=LIMITS)[0]
    for read in (
        lambda: read_info(no_file),
        lambda: read_clip(no_file, limits=LIMITS),
        lambda: find_clips(no_file, ClipRequest()),
        lambda: find_clips([no_file], ClipRequest()),
        lambda: find_clips(no_file.rename("x.csv"), ClipRequest()),
        lambda: write_video("out.mp4", frames, Fraction(25), audio_from="x.csv"),
    ):
        with pytest.raises(ValueError, match=r"x\.\w+ must be a regular file, got a "):
            read()
    Path("x.csv").rename(no_file)
    (clip,) = VideoDataset([mask], limits=LIMITS)
    assert "regular file" in clip.reason


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_list_of_other_files_is_not_followed(tmp_path, good):
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("pipe.mp4", "good.mp4"):
        path = tmp_path / "x.mp4"
        path.write_text(f"ffconcat version 1.0\nfile {name}\n")
        with pytest.raises(ValueError, match=make_pattern(f"{path} … list of other files")):
            read_info(path)


def test_a_device_is_refused():
    with pytest.raises(ValueError, match="/dev/zero must be a regular file"):
        read_info("/dev/zero")
