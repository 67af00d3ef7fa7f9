from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, chain, cycle, islice

import av
import pytest

from ddim_lightning.data.dataset import VideoDataset
from ddim_lightning.data.manifest import ClipRequest
from ddim_lightning.data.video import read_clip, read_frames, read_info, write_video
from ddim_lightning.limits import VideoLimits
from tests.data.timed import find_flashes_and_beeps, make_gray, write_flash_and_beep, write_timed

LIMITS = VideoLimits(num_frames=17, height=48, width=80, multiple=16, temporal=4)
LONG = VideoLimits(num_frames=49, height=48, width=80, multiple=16, temporal=4)
FRAME = Fraction(1, 25)
CONSTANT = [i * FRAME for i in range(50)]
# Frames that are there as long as six, and bursts at twice the rate.
VARYING = list(islice(accumulate(chain([0], cycle([FRAME] * 9 + [6 * FRAME, FRAME] + [FRAME / 2] * 4))), 50))
# What a phone or a conference does: frames are missing.
GAPS = [time for i, time in enumerate(CONSTANT + [2 + time for time in CONSTANT[:10]]) if i % 17 not in (3, 4, 5, 6)]


def numbers(frames):
    return (frames.float().mean((1, 2, 3)) / 4).round().int().tolist()


@pytest.mark.parametrize("times", [CONSTANT, VARYING, GAPS], ids=["constant", "varying", "gaps"])
@pytest.mark.parametrize(
    ("suffix", "codec", "audio", "tick"),
    [
        ("mp4", "libx264", "aac", Fraction(1, 1000)),
        ("mov", "libx264", "aac", Fraction(1, 600)),
        ("mkv", "libx264", "aac", Fraction(1, 1000)),
        ("webm", "libvpx", "libopus", Fraction(1, 1000)),
        ("avi", "mpeg4", "libmp3lame", Fraction(1, 50)),
        ("ts", "libx264", "aac", Fraction(1, 90000)),
        ("flv", "flv", "libmp3lame", Fraction(1, 1000)),
    ],
)
def test_a_flash_and_a_beep_stay_together_and_in_their_place(tmp_path, suffix, codec, audio, tick, times):
    path = tmp_path / f"clip.{suffix}"
    events = [next(time for time in times if time >= second) for second in (Fraction(1, 2), Fraction(3, 2))]
    fps = 1 / tick if codec == "mpeg4" else 25  # AVI has no times, but as many slots as its rate wants
    write_flash_and_beep(path, times, events, codec=codec, audio=audio, tick=tick, fps=fps)
    flashes, beeps = find_flashes_and_beeps(path)
    assert len(flashes) == len(beeps) == 2
    for start in (0, 5, 27):
        (clip,) = VideoDataset([ClipRequest(video=path, id="x", start=start)], limits=LONG)
        start_s = clip.selection.start_s
        assert start_s == pytest.approx(start / 25, abs=0.08)
        write_video(tmp_path / "out.mp4", clip.frames, clip.fps, audio_from=path, audio_start_s=start_s)
        got_flashes, got_beeps = find_flashes_and_beeps(tmp_path / "out.mp4")
        end_s = start_s + float(len(clip.frames) / clip.fps)
        for got, times_s in ((got_flashes, flashes), (got_beeps, beeps)):
            wanted = [time for time in times_s if start_s + 0.05 < time < end_s - 0.05]
            assert [time + start_s for time in got] == pytest.approx(wanted, abs=1.05 / 25)
        assert got_flashes == pytest.approx(got_beeps, abs=1.05 / 25)


@pytest.mark.parametrize(
    ("name", "codec", "tick"),
    [
        ("x.mp4", "libx264", Fraction(1, 1000)),
        ("x.mov", "libx264", Fraction(1, 600)),
        ("x.mkv", "libx264", Fraction(1, 1000)),
        ("x.webm", "libvpx-vp9", Fraction(1, 1000)),
        ("x.ts", "libx264", Fraction(1, 90000)),
        ("x.flv", "flv", Fraction(1, 1000)),
        ("x.gif", "gif", Fraction(1, 100)),
        ("x.avi", "mpeg4", Fraction(1, 10)),
        ("x.wmv", "wmv2", Fraction(1, 1000)),
    ],
)
def test_frames_of_a_screen_recording_keep_their_places(tmp_path, name, codec, tick):
    """Nine frames in 3 s: three, a pause, three, a pause, three."""
    times = [Fraction(i, 10) for i in (0, 1, 2, 13, 14, 15, 27, 28, 29)]
    options = {"deadline": "realtime"} if codec == "libvpx-vp9" else {}
    fps = 1 / tick if codec == "mpeg4" else 10
    path = write_timed(
        tmp_path / name, times, codec=codec, tick=tick, options=options, fps=fps, make=lambda i: make_gray(6 * i)
    )
    info = read_info(path)
    assert info.fps == 10
    assert info.num_frames in (30, 31)
    assert info.duration_s == pytest.approx(3, abs=0.11)
    frames, fps, choice = read_clip(path, limits=LONG)
    shown = [0, 1] + [2] * 11 + [3, 4] + [5] * 12 + [6, 7, 8]
    assert fps == 10
    assert [round(n / 6) for n in numbers(frames)] == shown[: len(frames)]
    assert "rate" in choice.warning
    frames, fps, choice = read_clip(path, limits=LIMITS, start=2, stride=2, num_frames=13)
    assert fps == 5
    assert [round(n / 6) for n in numbers(frames)] == shown[2:28:2]
    assert choice.start_s == pytest.approx(0.2, abs=0.03)


def test_frames_that_are_only_a_little_late_are_all_taken(tmp_path):
    path = write_timed(tmp_path / "x.mkv", [i * FRAME + Fraction(i % 3, 100) for i in range(50)])
    frames, fps, choice = read_clip(path, limits=LIMITS, start=9)
    assert numbers(frames) == list(range(9, 26))
    assert fps == 25
    assert choice.start_s == pytest.approx(9 / 25)


def test_a_frame_that_is_missing_does_not_slow_down_the_others(tmp_path):
    path = write_timed(tmp_path / "x.mkv", [time for i, time in enumerate(CONSTANT) if i != 20])
    info = read_info(path)
    assert (info.num_frames, info.fps) == (50, 25)
    assert numbers(read_clip(path, limits=LIMITS, start=15)[0]) == [*range(15, 20), 19, *range(20, 31)]


@pytest.mark.parametrize("fps", [Fraction(59, 2), Fraction(30000, 1001), Fraction(15, 2)])
def test_a_header_that_is_wrong_about_the_rate_is_not_believed(tmp_path, fps):
    path = write_timed(tmp_path / "x.mkv", [i / fps for i in range(50)], fps=25)
    info = read_info(path)
    assert float(info.fps) == pytest.approx(float(fps), rel=2e-3)
    assert (info.num_frames, info.notes) == (50, ())
    assert info.duration_s == pytest.approx(50 / fps, rel=2e-3)


def test_a_last_frame_that_stays_is_as_long_as_it_is(tmp_path):
    path = tmp_path / "slide.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(6):
            frame = av.VideoFrame(96, 64, "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            for packet in stream.encode(frame):
                packet.duration = int((Fraction(1, 10) if i < 5 else Fraction(2)) / packet.time_base)
                output.mux(packet)
        output.mux(stream.encode())
    info = read_info(path)
    assert info.fps == 10
    assert info.num_frames == 25
    assert len(list(read_frames(path, [0, 5, 24]))) == 3


@pytest.mark.parametrize("late_s", [10**6, 10**9])
def test_absurd_times_cost_nothing(tmp_path, late_s):
    path = write_timed(
        tmp_path / "x.mkv", [*(i * FRAME for i in range(20)), Fraction(late_s)], make=lambda i: make_gray(2.5 * i)
    )
    info = read_info(path)
    assert info.fps == 25
    assert info.num_frames == pytest.approx(25 * late_s, rel=1e-3)
    assert len(read_clip(path, limits=LIMITS)[0]) == 17
    assert numbers(read_clip(path, limits=LIMITS, stride="spread")[0]) == [0] + [48] * 16
    frames, _, choice = read_clip(path, limits=LIMITS, start=info.num_frames - 5)
    assert len(frames) == 5
    assert choice.start_s == pytest.approx(late_s, rel=1e-3)


def test_times_that_run_backwards_are_not_used(tmp_path):
    """Two transport streams, one behind the other."""
    one = write_timed(tmp_path / "one.ts", CONSTANT[:24])
    two = write_timed(tmp_path / "two.ts", CONSTANT[:24], make=lambda i: make_gray(24 + i))
    path = tmp_path / "both.ts"
    path.write_bytes(one.read_bytes() + two.read_bytes())
    frames, fps, choice = read_clip(path, limits=LIMITS, start=26)
    assert numbers(frames) == list(range(26, 43))
    assert fps == 25
    assert "timestamps" in choice.warning
