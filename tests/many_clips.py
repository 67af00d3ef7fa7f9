"""A folder of 200 clips as people have them, 20 of them broken in ten ways, and the run that goes through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

GOOD, BROKEN = 180, 20


def write(path, *, codec="libx264", pix_fmt="yuv420p", size=(48, 64), frames=9, times=None, turn=0, seed=0):
    """Write noise in large blocks; ``times`` in milliseconds makes the rate vary."""
    rng = np.random.default_rng(seed)
    height, width = size
    with av.open(f"file:{path}", "w", format="matroska" if Path(path).suffix == ".mkv" else None) as output:
        stream = output.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        if turn:
            stream.set_display_rotation(turn)
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for k in range(frames):
            blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
            pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def write_sound(path):
    with av.open(f"file:{path}", "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())


def good_clips(folder):
    """Yield a name and how to write it, for ever: what people have, one kind after the other."""
    kinds = [
        ("plain{}.mp4", {}),
        ("two words {}.mp4", {}),
        ("\u00e9t\u00e9 \u732b \U0001f431 {}.mp4", {}),
        ('it\'s "{}".mp4', {}),
        ("two\nlines {}.mp4", {}),
        ("-dash {}.mp4", {}),
        ("turned {}.mp4", {"turn": 90}),
        ("odd {}.mkv", {"codec": "ffv1", "pix_fmt": "yuv444p", "size": (49, 65)}),
        ("ten bit {}.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p10le"}),
        ("gray {}.mkv", {"codec": "ffv1", "pix_fmt": "gray"}),
        ("alpha {}.mkv", {"codec": "ffv1", "pix_fmt": "bgra"}),
        ("varying {}.mkv", {"codec": "ffv1", "frames": 12, "times": [0, 40, 200, 240, 500, *range(600, 1300, 100)]}),
    ]
    for k in range(GOOD):
        name, how = kinds[k % len(kinds)]
        write(folder / name.format(k), seed=k, **how)


def broken_clips(folder):
    """Write the same ten failures twice."""
    write(folder / "whole.mp4", frames=40)
    whole = (folder / "whole.mp4").read_bytes()
    (folder / "whole.mp4").unlink()
    assert whole.count(b"avc1")
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"no video at all\n" * 50,
        "cut in half.mp4": whole[: len(whole) // 2],
        "cut early.mp4": whole[:300],
        "codec that nobody knows.mp4": whole.replace(b"avc1", b"zzzz"),
        "random.webm": np.random.default_rng(0).bytes(5000),
    }
    for k in range(2):
        for name, content in contents.items():
            (folder / f"{k} {name}").write_bytes(content)
        os.mkfifo(folder / f"{k} pipe.mp4")
        (folder / f"{k} points nowhere.mp4").symlink_to(folder / "gone.mp4")
        write_sound(folder / f"{k} sound alone.mp4")
        write(folder / f"{k} three frames.mp4", frames=3)


def resident(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def open_files(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@dataclass
class ManyClips:
    """What the run over the folder left.

    Args:
        videos: The folder.
        output: Where the results lie.
        code: The exit status.
        said: What the run printed.
        seen: Resident memory in KiB and the number of open files, by how many clips were done.
    """

    videos: Path
    output: Path
    code: int
    said: str
    seen: dict[int, tuple[int, int]]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The results as they are listed."""
        return [json.loads(line) for line in (self.output / "results.jsonl").read_text("utf-8").splitlines()]

    def list(self, status: str) -> list[dict[str, Any]]:
        """Those that are done, or skipped."""
        return [record for record in self.records if record["status"] == status]


def run_many_clips(folder):
    """Write the clips into a folder, and run over them by the command line, watching the process."""
    videos, output = folder / "videos", folder / "out"
    videos.mkdir()
    good_clips(videos)
    broken_clips(videos)
    assert len(list(videos.iterdir())) == GOOD + BROKEN
    words = ["predict", "--config", "tiny_cpu", "--data.videos", str(videos), "--writer.output_dir", str(output)]
    words += ["--model.schedule.num_inference_steps", "2", "--data.height", "32", "--data.width", "32"]
    with (folder / "log").open("wb") as log:
        run = subprocess.Popen([sys.executable, "-m", "ddim_lightning", *words], stdout=log, stderr=log)
        seen = {}
        while run.poll() is None:
            done = sum(1 for path in output.glob("*/result.json")) if output.is_dir() else 0
            for mark in (20, GOOD - 2):
                if done >= mark and mark not in seen:
                    seen[mark] = resident(run.pid), open_files(run.pid)
            time.sleep(0.05)
    return ManyClips(videos, output, run.returncode, (folder / "log").read_text(), seen)
