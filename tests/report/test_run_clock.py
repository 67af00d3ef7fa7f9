"""The time left of a run: exact where all work is alike, and soon near the truth where it is not."""

from __future__ import annotations

import random

import pytest

from ddim_lightning.report.run_clock import RunClock, TimeLeft
from ddim_lightning.types import Progress


class Run:
    """A run on a clock of its own: what the clock said, and when everything happened.

    Args:
        num_clips: How many clips there are.
        last: How long something lasts that is to last so many seconds.
    """

    def __init__(self, num_clips, last=lambda seconds: seconds):
        self.num_clips, self.last = num_clips, last
        self.now, self.number, self.told = 0.0, 0, []
        self.clock = RunClock(lambda: self.now)

    def wait(self, seconds):
        self.now += self.last(seconds)

    def stage(self, stage, label, total, nfe, nfe_left, step_s):
        step_s = self.last(step_s)
        for done in range(total + 1):
            if done:
                self.wait(step_s)
            tick = Progress("clip", stage, label, done, total, nfe, nfe_left)
            self.told.append((self.now, self.number, tick, self.clock.read(tick, self.num_clips - self.number)))

    def clip(self, *, edits=2, steps=4, row_s=2.0, encode_s=0.0, decode_s=0.0, write_s=0.0, until=None):
        """A clip of 1 row a step in invert and reconstruct, 3 in edits."""
        self.number += 1
        nfe_left = steps * (2 + 3 * edits)
        stages = [("encode", "encode", 1, 0, encode_s), ("invert", "invert", steps, 1, row_s)]
        stages += [("reconstruct", "reconstruct", steps, 1, row_s)]
        stages += [("edit", f"edit {k}/{edits}", steps, 3, 3 * row_s) for k in range(1, edits + 1)]
        stages += [("decode", "decode", 2 + edits, 0, decode_s)]
        for stage, label, total, nfe, step_s in stages:
            if label == until:
                return
            nfe_left -= total * nfe
            self.stage(stage, label, total, float(nfe), nfe_left, step_s)
        self.wait(write_s)

    def list_left(self, label, done):
        return [left for _, _, tick, left in self.told if (tick.label, tick.done) == (label, done)]


def test_time_left_is_exact_when_every_row_takes_the_same_time():
    run = Run(1)
    run.clip()
    seconds = {(tick.label, tick.done): left and left.seconds for _, _, tick, left in run.told}
    assert seconds["invert", 0] is None
    assert seconds["invert", 1] == 2.0 * 31
    assert seconds["reconstruct", 0] == 2.0 * 28
    assert seconds["edit 1/2", 3] == 2.0 * 15
    assert seconds["edit 2/2", 4] == 0.0


def test_what_no_clip_has_come_to_is_not_in_the_least_time():
    run = Run(2)
    for _ in range(2):
        run.clip(encode_s=3.0, decode_s=5.0, write_s=7.0)
    rows = 2.0 * 32
    first, second = run.list_left("edit 1/2", 0)
    assert first == TimeLeft(2.0 * 24 + 3 + rows, is_least=True)
    assert second == TimeLeft(2.0 * 24 + 4 * 5 + 7)
    first, second = run.list_left("decode", 1)
    assert first == TimeLeft(3 * 5 + 3 + rows, is_least=True)
    assert second == TimeLeft(3 * 5 + 7)
    assert run.list_left("encode", 0)[1] == TimeLeft(3 + rows + 4 * 5 + 7)


def test_the_first_step_of_a_run_is_not_that_of_clips_to_come():
    run = Run(3)
    run.clip(until="invert")
    run.wait(600.0)  # compiles
    for done, waited in enumerate((2.0, 0.0, 2.0)):
        run.wait(waited)
        run.told.append(run.clock.read(Progress("clip", "invert", "invert", done, 2, 1.0, 0), 2))
    assert run.told[-1].seconds == 2 * 2 * 2.0


def test_clips_that_take_no_time_of_the_network_are_not_counted():
    plain, resumed = Run(3), Run(3)
    for run in (plain, resumed):
        for _ in range(3):
            if run is resumed:
                run.clock.pause()  # another batch begins
                run.wait(1000.0)  # a clip that an earlier run finished
                run.clock.pause()
            run.clip(encode_s=3.0, decode_s=5.0, write_s=7.0)
    assert [left for *_, left in plain.told] == [left for *_, left in resumed.told]


def make_jitter(seed, most=0.15):
    random_ = random.Random(seed)
    return lambda seconds: seconds * random_.uniform(1 - most, 1 + most)


def list_errors(run):
    """By quarters of the run, after its first clip: the largest error as a share of the truth, or of a clip's time."""
    ends, clip_s = run.now, run.now / run.num_clips
    found = [
        abs(left.seconds - (ends - now)) / max(ends - now, clip_s) for now, number, _, left in run.told if number > 1
    ]
    return [max(found[k * len(found) // 4 : (k + 1) * len(found) // 4]) for k in range(4)]


@pytest.mark.parametrize("seed", range(3))
def test_after_the_first_clip_the_estimate_stays_near_the_truth(seed):
    """Clips alike, each stage of each up to 15 % faster or slower, and so again each of its steps."""
    run = Run(20, make_jitter(seed))
    for _ in range(20):
        run.clip(steps=20, encode_s=8.0, decode_s=6.0, write_s=10.0)
    assert max(list_errors(run)[:3]) < 0.1
    assert list_errors(run)[3] < 0.125  # where a clip alone is left, its own stages decide


@pytest.mark.parametrize("seed", range(3))
def test_the_estimate_of_a_mixed_run_settles(seed):
    """One to three edits, every other clip half as large again, and one clip in ten that fails in its midst."""
    run = Run(20, make_jitter(seed))
    for k in range(20):
        size, fails = 1 + k % 2 / 2, k % 10 == 5
        times = {"row_s": 2 * size, "encode_s": 8 * size, "decode_s": 6 * size, "write_s": 10.0}
        run.clip(steps=20, edits=1 if fails else 1 + k % 3, until="edit 1/1" if fails else None, **times)
    first, *middle, last = list_errors(run)
    assert max(first, last) < 0.35  # a first clip is not like the mean, nor is the last
    assert max(middle) < 0.3
