from __future__ import annotations

import contextlib
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest

from ddim_lightning.data.video import read_clip, read_info
from ddim_lightning.limits import VideoLimits
from tests.data.timed import write_timed

LIMITS = VideoLimits(num_frames=17, height=48, width=80, multiple=16, temporal=4)
CONSTANT = [Fraction(i, 25) for i in range(50)]
OPEN = {"x264-params": "repeat-headers=1:open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"}


def numbers(frames):
    return (frames.float().mean((1, 2, 3)) / 4).round().int().tolist()


def count_packets_and_frames(path):
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    frames = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.error.InvalidDataError):  # of a frame whose references are not there
                frames += len(packet.decode())
    return packets, frames


@pytest.mark.parametrize("early", [0, 1], ids=["time of the next", "time of its own"])
def test_hidden_frames_are_no_frames(tmp_path, early):
    """VP8 keeps pictures that are only referred to in packets of their own."""
    plain = write_timed(tmp_path / "plain.webm", CONSTANT, codec="libvpx", options={"crf": "4", "b": "1M"})
    path = tmp_path / "hidden.webm"
    with av.open(str(plain)) as source, av.open(str(path), "w") as output:
        copy = output.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(source.demux(video=0)):
            content = bytearray(packet)
            if not content:
                continue
            if i in (9, 30):
                content[0] &= ~0x10  # RFC 6386, section 9.1: show_frame
            changed = av.Packet(bytes(content))
            changed.pts = changed.dts = packet.pts + (40 - early if i in (9, 30) else 0)
            changed.time_base, changed.stream, changed.is_keyframe = packet.time_base, copy, packet.is_keyframe
            output.mux(changed)
    assert count_packets_and_frames(path) == (50, 48)
    shown = [i for i in range(50) if i not in (9, 30)]
    info = read_info(path)
    assert info.num_frames == 50  # the picture before is on show meanwhile
    assert numbers(read_clip(path, limits=LIMITS, start=2)[0]) == [8 if i == 9 else i for i in range(2, 19)]
    assert set(numbers(read_clip(path, limits=LIMITS, stride="spread")[0])) <= set(shown)


def copy_from(path, source, first):
    """Copy the packets of a video from the one with number ``first`` on."""
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in itertools.islice(container.demux(stream), first, None):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    return path


@pytest.mark.parametrize("name", ["x.ts", "x.mkv", "x.mp4"])
def test_a_capture_that_begins_between_keyframes_begins_with_the_next(tmp_path, name):
    source = write_timed(tmp_path / "whole.mkv", CONSTANT, options={"bf": "2", "b-adapt": "0"})
    path = copy_from(tmp_path / name, source, 5)
    assert read_info(path).num_frames == 38
    frames, fps, choice = read_clip(path, limits=LIMITS)
    assert numbers(frames) == list(range(12, 29))
    assert fps == 25
    assert "keyframe" in choice.warning
    assert numbers(read_clip(path, limits=LIMITS, start=14)[0]) == list(range(26, 43))


@pytest.mark.parametrize("name", ["x.ts", "x.mkv", "x.mp4"])
def test_frames_whose_references_are_cut_off_are_no_frames(tmp_path, name):
    """An open group of pictures begins with frames that refer to the one before."""
    source = write_timed(tmp_path / "whole.mkv", CONSTANT, options=OPEN)
    with av.open(str(source)) as container:
        keys = [i for i, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    path = copy_from(tmp_path / name, source, keys[1])
    packets, frames = count_packets_and_frames(path)
    assert packets > frames
    assert read_info(path).num_frames == frames
    assert numbers(read_clip(path, limits=LIMITS)[0]) == list(range(50 - frames, 50 - frames + 17))
    assert numbers(read_clip(source, limits=LIMITS, start=10)[0]) == list(range(10, 27))


@pytest.mark.parametrize(
    ("name", "codec", "tick"),
    [
        ("x.mkv", "libx264", Fraction(1, 1000)),
        ("x.webm", "libvpx", Fraction(1, 1000)),
        ("x.flv", "flv", Fraction(1, 1000)),
        ("x.ts", "libx264", Fraction(1, 90000)),
        ("x.gif", "gif", Fraction(1, 100)),
        ("x.ogv", "libvpx", Fraction(1, 25)),
    ],
)
def test_a_file_cut_short_is_read_as_far_as_it_goes_and_says_so(tmp_path, name, codec, tick):
    whole = write_timed(tmp_path / name, CONSTANT, codec=codec, tick=tick)
    assert "short" not in (read_clip(whole, limits=LIMITS)[2].warning or "")
    path = tmp_path / f"cut-{name}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10 + 1])
    info = read_info(path)
    assert 20 < info.num_frames < 45
    assert any("short" in note for note in info.notes)
    frames, _, choice = read_clip(path, limits=LIMITS, start=info.num_frames - 17)
    assert len(frames) == 17
    assert "short" in choice.warning


def test_a_longer_sound_does_not_make_a_video_cut_short(tmp_path):
    path = tmp_path / "long.webm"
    with av.open(str(path), "w") as output:
        video, audio = output.add_stream("libvpx", rate=25), output.add_stream("libopus", rate=48000, layout="mono")
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for _ in range(25):
            output.mux(video.encode(av.VideoFrame(96, 64, "yuv420p")))
        output.mux(video.encode())
        for i in range(150):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 960 * i, Fraction(1, 48000)
            output.mux(audio.encode(frame))
        output.mux(audio.encode())
    assert read_info(path).notes == ()
    assert read_info(path).num_frames == 25


def test_pictures_that_are_refreshed_bit_by_bit_are_found(tmp_path):
    """Without whole keyframes a decoder shows nothing for a while after it was wound to a place."""
    options = {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}
    path = write_timed(tmp_path / "x.ts", CONSTANT, options=options)
    for start in (0, 21, 30):
        assert numbers(read_clip(path, limits=LIMITS, start=start)[0]) == list(range(start, start + 17))
