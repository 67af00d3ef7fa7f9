"""Sound that not every player plays is encoded as AAC, and stays where it was in time."""

from __future__ import annotations

import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from ddim_lightning.data.video import write_video

FPS = 25
BEEP_S = 1.0


def write_beep(path, codec, *, rate=44100, layout="stereo", delay_s=0.0):
    """Write three seconds of black with a tone of 1 kHz, from the first second on for a fifth of a second."""
    with av.open(str(path), "w") as output:
        video, audio = output.add_stream("libx264", rate=FPS), output.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio.layout = layout
        for _ in range(3 * FPS):
            output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        time = np.arange(3 * rate) / rate
        tone = np.where((time >= BEEP_S) & (time < BEEP_S + 0.2), 0.5 * np.sin(2000 * np.pi * time), 0)
        channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
        samples = np.tile(tone.astype(np.float32), (channels, 1))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, round(delay_s * rate), Fraction(1, rate)
        size = audio.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=audio.format.name, layout=layout, rate=rate, frame_size=size)
        for part in resampler.resample(frame) + resampler.resample(None):
            output.mux(audio.encode(part))
        output.mux(audio.encode())
        output.mux(video.encode())
    return path


def hear(path):
    """The codec, when the beep begins and ends in seconds, and how much of the sound has its frequency."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
        samples = np.concatenate([part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)])
        start_s = float(frames[0].pts * frames[0].time_base)
        loud = np.flatnonzero(np.abs(samples) > 0.3 * np.abs(samples).max()) / stream.rate + start_s
        power = np.abs(np.fft.rfft(samples)) ** 2
        hertz = np.fft.rfftfreq(len(samples), 1 / stream.rate)
        share = power[np.abs(hertz - 1000) < 30].sum() / power.sum()
        return stream.codec_context.codec.canonical_name, loud[0], loud[-1], share, stream.layout.name


def write_black(path, source, *, start_s=0.0, seconds=1.6):
    """Write black frames with the sound of a file; the warnings."""
    frames = torch.zeros(round(seconds * FPS), 3, 64, 64, dtype=torch.uint8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        write_video(path, frames, Fraction(FPS), audio_from=source, audio_start_s=start_s)
    return [str(warning.message) for warning in told]


@pytest.mark.parametrize(
    ("name", "codec", "settings"),
    [
        ("camera.mov", "pcm_s24le", {}),
        ("recorder.avi", "pcm_s16le", {"layout": "mono"}),
        ("web.mkv", "libopus", {"rate": 48000}),
        ("music.mkv", "flac", {}),
        ("apple.mov", "alac", {}),
        ("disc.mkv", "ac3", {"rate": 48000, "layout": "5.1"}),
        ("broadcast.ts", "mp2", {"rate": 48000}),
        ("phone.mov", "pcm_mulaw", {"rate": 8000, "layout": "mono"}),
    ],
)
@pytest.mark.parametrize("start_s", [0.0, 0.4])
def test_a_beep_stays_at_its_instant(tmp_path, name, codec, settings, start_s):
    source = write_beep(tmp_path / name, codec, **settings)
    (told,) = write_black(tmp_path / "out.mp4", source, start_s=start_s)
    assert codec.removeprefix("lib") in told
    assert name in told
    heard, begin, end, share, layout = hear(tmp_path / "out.mp4")
    assert heard == "aac"
    assert layout == settings.get("layout", "stereo")
    assert begin == pytest.approx(BEEP_S - start_s, abs=0.01)  # a frame lasts 0.04 s
    assert end == pytest.approx(BEEP_S + 0.2 - start_s, abs=0.03)
    assert share > 0.9
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(1.6, abs=1024 / 8000)


@pytest.mark.parametrize(("codec", "name"), [("aac", "a.mp4"), ("libmp3lame", "a.mkv")])
def test_what_every_player_plays_is_copied(tmp_path, codec, name):
    source = write_beep(tmp_path / name, codec)
    assert write_black(tmp_path / "out.mp4", source) == []
    heard, begin, _, _, _ = hear(tmp_path / "out.mp4")
    assert heard == {"aac": "aac", "libmp3lame": "mp3"}[codec]
    assert begin == pytest.approx(BEEP_S, abs=0.03)


def test_sound_that_begins_late_is_preceded_by_silence(tmp_path):
    source = write_beep(tmp_path / "late.mov", "pcm_s16le", delay_s=0.3)
    write_black(tmp_path / "out.mp4", source)
    assert hear(tmp_path / "out.mp4")[1] == pytest.approx(BEEP_S + 0.3, abs=0.01)


def test_the_same_sound_gives_the_same_bytes(tmp_path):
    source = write_beep(tmp_path / "camera.mov", "pcm_s24le")
    for name in ("a.mp4", "b.mp4"):
        write_black(tmp_path / name, source, start_s=0.2)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_sound_that_cannot_be_decoded_is_left_out_with_a_warning(tmp_path):
    """As protected or very new sound is: the name of its codec means nothing to FFmpeg."""
    source = write_beep(tmp_path / "camera.mov", "pcm_s16le")
    content = source.read_bytes()
    assert content.count(b"sowt") == 1
    source.write_bytes(content.replace(b"sowt", b"zzzz"))
    (told,) = write_black(tmp_path / "out.mp4", source)
    assert "no sound" in told
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio
