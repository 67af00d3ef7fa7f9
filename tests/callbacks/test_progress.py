"""The progress of a run under a real Trainer: what is counted, and who has the terminal."""

from __future__ import annotations

import fcntl
import io
import math
import os
import signal
import struct
import subprocess
import sys
import termios
from fractions import Fraction

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from ddim_lightning import VideoWriter
from ddim_lightning.callbacks.progress import ProgressPrinter
from ddim_lightning.data.video import write_video
from ddim_lightning.types import Clip, ClipResult, Progress, UnreadableClip
from tests.clip_results import make_small_result

STAGES = [("encode", "encode", 1, 0.0), ("edit", "edit 1/1", 4, 3.0), ("decode", "decode", 2, 0.0)]
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
pytestmark = pytest.mark.filterwarnings("ignore:predict returned None", "ignore:Couldn't infer the batch indices")


def make_ticks(clip_id):
    left = {"encode": 12, "edit": 0, "decode": 0}
    return [
        Progress(clip_id, stage, label, done, total, nfe, left[stage])
        for stage, label, total, nfe in STAGES
        for done in range(total + 1)
    ]


class Worker(LightningModule):
    """Ticks and returns results as the real module does, of clips with another status than done no ticks."""

    def __init__(self, error=None, statuses=()):
        super().__init__()
        self.progress_listeners = []
        self.error, self.statuses = error, dict(statuses)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        results = [self.work(clip) for clip in (batch if isinstance(batch, list) else [batch])]
        if self.error is not None:
            raise self.error
        return results if isinstance(batch, list) else results[0]

    def work(self, clip):
        status = self.statuses.get(clip.id, "done")
        if status != "done":
            reason = "it is broken" if status == "skipped" else None
            return ClipResult(UnreadableClip(clip.id, "", "it is broken") if reason else clip, status, reason)
        for tick in make_ticks(clip.id):
            for listener in self.progress_listeners:
                listener(tick)
        return make_small_result(clip.id)


class Watch(ProgressPrinter):
    """Remembers what is shown."""

    def on_predict_start(self, trainer, pl_module):
        super().on_predict_start(trainer, pl_module)
        self.ticks, show = [], self._view.show
        self._view.show = lambda tick: (self.ticks.append(tick), show(tick))

    @property
    def numbers(self):
        return list(dict.fromkeys((tick.clip_number, tick.num_clips) for tick in self.ticks))


def make_clips(count):
    return [Clip(f"clip-{k}", torch.zeros(1, 3, 8, 8, dtype=torch.uint8)) for k in range(count)]


def load(clips, batch_size=None):
    return DataLoader(clips, batch_size=batch_size, collate_fn=(lambda batch: batch) if batch_size else None)


def predict(printer, module, loaders, *callbacks, bar=False):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(**quiet, enable_progress_bar=bar, callbacks=[*callbacks, printer])
    trainer.predict(module, loaders, return_predictions=False)


def make_console(**options):
    return Console(file=io.StringIO(), width=120, **options)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_clip_that_cannot_be_written_is_counted_as_skipped(tmp_path, is_first):
    class Unwritable(Worker):
        def work(self, clip):
            result = super().work(clip)
            result.metrics = {"vae": {"psnr": math.nan}} if clip.id == "clip-1" else {}
            return result

    watch, writer = Watch(make_console()), VideoWriter(str(tmp_path))
    # Callbacks of a config come after those of the command line.
    first, second = (writer, watch) if is_first else (watch, writer)
    with pytest.warns(UserWarning, match="clip clip-1: skipped: metrics: psnr"):
        predict(second, Unwritable(), load(make_clips(2)), first)
    assert watch.ticks[-1].num_skipped == 1


def test_clips_are_counted_whatever_became_of_them(tmp_path):
    became = {"clip-0": "skipped", "clip-2": "finished", "clip-3": "skipped"}
    watch = Watch(make_console())
    predict(watch, Worker(statuses=became), load(make_clips(6)))
    assert watch.numbers == [(k, 6) for k in range(1, 7)]
    last = watch.ticks[-1]
    assert (last.num_skipped, last.num_finished) == (2, 1)
    assert [tick.progress.clip_id for tick in watch.ticks if tick.progress and not tick.progress.done][::3] == [
        "clip-1",
        "clip-4",
        "clip-5",
    ]


def test_batches_are_counted_by_their_clips():
    watch = Watch(make_console())
    predict(watch, Worker(), [load(make_clips(5), batch_size=2), load(make_clips(1))])
    assert watch.numbers == [(1, 8), (2, 8), (3, 8), (4, 8), (5, 6), (6, 6)]


def test_a_stream_of_clips_has_no_end():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(make_clips(3))

    watch = Watch(make_console())
    predict(watch, Worker(), DataLoader(Stream(), batch_size=None))
    assert watch.numbers == [(1, None), (2, None), (3, None)]


def test_the_sheet_is_the_last_that_the_writer_wrote(tmp_path):
    watch = Watch(make_console())
    predict(watch, Worker(), load(make_clips(3)), VideoWriter(str(tmp_path)))
    shown = list(dict.fromkeys(tick.sheet for tick in watch.ticks))
    assert shown == [None, *(tmp_path / f"clip-{k}" / "sheet.png" for k in range(3))]
    assert all(path.is_file() for path in shown[1:])


def test_a_file_gets_one_line_of_a_short_run():
    printer, module = ProgressPrinter(console := make_console()), Worker()
    predict(printer, module, load(make_clips(2)))
    assert console.file.getvalue() == "clip 1/2 clip-0: encode 0/1, 12 NFE left\n"
    assert module.progress_listeners == []


def test_a_terminal_gets_a_display_that_goes_away():
    printer = ProgressPrinter(console := make_console(force_terminal=True))
    predict(printer, Worker(), load(make_clips(2)))
    shown = console.file.getvalue()
    assert "clip 2/2" in shown
    assert shown.endswith("\x1b[2K")  # the lines are erased, and the cursor stands where it was
    assert shown.count(HIDE_CURSOR) == shown.count(SHOW_CURSOR) == 1


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_the_terminal_is_given_back(error):
    printer, module = ProgressPrinter(console := make_console(force_terminal=True)), Worker(error)
    out, err = sys.stdout, sys.stderr
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        predict(printer, module, load(make_clips(2)))
    assert console.file.getvalue().endswith("\x1b[2K")
    assert SHOW_CURSOR in console.file.getvalue()
    assert (sys.stdout, sys.stderr) == (out, err)
    assert module.progress_listeners == []


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_the_bar_of_the_trainer_keeps_the_terminal(bar, capsys):
    printer = ProgressPrinter(console := make_console(force_terminal=True))
    predict(printer, Worker(), load(make_clips(2)), bar(), bar=True)
    assert console.file.getvalue() == ""
    told = capsys.readouterr()
    assert told.out.count("clip 1/2 clip-0: encode 0/1, 12 NFE left\n") == 1
    assert "Predicting" in told.out + told.err


def test_a_file_is_written_beside_the_bar_of_the_trainer(capsys):
    printer = ProgressPrinter(console := make_console())
    predict(printer, Worker(), load(make_clips(2)), bar=True)
    assert console.file.getvalue() == "clip 1/2 clip-0: encode 0/1, 12 NFE left\n"
    assert "clip-0" not in capsys.readouterr().out


def test_colors_that_are_wanted_of_a_file_make_no_terminal_of_it(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    predict(ProgressPrinter(), Worker(), load(make_clips(2)))
    assert "clip 1/2 clip-0: encode 0/1, 12 NFE left\n" in capsys.readouterr().err


def test_a_module_that_tells_nothing_is_run_all_the_same():
    class Silent(LightningModule):
        done = 0

        def predict_step(self, batch, batch_idx):
            self.done += 1

    printer, module = ProgressPrinter(console := make_console()), Silent()
    with pytest.warns(UserWarning, match="ProgressPrinter shows nothing: Silent has no `progress_listeners`"):
        predict(printer, module, DataLoader(torch.arange(2)))
    assert module.done == 2
    assert console.file.getvalue() == ""


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"TERM": "xterm"}, {"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_real_terminal_is_as_it_was_after_an_interrupt(environment, tmp_path):
    """The command line on a terminal of 40 columns, interrupted once it shows what is left."""
    write_video(tmp_path / "clip.mp4", torch.zeros(9, 3, 64, 64, dtype=torch.uint8), Fraction(8))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    before = termios.tcgetattr(theirs)
    flags = ["clip.mp4", "--output", "out", "--prompt", "a red circle", "--num-inference-steps", "500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ddim_lightning", "edit", *flags],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment,
    )
    shown = b""
    while b"NFE left" not in shown:
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    while b"interrupted" not in shown:
        shown += os.read(ours, 4096)
    assert process.wait(60) == 130
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
    text = shown.decode()
    is_live = environment["TERM"] != "dumb"
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == is_live
    assert ("\x1b[36m" in text) == (is_live and "NO_COLOR" not in environment)
    assert is_live or "\x1b" not in text
