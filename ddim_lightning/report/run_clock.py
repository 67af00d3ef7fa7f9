"""A clock tells how much longer a run takes, from the work of its clips so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ddim_lightning.types import Progress

_BETWEEN = "between"
"""What comes after a clip is decoded and before the next one is encoded: measuring, writing, reading."""
_BESIDE = ("encode", "decode", _BETWEEN)
"""What a clip takes beside the network."""


@dataclass
class _Mean:
    """A `_Mean` is a sum of something over a number of what it is the sum of."""

    sum: float = 0.0
    count: float = 0.0

    def add(self, value: float, count: float = 1) -> None:
        self.sum += value
        self.count += count

    def get(self) -> float | None:
        return self.sum / self.count if self.count else None


@dataclass(frozen=True)
class TimeLeft:
    """A `TimeLeft` is how many seconds are left, at least where no clip has come to some of what is ahead yet."""

    seconds: float
    is_least: bool = False


class RunClock:
    """A `RunClock` estimates the time left of a run from the ticks of its clips.

    Work of the network is counted in function evaluations (NFE). One to come is taken to last as long as those before
    it did: at first as those of earlier clips, and the further a clip is, the more as its own. What a clip takes beside
    the network is taken to last as long as in earlier clips, and a clip to come as long as the mean of those so far.

    The first step of a run compiles or chooses kernels, and so it counts only while there is no other. Time between
    `pause` and the next tick counts nowhere: clips that an earlier run finished take it, and such that cannot be read.

    Args:
        now: Reads a clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: float | None = None  # when the last tick came; None after a pause
        self._first_step = _Mean()  # seconds a function evaluation, likewise:
        self._earlier, self._own = _Mean(), _Mean()  # of earlier clips, and of the one at work
        self._nfe_done = 0.0  # of the clip at work
        self._nfe_by_clip = _Mean()  # of earlier clips
        self._stage_s = 0.0  # what the stage at work has taken, of those beside the network
        self._beside = {stage: _Mean() for stage in _BESIDE}  # seconds a clip

    def read(self, progress: Progress, clips_to_come: int = 0) -> TimeLeft | None:
        """Take in one tick.

        Args:
            progress: The tick; those of a clip arrive in order.
            clips_to_come: Clips that follow the one at work.

        Returns:
            How long all of them take; ``None`` until the network has made a step.
        """
        if progress.stage == "encode" and not progress.done:  # another clip
            self.pause()
        now = self._now()
        passed_s, self._last = 0.0 if self._last is None else now - self._last, now
        if progress.done:
            self._count(progress, passed_s)
        else:
            self._stage_s = 0.0
        return self._estimate(progress, clips_to_come)

    def pause(self) -> None:
        """End the clip at work, which is written by now."""
        if self._last is None:
            return
        self._beside[_BETWEEN].add(self._now() - self._last)
        self._earlier.add(self._own.sum, self._own.count)
        self._nfe_by_clip.add(self._nfe_done)
        self._last, self._own, self._nfe_done = None, _Mean(), 0.0

    def _count(self, progress: Progress, passed_s: float) -> None:
        if progress.nfe:
            pace = self._own if self._first_step.count else self._first_step
            pace.add(passed_s, progress.nfe)
            self._nfe_done += progress.nfe
        elif progress.stage in self._beside:
            self._stage_s += passed_s
            if progress.done == progress.total:
                self._beside[progress.stage].add(self._stage_s)

    def _estimate(self, progress: Progress, clips_to_come: int) -> TimeLeft | None:
        mean = _Mean(self._earlier.sum + self._own.sum, self._earlier.count + self._own.count)
        pace = mean.get() or self._first_step.get()
        if pace is None:
            return None
        to_do = count_nfe_left(progress)
        ahead = list(self._list_ahead(progress))
        beside = [stage.get() for stage in self._beside.values()] if clips_to_come else []
        nfe = (self._nfe_by_clip.sum + self._nfe_done + to_do) / (self._nfe_by_clip.count + 1)
        clip_s = to_do * self._blend(pace, to_do) + sum(seconds or 0.0 for seconds in ahead)
        other_s = nfe * pace + sum(seconds or 0.0 for seconds in beside)
        return TimeLeft(clip_s + clips_to_come * other_s, is_least=None in [*ahead, *beside])

    def _blend(self, pace: float, to_do: float) -> float:
        """Seconds of a function evaluation to come of the clip at work: the further it is, the more by its own."""
        own, earlier = self._own.get(), self._earlier.get()
        if own is None or earlier is None:
            return pace
        share = self._nfe_done / (self._nfe_done + to_do)
        return share * own + (1 - share) * earlier

    def _list_ahead(self, progress: Progress) -> Iterator[float | None]:
        """What is ahead of the clip at work beside the network, in seconds; ``None`` of what no clip has come to."""
        if progress.stage == "encode" and not progress.done:
            yield self._beside["encode"].get()
        if progress.stage != "decode" or not progress.done:
            yield self._beside["decode"].get()
        elif progress.done < progress.total:
            yield self._stage_s / progress.done * (progress.total - progress.done)
        yield self._beside[_BETWEEN].get()


def count_nfe_left(progress: Progress) -> float:
    """Return the function evaluations that are left of a clip."""
    return progress.nfe * (progress.total - progress.done) + progress.nfe_left
