"""A timeline says when the frames of a file are shown: from timestamps, never from an index over a nominal rate."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from ddim_lightning.data.decoding import decode_frames
from ddim_lightning.data.opening import reading, video_stream
from ddim_lightning.data.packets import Packets, read_packets

_MAX_FPS = Fraction(240)  # two timestamps may lie one tick apart
_UNEVEN = 1.5  # from how many frames' time on an interval is told
_SAME = 0.1  # by which part of it an interval may differ from the usual one
_HELD = 3  # from how many frames' time on the last frame counts as held


@dataclass(frozen=True)
class Timeline:
    """A `Timeline` says when the frames of a file are shown.

    Frames are counted (``start``, ``stride``, ``num_frames``) at a constant rate: frame i is what is on show i / fps
    seconds after the first. Where the intervals are constant, these are the frames of the file. Where they vary, a
    frame of the file that stays counts several times, and of several that are gone within one interval one counts.

    Args:
        times: When frames of the file appear, ascending, in units of ``base``.
        marks: What tells the decoder's frames apart: timestamps in units of the stream's time base; or positions, where
            the container does not say when frames are shown.
        keys: Timestamp to decoding timestamp of keyframes; empty where the marks are positions.
        base: In seconds.
        origin: When the stream begins according to its header, in units of ``base``; sound is measured from there.
        fps: Frames per second.
        num_frames: How many such frames the file lasts.
        is_constant: Whether frame i is frame i of the file.
        notes: Sentences about what is unusual in the file.
    """

    times: Sequence[int]
    marks: Sequence[int]
    keys: dict[int, int]
    base: Fraction
    origin: int
    fps: Fraction
    num_frames: int
    is_constant: bool
    notes: tuple[str, ...] = ()

    def get_mark(self, index: int) -> int:
        """Get the mark of the file's frame that frame ``index`` shows."""
        if self.is_constant:
            return self.marks[index]
        # The middle of its interval: a timestamp rounded to milliseconds does not change what is on show then.
        middle = self.times[0] + (index + Fraction(1, 2)) / self.fps / self.base
        return self.marks[bisect_right(self.times, middle) - 1]

    def get_start_s(self, index: int) -> float:
        """Get when frame ``index`` appears, in seconds after the stream begins."""
        time = self.times[index] if self.is_constant else self.times[0] + index / self.fps / self.base
        return float((time - self.origin) * self.base)


def read_timeline(path: Path) -> Timeline:
    """Read when the frames of a file are shown, from its packets: headers may be silent or wrong about them.

    Args:
        path: The file.

    Returns:
        The timeline.

    Raises:
        OSError: If there is no such file, it is a folder, or it may not be read; always the exact subclass.
        ValueError: If it is no video, has no frame, lists frames that are not there, or says nothing about its rate.
    """
    with reading(path) as container:
        packets = read_packets(path, container, video_stream(path, container))
    if not packets.pts:
        raise ValueError(f"{path} has no frame that can be shown")
    if packets.is_timed:
        times = sorted({time for time in packets.pts if time is not None})  # a hidden frame has the time of another
        if packets.has_leading:
            first = _read_first_shown(path)
            times = [time for time in times if time >= first]
        return _make_timeline(packets, times, times, packets.keys)
    times = sorted({time for time in packets.dts if time is not None})
    if len(times) == len(packets.dts):
        return _make_timeline(packets, times, range(len(times)), {})
    return _assume_constant(path, packets)


def _read_first_shown(path: Path) -> int:
    """Read the time of the first frame that the decoder gives out: it drops those whose references are not there."""
    with reading(path) as container:
        for frame, _ in decode_frames(container, video_stream(path, container), is_timed=True):
            if frame.pts is not None:
                return frame.pts
    raise ValueError(f"{path} is damaged: no frame can be decoded")


def _make_timeline(packets: Packets, times: Sequence[int], marks: Sequence[int], keys: dict[int, int]) -> Timeline:
    base, last_s = packets.base, times[-1] * packets.base
    intervals = [after - before for before, after in pairwise(times)]
    longest_s = max(intervals, default=0) * base
    end_s = max(packets.end * base, last_s)
    notes = _note_damage(packets, shown_s=end_s, slack_s=max(longest_s * Fraction(3, 2), Fraction(1, 10)))
    if not intervals:
        return Timeline(times, marks, keys, base, packets.origin, packets.fps or Fraction(1), 1, True, notes)
    fps, is_constant = _choose_rate(times, base, packets.fps)
    is_constant = is_constant and (end_s - last_s) * fps < _HELD
    if longest_s * fps > _UNEVEN or not is_constant:
        note = f"the frame rate varies ({float(min(intervals) * base):.3g} to {float(longest_s):.3g} s a frame)"
        notes = (f"{note}: frames are taken at {float(fps):.4g} frames per second", *notes)
    num_frames = len(times)
    if not is_constant:
        if last_s + longest_s >= packets.duration_s:  # webm, for one, does not say how long its last frame stays
            end_s = max(end_s, packets.duration_s)
        num_frames = max(1, round((max(end_s, last_s + 1 / fps) - times[0] * base) * fps))
    return Timeline(times, marks, keys, base, packets.origin, fps, num_frames, is_constant, notes)


def _assume_constant(path: Path, packets: Packets) -> Timeline:
    """Make the timeline of a file whose timestamps are of no use."""
    if not packets.fps:
        raise ValueError(f"{path} does not say how many frames per second it has")
    count = len(packets.pts)
    notes = _note_damage(packets, shown_s=count / packets.fps, slack_s=packets.duration_s)
    if any(time is not None for time in packets.pts):  # unlike in a bare stream, which never has any
        note = "timestamps are missing or run backwards: a constant"
        notes = (f"{note} rate of {float(packets.fps):.4g} frames per second is assumed", *notes)
    return Timeline(range(count), range(count), {}, 1 / packets.fps, 0, packets.fps, count, True, notes)


def _note_damage(packets: Packets, *, shown_s: Fraction, slack_s: Fraction) -> tuple[str, ...]:
    """Say what is missing; ``slack_s`` is by how much a header may be wrong without anything being missing."""
    notes = []
    if packets.is_cut or packets.duration_s - max(packets.end_s, shown_s) > slack_s:
        of = f" of {float(packets.duration_s):.4g}" if packets.duration_s > shown_s else ""
        notes.append(f"the file is cut short: its video ends after {float(shown_s):.4g}{of} s")
    if packets.missed_s:
        notes.append(f"the file begins {float(packets.missed_s):.4g} s before its first keyframe: these are not shown")
    if packets.damages:
        notes.append(f"the file is damaged in {packets.damages} places")
    return tuple(notes)


def _choose_rate(times: Sequence[int], base: Fraction, nominal: Fraction | None) -> tuple[Fraction, bool]:
    """Choose a constant rate, and say whether the frames of the file have it already.

    Args:
        times: See `Timeline`; at least two.
        base: See `Timeline`.
        nominal: The rate in the header, if there is one.

    Returns:
        Frames per second, and whether every frame is within half a frame of where that rate puts it. The rate in the
        header is taken if it is true, else the mean if that is; else the higher of the mean and that of the usual
        interval, so that a frame that is missing does not slow down the others.
    """
    seconds = np.array([time - times[0] for time in times], dtype=np.float64) * float(base)
    intervals = np.diff(seconds)
    mean = (len(times) - 1) / ((times[-1] - times[0]) * base)
    is_regular = np.mean(np.abs(intervals / np.median(intervals) - 1) < _SAME) > 0.5
    most = 0.5 if is_regular else 1.0
    for fps, spread in ((nominal, 0.5), (_round(mean), most), (mean, most)):
        if fps and np.ptp(seconds * float(fps) - np.arange(len(times))) < spread + 1e-6:
            return fps, True
    usual = 1 / (Fraction(statistics.median(after - before for before, after in pairwise(times))) * base)
    return min(_round(max(mean, usual)), _MAX_FPS), False


def _round(fps: Fraction) -> Fraction:
    """Round to a rate in use, if there is one nearby: times in whole milliseconds do not tell 30 from 30.3."""
    for divisor, tolerance in ((Fraction(1001, 1000), 1e-4), (Fraction(1), 0.02)):
        near = round(fps * divisor) / divisor
        if near and abs(fps / near - 1) < tolerance:
            return near
    return fps.limit_denominator(1001) or fps
