"""A callback shows the progress of `Trainer.predict` to a person."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from ddim_lightning.engine.batch_forms import split_batch
from ddim_lightning.report.progress_view import Tick, View, make_view
from ddim_lightning.report.run_clock import RunClock, TimeLeft
from ddim_lightning.types import ClipResult, Progress
from ddim_lightning.writer import VideoWriter


class ProgressPrinter(Callback):
    """A `ProgressPrinter` shows on stderr which clip, stage and step a run is at, and what is left of it.

    On a terminal that is a live display, in a notebook one line that changes, and elsewhere a line every ten seconds at
    most. What is left is told as function evaluations of the clip and time of the run; the sheet is the last that a
    `VideoWriter` of the Trainer wrote.

    It replaces Lightning's own bar, which counts batches alone; give the Trainer ``enable_progress_bar=False``. Where
    the Trainer has its bar it keeps the terminal, and lines appear above it. With several processes the first one
    speaks, of its own share of the clips. With a module that has no ``progress_listeners`` it warns, and shows nothing.

    Args:
        console: Where to show it; stderr when it is ``None``.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._view: View | None = None
        self._clock = RunClock()
        self._left: TimeLeft | None = None
        self._writers: list[VideoWriter] = []
        self._counts: Counter[str] = Counter()
        """Clips of earlier batches by what became of them."""
        self._ended: list[ClipResult] = []
        """Those of the last batch: a writer that comes after this callback may still skip one."""
        self._batches_to_come = 0.0
        self._num_clips: int | None = None
        """Clips in all, if all batches are as large as the one at work."""
        self._num_before = self._batch_size = self._num_begun = 0
        """Clips of earlier batches; of the one at work, all and those begun."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to listen to the module."""
        if not trainer.is_global_zero:
            return
        if not hasattr(pl_module, "progress_listeners"):
            name = type(pl_module).__name__
            warnings.warn(f"ProgressPrinter shows nothing: {name} has no `progress_listeners`", stacklevel=2)
            return
        self._clock, self._left, self._counts, self._ended = RunClock(), None, Counter(), []
        self._batches_to_come, self._num_clips = float(sum(trainer.num_predict_batches)), None
        self._num_before = self._batch_size = self._num_begun = 0
        self._writers = [one for one in trainer.callbacks if isinstance(one, VideoWriter)]  # type: ignore[attr-defined]
        bar = trainer.progress_bar_callback
        self._view = make_view(self._console or _make_console(), None if bar is None else bar.print)
        _listeners(pl_module).append(self._listen)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the clips of a batch."""
        if self._view is not None:
            self._clock.pause()
            self._counts.update(one.status for one in self._ended)
            self._ended = []
            self._batch_size, self._num_begun = len(split_batch(batch, "")), 0
            total = self._num_before + self._batch_size * self._batches_to_come
            self._num_clips = int(total) if math.isfinite(total) else None  # a stream of clips has no length
            self._batches_to_come -= 1

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count what became of the clips of a batch."""
        if self._view is not None:
            results = outputs if isinstance(outputs, list) else [outputs]
            self._ended = [one for one in results if isinstance(one, ClipResult)]
            self._num_before += self._batch_size
            self._show(self._num_before)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the end, which stays in a notebook; then stop listening, and leave a terminal as it was."""
        self._show(self._num_before)
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close(pl_module)

    def _listen(self, progress: Progress) -> None:
        if progress.stage == "encode" and not progress.done:  # another clip
            self._num_begun += 1
        number = self._num_before + self._num_begun
        self._left = self._clock.read(progress, 0 if self._num_clips is None else max(self._num_clips - number, 0))
        self._show(number, progress)

    def _show(self, number: int, progress: Progress | None = None) -> None:
        counts = self._counts + Counter(one.status for one in self._ended)
        sheets = [one.last_sheet for one in self._writers if one.last_sheet is not None]
        tick = Tick(
            number,
            self._num_clips,
            progress,
            self._left,
            num_skipped=counts["skipped"],
            num_finished=counts["finished"],
            sheet=sheets[0] if sheets else None,
        )
        if self._view is not None:
            self._view.show(tick)

    def _close(self, pl_module: LightningModule) -> None:
        if self._view is not None:
            _listeners(pl_module).remove(self._listen)
            self._ended = []
            view, self._view = self._view, None
            view.close()


def _make_console() -> Console:
    """Make a console of stderr; colors that are wanted of a file (FORCE_COLOR) make no terminal of it."""
    return Console(stderr=True, highlight=False, force_interactive=None if sys.stderr.isatty() else False)


def _listeners(pl_module: LightningModule) -> list[Callable[[Progress], None]]:
    return cast(list[Callable[[Progress], None]], pl_module.progress_listeners)
