from __future__ import annotations

import subprocess
import sys
from collections import Counter
from fractions import Fraction

import av
import av.logging
import pytest

from ddim_lightning.data.decoding import logged_errors
from ddim_lightning.data.video import read_clip
from ddim_lightning.limits import VideoLimits
from tests.data.timed import make_square, write_timed

LIMITS = VideoLimits(num_frames=9, height=48, width=80, multiple=16, temporal=4)
CONSTANT = [Fraction(i, 25) for i in range(50)]
CABAC = {"bf": "2", "b-adapt": "0", "x264-params": "scenecut=0"}


def write_moving(path, codec, options=None):
    """Write 50 frames of 64 x 96 in which a bright square moves over noise, with a keyframe every 12."""
    return write_timed(path, CONSTANT, codec=codec, options=options, make=make_square)


def scratch(path, source, numbers):
    """Copy a file and overwrite the middle of some packets of its video, counted in order of decoding."""
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = list(container.demux(video=0))
    for number in numbers:
        middle = packets[number].pos + packets[number].size // 2
        for i in range(middle, middle + 20):
            content[i] ^= 0xA5
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("x.mp4", "libx264"), ("x.mkv", "libx264"), ("x.ts", "libx264"), ("x.avi", "mpeg4")]
)
def test_frames_that_refer_to_a_damaged_one_are_damaged_until_the_next_keyframe(tmp_path, name, codec):
    whole = write_moving(tmp_path / name, codec, CABAC if codec == "libx264" else {})
    path = scratch(tmp_path / f"scratched-{name}", whole, [13])
    for start in (8, 12, 14, 15, 20):
        with pytest.raises(ValueError, match=r"is damaged: \d of \d frames"):
            read_clip(path, limits=LIMITS, start=start)
    for start in (0, 25, 36):
        wanted, _, _ = read_clip(whole, limits=LIMITS, start=start)
        assert read_clip(path, limits=LIMITS, start=start)[0].equal(wanted)


def test_errors_are_collected_without_changing_what_a_program_logs():
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    for _ in range(2):
        with logged_errors() as take_errors:
            av.logging.log(av.logging.ERROR, "name", "once")
            av.logging.log(av.logging.ERROR, "name", "once")
            av.logging.log(av.logging.WARNING, "name", "never")
            assert take_errors() == ["once", "once"]
            assert take_errors() == []
        assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before


READ_MUTANTS = """
import random, resource, sys
from pathlib import Path
from ddim_lightning.data.video import read_clip
from ddim_lightning.limits import VideoLimits

limits = VideoLimits(num_frames=9, height=48, width=80, multiple=16, temporal=4)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))

count, rng = int(sys.argv[1]), random.Random(0)
for source in map(Path, sys.argv[2:]):
    wanted, rate, whole = read_clip(source, limits=limits)
    path = source.with_stem("mutant")
    for _ in range(count):
        content = bytearray(source.read_bytes())
        for _ in range(rng.choice([1, 1, 3, 10])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            frames, fps, choice = read_clip(path, limits=limits)
            is_same = fps == rate and frames.equal(wanted)
            print(source.name, "same" if is_same else "told" if choice.warning != whole.warning else "silent")
        except (OSError, ValueError) as error:
            print(source.name, "error" if str(path) in str(error) else error)
"""
SILENT = {"x.mp4": 0.25, "x.ts": 0.25, "x.avi": 0.3, "x.webm": 0.7}
"""Share of the damages that leave no sign: VP9 has no redundancy by which to tell a wrong bit, H.264 has some."""


@pytest.mark.parametrize(
    ("files", "count"),
    [
        pytest.param({"x.mp4": "libx264", "x.webm": "libvpx-vp9"}, 20),
        pytest.param({"x.mp4": "libx264"}, 500, marks=pytest.mark.slow),
        pytest.param({"x.webm": "libvpx-vp9", "x.avi": "mpeg4", "x.ts": "libx264"}, 200, marks=pytest.mark.slow),
    ],
)
def test_flipped_bits_neither_crash_nor_hang_and_are_told_where_the_codec_can_tell(tmp_path, files, count):
    options = {"libx264": CABAC, "libvpx-vp9": {"deadline": "realtime"}}
    sources = [str(write_moving(tmp_path / name, codec, options.get(codec))) for name, codec in files.items()]
    command = [sys.executable, "-c", READ_MUTANTS, str(count), *sources]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    outcomes = Counter(tuple(line.split(" ", 1)) for line in run.stdout.splitlines())
    assert outcomes.total() == count * len(files)
    assert {outcome for _, outcome in outcomes} <= {"same", "told", "error", "silent"}
    for name in files:
        assert outcomes[name, "error"] + outcomes[name, "told"] > 0
        assert outcomes[name, "silent"] <= SILENT[name] * count
