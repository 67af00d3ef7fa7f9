"""The progress display: time left by a clock of our own, and what reaches a terminal and a file."""

from __future__ import annotations

import io

import pytest
import torch
from lightning import LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from ddim_lightning.callbacks.progress import ClipClock, ProgressPrinter
from ddim_lightning.types import Progress

STAGES = [  # stage, label, steps, rows a step
    ("encode", "encode", 1, 0.0),
    ("invert", "invert", 4, 1.0),
    ("reconstruct", "reconstruct", 4, 1.0),
    ("edit", "edit 1/2", 4, 3.0),
    ("edit", "edit 2/2", 4, 3.0),
    ("decode", "decode", 3, 0.0),
]


def make_ticks(clip_id="clip"):
    ticks = []
    nfe_left = int(sum(steps * rows for _, _, steps, rows in STAGES))
    for stage, label, steps, rows in STAGES:
        nfe_left -= int(steps * rows)
        ticks += [Progress(clip_id, stage, label, done, steps, rows, nfe_left) for done in range(steps + 1)]
    return ticks


def test_time_left_is_exact_when_every_row_takes_the_same_time():
    now = 0.0
    clock = ClipClock(0, 1, lambda: now)
    told = []
    for tick in make_ticks():
        if tick.done and tick.nfe:
            now += 2.0 * tick.nfe
        told.append((tick.label, tick.done, clock.read(tick).left_s))
    assert told[:3] == [("encode", 0, None), ("encode", 1, None), ("invert", 0, None)]
    assert ("invert", 1, 2.0 * 31) in told
    assert ("reconstruct", 0, 2.0 * 28) in told
    assert ("edit 1/2", 3, 2.0 * 15) in told
    assert ("edit 2/2", 4, 0.0) in told


def test_clips_to_come_are_counted_at_the_price_of_this_one():
    now = 0.0
    clock = ClipClock(1, 4, lambda: now)
    now = 5.0  # reading and encoding
    clock.read(Progress("clip", "invert", "invert", 0, 10, 1.0, 10))
    now = 15.0
    tick = clock.read(Progress("clip", "invert", "invert", 5, 10, 1.0, 10))
    # 5 of 20 rows took 10 s: 30 s are left of this clip, which takes 45 s in all, and so do two more
    assert tick.left_s == pytest.approx(30.0 + 2 * 45.0)
    assert (tick.clip_number, tick.num_clips) == (2, 4)


def test_windows_of_a_long_clip_are_told():
    clock = ClipClock(0, 1)
    assert clock.read(Progress("clip", "invert", "invert", 1, 10, 3.0, 10, windows=3)).label == "invert (3 windows)"
    assert clock.read(Progress("clip", "decode", "decode", 0, 10, 0.0, 0)).label == "decode"


class _Worker(LightningModule):
    """Ticks as the real module does."""

    def __init__(self, fail=False):
        super().__init__()
        self.progress_listeners = []
        self.fail = fail

    def predict_step(self, batch, batch_idx):
        for tick in make_ticks(f"clip [{batch_idx}]"):
            for listener in self.progress_listeners:
                listener(tick)
        if self.fail:
            raise RuntimeError("out of memory")


def _run(console, module):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = Trainer(**quiet, callbacks=[ProgressPrinter(console)])
    trainer.predict(module, DataLoader(torch.arange(2)), return_predictions=False)


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_a_file_gets_a_line_at_the_end_of_every_stage():
    stream = io.StringIO()
    module = _Worker()
    _run(Console(file=stream, width=20), module)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 * len(STAGES)
    assert lines[0] == "clip 1/2 clip [0]: encode 1/1"
    assert lines[1].startswith("clip 1/2 clip [0]: invert 4/4 0:0")
    assert lines[-2].startswith("clip 2/2 clip [1]: edit 2/2 4/4 0:00 left")
    assert module.progress_listeners == []


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_a_terminal_gets_a_bar_that_goes_away():
    stream = io.StringIO()
    _run(Console(file=stream, width=120, force_terminal=True), _Worker())
    shown = stream.getvalue()
    assert "clip [1]" in shown
    assert "decode" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased and the cursor stands where it was
    assert "\x1b[?25h" in shown


def test_the_terminal_is_given_back_after_an_error():
    stream = io.StringIO()
    module = _Worker(fail=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        _run(Console(file=stream, width=120, force_terminal=True), module)
    assert "\x1b[?25h" in stream.getvalue()
    assert module.progress_listeners == []


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_a_module_that_tells_nothing_is_run_all_the_same():
    class Silent(LightningModule):
        done = 0

        def predict_step(self, batch, batch_idx):
            self.done += 1

    stream = io.StringIO()
    module = Silent()
    with pytest.warns(UserWarning, match="ProgressPrinter shows nothing: Silent has no `progress_listeners`"):
        _run(Console(file=stream, width=120), module)
    assert module.done == 2
    assert stream.getvalue() == ""
