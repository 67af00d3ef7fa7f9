from __future__ import annotations

import itertools
import os
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ddim_lightning.data.video import read_clip, read_info, write_video
from ddim_lightning.limits import VideoLimits
from tests.data.messages import make_pattern

LIMITS = VideoLimits(num_frames=17, height=48, width=80, multiple=16, temporal=4)


def write_numbered(path, *, codec="libx264", count=50, options=None, container=None, pts=None):
    """Write frames of 64 x 96 whose gray level is four times their number, with a keyframe every 12."""
    with av.open(f"file:{path}", "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=Fraction(24000, 1001), options=options or {})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.thread_count = 1
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 4 * i, np.uint8), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[i], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def numbers(frames):
    return (frames.float().mean((1, 2, 3)) / 4).round().int().tolist()


def write_planes(path, y, cb, cr, *, height, width, tag=None):
    """Write five frames of one color given as Y'CbCr, limited range."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=8, options={"crf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        if tag is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = tag, 1
        for _ in range(5):
            planes = np.full((height * 3 // 2, width), y, np.uint8)
            planes[height : height + height // 4] = cb
            planes[height + height // 4 :] = cr
            output.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        output.mux(stream.encode())


def rgb(y, cb, cr, kr, kb):
    """Limited-range Y'CbCr to RGB by the definition in ITU-R BT.601 and BT.709."""
    luma, blue, red = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    return [255 * r, 255 * (luma - kr * r - kb * b) / (1 - kr - kb), 255 * b]


def psnr(a, b):
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


def sound(path):
    """Time in seconds and content of every packet of sound."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.pts is not None]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    path = tmp_path_factory.mktemp("numbered") / "numbered.mp4"
    write_numbered(path, options={"bf": "3", "b-adapt": "0"}, container={"movflags": "faststart"})
    return path


@pytest.fixture(scope="module")
def bunny(real_clip):
    """Nine frames of 112 x 208 with much detail."""
    limits = VideoLimits(num_frames=9, height=112, width=208, multiple=16, temporal=4)
    return read_clip(real_clip, limits=limits, start=60)[0]


# -- reading


def test_info_of_real_clips(real_clip, carphone):
    info = read_info(real_clip)
    assert (info.num_frames, info.fps, info.height, info.width, info.has_audio) == (132, 25, 720, 1280, True)
    assert info.duration_s == pytest.approx(5.28)
    info = read_info(carphone)
    assert (info.num_frames, info.fps, info.height, info.width, info.has_audio) == (
        120,
        Fraction(30000, 1001),
        144,
        176,
        False,
    )


def test_real_clip_at_the_model_size(real_clip):
    frames, fps, choice = read_clip(real_clip, limits=LIMITS, start=30, stride=2)
    assert frames.shape == (17, 3, 48, 80)
    assert frames.dtype == torch.uint8
    assert fps == Fraction(25, 2)
    assert choice.indices == list(range(30, 64, 2))
    with av.open(str(real_clip)) as container:
        shown = list(itertools.islice(container.decode(video=0), 63))[30::2]
    for frame, image in zip(frames, (frame.to_image() for frame in shown), strict=True):
        cut = image.resize((80, 48), box=(40, 0, 1240, 720), resample=3)  # 5 : 3 out of the middle, bicubic
        assert psnr(frame, torch.from_numpy(np.array(cut)).permute(2, 0, 1)) > 30


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("index.mp4", "libx264", {}),
        ("fragments.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("silent.mkv", "libx264", {}),
        ("stream.ts", "libx264", {}),
        ("old.avi", "mpeg4", {}),
        ("bframes.avi", "libx264", {}),
        ("web.webm", "libvpx-vp9", {}),
        ("raw.264", "libx264", {}),
        ("take 1: 50%.mp4", "libx264", {}),
    ],
)
def test_exactly_the_frames_asked_for_in_every_container(tmp_path, name, codec, container):
    path = tmp_path / name
    options = {
        "libx264": {"bf": "3", "b-adapt": "0"},
        "libvpx-vp9": {"deadline": "realtime"},
        "mpeg4": {"qmin": "1", "qmax": "2"},
    }[codec]
    write_numbered(path, codec=codec, options=options, container=container)
    assert read_info(path).num_frames == 50
    for start, stride, wanted in (
        (0, 1, range(17)),
        (11, 1, range(11, 28)),
        (25, 3, range(25, 50, 3)),
        (37, 1, range(37, 50)),
    ):
        frames, _, choice = read_clip(path, limits=LIMITS, start=start, stride=stride)
        assert numbers(frames) == choice.indices == list(wanted)
    frames, fps, choice = read_clip(path, limits=LIMITS, stride="spread")
    assert numbers(frames) == [50 * i // 17 for i in range(17)]
    assert fps * 50 == read_info(path).fps * 17  # as long as before


def test_variable_frame_rate_keeps_every_frame(tmp_path):
    path = tmp_path / "phone.mkv"
    times = list(itertools.accumulate([33, 50, 17, 33, 40, 80, 33, 33, 20, 61] * 5))
    write_numbered(path, pts=times)
    frames, fps, _ = read_clip(path, limits=LIMITS, start=20)
    assert numbers(frames) == list(range(20, 37))
    assert float(fps) == pytest.approx(25, rel=0.06)  # 50 frames in two seconds


def test_frames_behind_an_edit_list_are_not_counted(tmp_path, numbered):
    """A trimmed mp4 holds frames that are decoded but never shown."""
    path = tmp_path / "trimmed.mp4"
    with av.open(str(numbered)) as source, av.open(str(path), "w", options={"use_editlist": "1"}) as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        tick = int(1 / (Fraction(24000, 1001) * stream.time_base))
        for packet in source.demux(stream):
            if packet.dts is None:
                continue
            packet.pts -= 5 * tick
            packet.dts -= 5 * tick
            packet.stream = copy
            output.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 50
        shown = len(list(container.decode(video=0)))
    assert shown == 45
    assert read_info(path).num_frames == 45
    assert numbers(read_clip(path, limits=LIMITS)[0]) == list(range(5, 22))


@pytest.mark.parametrize(("degrees", "top_left"), [(0, "red"), (90, "green"), (180, "white"), (-90, "blue")])
def test_rotation_is_honored(tmp_path, degrees, top_left):
    """Counterclockwise by 90 brings the upper right corner (green) to the upper left."""
    colors = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    image = np.zeros((48, 96, 3), np.uint8)
    for name, rows, columns in (("red", 0, 0), ("green", 0, 48), ("blue", 24, 0), ("white", 24, 48)):
        image[rows : rows + 24, columns : columns + 48] = colors[name]
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    info = read_info(path)
    assert (info.height, info.width) == ((96, 48) if degrees % 180 else (48, 96))
    frames, _, _ = read_clip(path, limits=LIMITS, height=32, width=64, fit="stretch")
    assert (frames[2, :, 5, 10].float() - torch.tensor(colors[top_left]).float()).abs().max() < 12


def test_wide_pixels_are_honored_also_when_turned(tmp_path):
    """64 x 48 pixels, each twice as wide as high, turned by 90 degrees: shown 64 wide and 96 high, hence bars."""
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_rotation(90)
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 48, 3), 200, np.uint8), format="rgb24")))
        output.mux(stream.encode())
    frames, _, _ = read_clip(path, limits=LIMITS, height=96, width=96, fit="pad")
    lit = frames[0, 0, 48] > 100
    assert lit.tolist() == [False] * 16 + [True] * 64 + [False] * 16


@pytest.mark.parametrize(
    ("height", "width", "tag", "kr", "kb"),
    [
        (48, 64, None, 0.299, 0.114),  # small and untagged: BT.601
        (720, 1280, None, 0.2126, 0.0722),  # large and untagged: BT.709
        (1280, 720, None, 0.2126, 0.0722),
        (48, 64, 1, 0.2126, 0.0722),  # tagged: as tagged
        (720, 1280, 5, 0.299, 0.114),
    ],
)
def test_colors_are_read_as_players_do(tmp_path, height, width, tag, kr, kb):
    color = (100, 90, 180)
    write_planes(tmp_path / "flat.mp4", *color, height=height, width=width, tag=tag)
    frames, _, _ = read_clip(tmp_path / "flat.mp4", limits=LIMITS, height=16, width=32)
    assert frames[0, :, 8, 16].tolist() == pytest.approx(rgb(*color, kr, kb), abs=2)


def test_only_what_is_needed_is_decoded(tmp_path, numbered):
    """With the first group of pictures destroyed, what follows can still be read, and the rest is an error."""
    path = tmp_path / "scratched.mp4"
    content = bytearray(numbered.read_bytes())
    with av.open(str(numbered)) as container:
        for packet in itertools.islice(container.demux(video=0), 10):
            content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    assert numbers(read_clip(path, limits=LIMITS, start=25)[0]) == list(range(25, 42))
    with pytest.raises(ValueError, match=r"scratched\.mp4 is damaged: \d+ of 17 frames"):
        read_clip(path, limits=LIMITS)


def test_a_file_cut_short_says_how_much_is_there(tmp_path, numbered):
    path = tmp_path / "cut.mp4"
    with av.open(str(numbered)) as container:
        twentieth = next(itertools.islice(container.demux(video=0), 19, None))
    path.write_bytes(numbered.read_bytes()[: twentieth.pos + twentieth.size // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4 is cut short: 19 of its 50 frames"):
        read_clip(path, limits=LIMITS)


def make_bad_file(kind, folder):
    path = folder / "x.mp4"
    if kind == "text":
        path.write_text("no video at all\n" * 50)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "sound":
        with av.open(str(path), "w") as output:
            stream = output.add_stream("aac", rate=16000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            stream.layout = "mono"
            output.mux(stream.encode(silence))
            output.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("missing", FileNotFoundError, "[Errno 2] …'{path}'"),
        ("folder", IsADirectoryError, "[Errno 21] …'{path}'"),
        ("text", ValueError, "{path} … not a video … Invalid data"),
        ("empty", ValueError, "{path} … empty"),
        ("sound", ValueError, "{path} … no video stream"),
    ],
)
@pytest.mark.parametrize("read", [read_info, lambda path: read_clip(path, limits=LIMITS)], ids=["info", "clip"])
def test_bad_files(tmp_path, kind, error, message, read):
    path = make_bad_file(kind, tmp_path)
    with pytest.raises(error) as caught:
        read(path)
    assert type(caught.value) is error
    assert re.match(make_pattern(message.format(path=path)), str(caught.value))


@pytest.mark.parametrize("read", [read_info, lambda path: read_clip(path, limits=LIMITS)], ids=["info", "clip"])
def test_what_ffmpeg_cannot_convert_names_the_file(tmp_path, read):
    path = tmp_path / "ictcp.mp4"
    write_planes(path, 120, 128, 128, height=64, width=96, tag=14)  # FFmpeg's scaler has no such matrix
    with pytest.raises(ValueError, match=r"ictcp\.mp4 cannot be read: "):
        read(path)


def test_where_a_file_cannot_be_wound_to_names_the_file(tmp_path, numbered, monkeypatch):
    class Unwindable:
        """A real container, on a device that only goes forward."""

        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._container.close()

        def seek(self, *_, **__):
            raise av.error.ExternalError(-1, "Generic error in an external library")

    open_file = av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: Unwindable(open_file(*args, **options)))
    with pytest.raises(ValueError, match=r"numbered\.mp4 cannot be read: "):
        read_clip(numbered, limits=LIMITS, start=30)


def test_too_few_frames(tmp_path):
    write_numbered(tmp_path / "short.mp4", count=4)
    with pytest.raises(
        ValueError,
        match=r"short\.mp4: too few frames: 4 of 4 ",
    ):
        read_clip(tmp_path / "short.mp4", limits=LIMITS)


# -- writing


@pytest.mark.parametrize(
    "fps", [Fraction(25), Fraction(30000, 1001), Fraction(25 * 49, 132), Fraction(27021000, 904123) * Fraction(49, 131)]
)
def test_what_is_written_is_read_back(tmp_path, bunny, fps):
    path = tmp_path / "made" / "here" / "out.mp4"
    write_video(path, bunny, fps)
    info = read_info(path)
    assert (info.num_frames, info.height, info.width, info.has_audio) == (9, 112, 208, False)
    assert float(info.fps) == pytest.approx(float(fps), rel=1e-4)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    content = path.read_bytes()
    assert content.find(b"moov") < content.find(b"mdat")  # plays before it is loaded
    assert os.listdir(path.parent) == ["out.mp4"]


def test_colors_survive_a_round_trip(tmp_path, bunny):
    def read(name):
        return read_clip(tmp_path / name, limits=LIMITS, height=112, width=208)[0]

    def luma(frames):
        return torch.einsum("c,fchw->fhw", torch.tensor([0.2126, 0.7152, 0.0722]), frames.float())

    write_video(tmp_path / "best.mp4", bunny, Fraction(25), crf=0)
    write_video(tmp_path / "default.mp4", bunny, Fraction(25))
    best, default = read("best.mp4"), read("default.mp4")
    # halving the colors' resolution is what remains at crf 0; the luma is not halved
    assert psnr(luma(best), luma(bunny)) > 48
    assert psnr(best, bunny) > 37
    assert psnr(default, bunny) > 36
    assert (best.float() - bunny.float()).mean((0, 2, 3)).abs().max() < 0.25  # no shift of any channel


def test_colors_are_bt709_and_say_so(tmp_path):
    colors = torch.tensor([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (255, 255, 255)], dtype=torch.uint8)
    write_video(tmp_path / "flat.mp4", colors[:, :, None, None].expand(-1, -1, 32, 48), Fraction(8), crf=0)
    with av.open(str(tmp_path / "flat.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        planes = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    for color, plane in zip(colors.tolist(), planes, strict=True):
        y, cb, cr = int(plane[16, 24]), int(plane[36, 12]), int(plane[44, 12])
        assert rgb(y, cb, cr, 0.2126, 0.0722) == pytest.approx(color, abs=2)


def test_same_frames_same_bytes(tmp_path, bunny, real_clip):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, bunny, Fraction(25), audio_from=real_clip, audio_start_s=2.4)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content == (tmp_path / "b.mp4").read_bytes()
    assert b"threads=1 " in content  # x264's bytes depend on the number of threads


def test_frames_need_not_be_contiguous(tmp_path, bunny):
    write_video(tmp_path / "a.mp4", bunny[:, :, :, ::2], Fraction(25))
    write_video(tmp_path / "b.mp4", bunny[:, :, :, ::2].contiguous(), Fraction(25))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("start_s", [0.0, 2.4])
def test_sound_of_the_time_span_is_copied(tmp_path, bunny, real_clip, start_s):
    fps = Fraction(25, 4)  # nine frames last 1.44 s
    write_video(tmp_path / "loud.mp4", bunny, fps, audio_from=real_clip, audio_start_s=start_s)
    assert read_info(tmp_path / "loud.mp4").has_audio
    wanted = [(time - start_s, content) for time, content in sound(real_clip) if start_s <= time < start_s + 1.44]
    got = sound(tmp_path / "loud.mp4")
    assert len(wanted) > 60
    assert [content for _, content in got] == [content for _, content in wanted]  # not encoded again
    assert [time for time, _ in got] == pytest.approx([time for time, _ in wanted], abs=1e-3)
    with av.open(str(tmp_path / "loud.mp4")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == pytest.approx(1.44 * 48000, abs=2048)


def test_sound_is_measured_from_the_first_frame(tmp_path, bunny, real_clip):
    """A transport stream does not begin at zero."""
    path = tmp_path / "late.ts"
    with av.open(str(real_clip)) as source, av.open(str(path), "w") as output:
        copies = {
            stream: output.add_stream_from_template(stream)
            for stream in source.streams
            if stream.type in ("video", "audio")
        }
        for packet in source.demux(*copies):
            if packet.dts is not None:
                packet.pts += int(Fraction(7, 5) / packet.time_base)
                packet.dts += int(Fraction(7, 5) / packet.time_base)
                packet.stream = copies[packet.stream]
                output.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time == 126000
    write_video(tmp_path / "loud.mp4", bunny, Fraction(9), audio_from=path, audio_start_s=1.0)
    got = sound(tmp_path / "loud.mp4")
    assert len(got) == pytest.approx(48000 / 1024, abs=1)
    assert got[0][0] == pytest.approx(0, abs=1024 / 48000)


def test_a_source_without_sound_is_no_mistake(tmp_path, bunny, carphone, recwarn):
    write_video(tmp_path / "mute.mp4", bunny, Fraction(25), audio_from=carphone)
    assert not read_info(tmp_path / "mute.mp4").has_audio
    assert not recwarn.list


def test_sound_that_mp4_cannot_carry_is_encoded_with_a_warning(tmp_path, bunny):
    path = tmp_path / "phone.wav"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_mulaw", rate=8000)
        stream.layout = "mono"
        beep = av.AudioFrame.from_ndarray(np.arange(8000, dtype=np.int16)[None], format="s16", layout="mono")
        beep.sample_rate = 8000
        output.mux(stream.encode(beep))
        output.mux(stream.encode())
    with pytest.warns(UserWarning, match=r"AAC.*pcm_mulaw.*phone\.wav"):
        write_video(tmp_path / "loud.mp4", bunny, Fraction(25), audio_from=path)
    assert read_info(tmp_path / "loud.mp4").has_audio


def scratch_sound(path, source):
    """Copy a file and overwrite every packet of its sound."""
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for packet in container.demux(audio=0):
            if packet.size:
                content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(content)
    return path


def test_damaged_sound_is_left_out_with_a_warning(tmp_path, bunny, real_clip):
    path = scratch_sound(tmp_path / "scratched.mp4", real_clip)
    with pytest.warns(UserWarning, match=r"no sound was copied: .*scratched\.mp4 is damaged"):
        write_video(tmp_path / "mute.mp4", bunny, Fraction(25), audio_from=path, audio_start_s=1.0)
    assert not read_info(tmp_path / "mute.mp4").has_audio
    write_video(tmp_path / "plain.mp4", bunny, Fraction(25))
    assert (tmp_path / "mute.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["mute.mp4", "plain.mp4", "scratched.mp4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"frames": torch.zeros(5, 3, 31, 48, dtype=torch.uint8)},
            "frames … even … got 31 x 48",
        ),
        (
            {"frames": torch.zeros(5, 3, 32, 48)},
            "frames … (f, 3, h, w) uint8 … got (5, 3, 32, 48) torch.float32",
        ),
        (
            {"frames": torch.zeros(5, 32, 48, 3, dtype=torch.uint8)},
            "frames … (f, 3, h, w) uint8 … got (5, 32, 48, 3) torch.uint8",
        ),
        ({"fps": Fraction(0)}, "fps … > 0, got 0"),
    ],
)
def test_wrong_arguments(tmp_path, change, message):
    arguments = {"frames": torch.zeros(5, 3, 32, 48, dtype=torch.uint8), "fps": Fraction(8)} | change
    with pytest.raises(ValueError, match=make_pattern(message)):
        write_video(tmp_path / "out.mp4", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("file/out.mp4", NotADirectoryError, "[Errno 20] cannot write {path}"),
        ("file/deeper/out.mp4", NotADirectoryError, "[Errno 20] cannot write {path}"),
        ("folder", IsADirectoryError, "[Errno 21] cannot write {path}"),
        ("/proc/out.mp4", FileNotFoundError, "[Errno 2] cannot write {path}"),
        ("/proc/deeper/out.mp4", FileNotFoundError, "[Errno 2] cannot write {path}"),
    ],
)
def test_output_that_cannot_be_written(tmp_path, bunny, name, error, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    with pytest.raises(error) as caught:
        write_video(path, bunny, Fraction(25))
    assert type(caught.value) is error
    assert re.match(make_pattern(message.format(path=path)), str(caught.value))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_missing_sound_is_an_error_about_the_source(tmp_path, bunny):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        write_video(tmp_path / "out.mp4", bunny, Fraction(25), audio_from=tmp_path / "gone.mp4")


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path, bunny, monkeypatch):
    path = tmp_path / "out.mp4"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match=r"^\[Errno 28\] cannot write .*out\.mp4"):
            write_video(path, bunny, Fraction(25))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.mp4"]
    write_video(path, bunny, Fraction(25))
    assert read_info(path).num_frames == 9


@pytest.mark.parametrize(("height", "width"), [(32, 48), (16, 24), (64, 64), (48, 208)])
def test_bytes_do_not_depend_on_what_was_in_memory_before(height, width, tmp_path):
    rows, columns, times = torch.arange(height)[:, None], torch.arange(width), torch.arange(9)[:, None, None, None]
    phase = torch.tensor([0.6, 2.2, 4.6])[:, None, None]
    frames = (127 + 100 * torch.sin(rows / 9 + columns / 13 + times / 3 + phase)).round().to(torch.uint8)
    generator, written = torch.Generator().manual_seed(0), set()
    for size in torch.randint(100, 60_000, (40,), generator=generator).tolist():
        dirty = [torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8) for _ in range(8)]
        del dirty
        write_video(tmp_path / "clip.mp4", frames, Fraction(8))
        written.add((tmp_path / "clip.mp4").read_bytes())
    assert len(written) == 1
