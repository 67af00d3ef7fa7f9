"""Frames are chosen from a file by the rules of a model; nothing heavy is imported for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import FrameSelection

Fit = Literal["crop", "pad", "stretch"]
"""How a frame of another shape fills the model's: cut at the sides, framed by black bars, or distorted."""
Stride = float | Literal["spread"]
"""Distance between the frames taken, >= 1, or ``spread``: evenly over the rest of the clip."""
NumFrames = int | Literal["all"]
"""How many frames are taken, 4k + 1, or ``all``: as many as the clip has, whatever the model takes at once."""
_TELL_CROPPED = 0.1


@dataclass(frozen=True)
class FrameChoice:
    """A `FrameChoice` says which frames of a file were chosen, and what was made of them.

    Args:
        total: Frames the file has.
        start: Index of the first frame.
        stride: Exact mean distance between the frames, >= 1.
        count: How many frames.
        reason: Why there are not more.
        cropped: Share of the picture that was cut at its sides, 0 .. 1.
        start_s: When the first frame appears, in seconds after the video begins; ``None`` where no file was read.
        notes: Sentences about what is unusual in the file, and what was made of its frames.
    """

    total: int
    start: int
    stride: Fraction
    count: int
    reason: str
    cropped: float = 0.0
    start_s: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def indices(self) -> list[int]:
        """Where the frames stand in the file: those on show at the times of the frames of the new clip."""
        return [self.start + math.floor(i * self.stride) for i in range(self.count)]

    @property
    def selection(self) -> FrameSelection:
        """The choice as it travels with the clip."""
        stride = int(self.stride) if self.stride.denominator == 1 else float(self.stride)
        dropped = max(0, self.total - self._end)
        return FrameSelection(self.start, stride, self.count, dropped, round(self.cropped, 4), self.start_s)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what is unusual in the file, and about all that was lost of it in time, space and color."""
        found = []
        if self._end < self.total:
            found.append(f"frames {self._end}..{self.total - 1} of {self.total} were not used ({self.reason})")
        if self.cropped > _TELL_CROPPED:
            lost = f"{self.cropped:.0%} of the picture"
            found.append(f"{lost} was cut off at two sides (fit='crop'); 'pad' and 'stretch' keep all of it")
        return (*found, *self.notes)

    @property
    def warning(self) -> str | None:
        """The `warnings` in one line; ``None`` when there are none."""
        return "; ".join(self.warnings) or None

    @property
    def _end(self) -> int:
        return self.start + math.floor(self.count * self.stride)


def tell_given(start: int, stride: Stride) -> str:
    """Return `` (start=2, stride=1.5)``, for messages, without what is as it is by default."""
    shown = stride if isinstance(stride, str) else f"{stride:g}"
    given = [f"start={start}"] * (start != 0) + [f"stride={shown}"] * (stride != 1)
    return f" ({', '.join(given)})" if given else ""


def check_stride(stride: Stride) -> None:
    """Check that frames can be taken at this distance.

    Args:
        stride: A number >= 1 or ``spread``.

    Raises:
        ValueError: If it is neither.
    """
    if stride == "spread" or (isinstance(stride, (int, float)) and 1 <= stride < math.inf):
        return
    raise ValueError(f"stride must be a number >= 1 or 'spread', got {stride!r}")


def check_num_frames(num_frames: NumFrames, limits: VideoLimits) -> None:
    """Check a number of frames against the model alone, which takes any length: long clips are covered by windows.

    Args:
        num_frames: How many frames are asked for.
        limits: What the model takes.

    Raises:
        ValueError: If it is neither ``all`` nor 4k + 1 (4 being ``limits.temporal``) and at least 5, or fewer than the
            model has learned positions for.
    """
    temporal = limits.temporal
    if num_frames == "all":
        return
    if not isinstance(num_frames, int):
        raise ValueError(f"num_frames must be an integer or 'all', got {num_frames!r}")
    if num_frames <= temporal or num_frames % temporal != 1 % temporal:
        raise ValueError(f"num_frames must be {temporal}k + 1 and at least {temporal + 1}, got {num_frames}")
    limits.check_count(num_frames)


def choose_frames(
    total: int, limits: VideoLimits, *, start: int = 0, num_frames: NumFrames | None = None, stride: Stride = 1
) -> FrameChoice:
    """Choose frames of a clip.

    Args:
        total: Frames the file has.
        limits: What the model takes: 4k + 1 frames (4 being ``limits.temporal``), ``limits.num_frames`` at once.
        start: Index of the first frame, >= 0.
        num_frames: How many; ``None`` is the largest 4k + 1 that the clip has and the model takes at once, ``all`` the
            largest that the clip has.
        stride: Distance between frames in frames of the file, >= 1; ``spread`` makes the chosen frames last as long as
            everything from ``start`` to the end.

    Returns:
        The choice.

    Raises:
        ValueError: If fewer than 5 frames can be used, or the explicit number breaks a rule or exceeds the clip.
    """
    check_stride(stride)
    temporal = limits.temporal
    rest = max(0, total - start)
    exact = None if stride == "spread" else Fraction(repr(stride))
    usable = rest if exact is None else math.ceil(rest / exact)
    if usable <= temporal:
        raise ValueError(
            f"too few frames: {usable} of {total} can be used{tell_given(start, stride)}, "
            f"at least {temporal + 1} are needed"
        )
    if num_frames is None or num_frames == "all":
        most = min(usable, limits.num_frames) if num_frames is None else usable
        is_model = num_frames is None and most == limits.num_frames
        num_frames = (most - 1) // temporal * temporal + 1
        limits.check_count(num_frames)
        at_once = f"model takes {num_frames} at once, num_frames='all' takes all"
        reason = at_once if is_model else f"the count must be {temporal}k + 1"
    else:
        check_num_frames(num_frames, limits)
        if num_frames > usable:
            raise ValueError(
                f"num_frames must be at most {usable}, what the clip of {total} frames holds"
                f"{tell_given(start, stride)}, got {num_frames}"
            )
        reason = f"num_frames={num_frames}"
    return FrameChoice(total, start, exact or Fraction(rest, num_frames), num_frames, reason)


def make_size(limits: VideoLimits, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Make the size that frames are brought to.

    Args:
        limits: What the model takes.
        height: In pixels; ``None`` is the model's own.
        width: In pixels; ``None`` is the model's own.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: If one of them is not a positive multiple of ``limits.multiple``, or the model has no positions for
            such a size.
    """
    height = limits.height if height is None else height
    width = limits.width if width is None else width
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % limits.multiple:
            raise ValueError(f"{name} must be a positive multiple of {limits.multiple} pixels, got {value}")
    limits.check_size(height, width)
    return height, width
