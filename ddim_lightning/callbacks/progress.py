"""A callback shows the progress of `Trainer.predict` to a person."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ddim_lightning.engine.batch_forms import split_batch
from ddim_lightning.report.text import make_plain
from ddim_lightning.types import Progress

_LINE_EVERY_S = 10.0


class ProgressPrinter(Callback):
    """`ProgressPrinter` shows clip, stage, step and time left on stderr: a live bar on a terminal, lines elsewhere.

    It replaces Lightning's own bar, which counts clips alone; give the Trainer ``enable_progress_bar=False``. With
    several processes the first one speaks, of its own share of the clips. With a module that has no
    ``progress_listeners`` it warns, and shows nothing.

    Args:
        console: Where to print; stderr when it is ``None``.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._view: _Bar | _Lines | None = None
        self._clock: ClipClock | None = None
        self._num_batches = self._num_begun = self._num_clips = 0
        """Batches to come and at work; clips begun; clips in all, if all batches are as large as the one at work."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to listen to the module."""
        if not trainer.is_global_zero:
            return
        if not hasattr(pl_module, "progress_listeners"):
            name = type(pl_module).__name__
            warnings.warn(f"ProgressPrinter shows nothing: {name} has no `progress_listeners`", stacklevel=2)
            return
        console = self._console or Console(stderr=True, highlight=False)
        self._view = make_view(console)
        self._num_batches, self._num_begun = int(sum(trainer.num_predict_batches)), 0
        _listeners(pl_module).append(self._listen)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the clips of a batch, and start the clock of its first one."""
        if self._view is not None:
            size = len(split_batch(batch, ""))
            self._num_clips = self._num_begun + size * self._num_batches
            self._num_batches -= 1
            self._clock = None

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening, and leave the terminal as it was."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close(pl_module)

    def _listen(self, progress: Progress) -> None:
        if self._view is None:
            return
        if self._clock is None or (progress.stage == "encode" and not progress.done):  # another clip
            self._clock = ClipClock(self._num_begun, self._num_clips)
            self._num_begun += 1
        self._view.show(self._clock.read(progress))

    def _close(self, pl_module: LightningModule) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None
            _listeners(pl_module).remove(self._listen)


def _listeners(pl_module: LightningModule) -> list[Callable[[Progress], None]]:
    return cast(list[Callable[[Progress], None]], pl_module.progress_listeners)


@dataclass(frozen=True)
class Tick:
    """A `Tick` is what is shown of one `Progress`.

    Args:
        clip: The clip's id.
        clip_number: Position of the clip in this process' share, from 1.
        num_clips: Clips of this process.
        label: The stage as a person reads it.
        done: Steps of the stage done.
        total: Steps of the stage.
        left_s: Seconds until the last clip is done; ``None`` while nothing is known.
    """

    clip: str
    clip_number: int
    num_clips: int
    label: str
    done: int
    total: int
    left_s: float | None = None


class ClipClock:
    """A `ClipClock` estimates the time left from the ticks of one clip.

    Work is counted in function evaluations (NFE), and one to come is taken to last as long as those so far did; a clip
    to come as long as this one.

    Args:
        index: Position of the clip, from 0.
        num_clips: How many clips there are.
        now: Reads a clock, in seconds.
    """

    def __init__(self, index: int, num_clips: int, now: Callable[[], float] = time.monotonic) -> None:
        self._index, self._num_clips, self._now = index, num_clips, now
        self._began = now()
        self._nfe_began: float | None = None
        self._nfe = 0.0

    def read(self, progress: Progress) -> Tick:
        """Take in one tick.

        Args:
            progress: The tick; those of a clip arrive in order.

        Returns:
            What to show.
        """
        now = self._now()
        to_do = progress.nfe * (progress.total - progress.done) + progress.nfe_left
        if self._nfe_began is None and progress.nfe:
            self._nfe_began, self._nfe = now, to_do
        left_s = None
        if self._nfe_began is not None and to_do < self._nfe:
            left_s = (now - self._nfe_began) * to_do / (self._nfe - to_do)
            left_s += (now - self._began + left_s) * (self._num_clips - self._index - 1)
        label, done, total = progress.label, progress.done, progress.total
        label += f" ({progress.windows} windows)" if progress.windows > 1 else ""
        return Tick(progress.clip_id, self._index + 1, self._num_clips, label, done, total, left_s)


def make_view(console: Console) -> _Bar | _Lines:
    """Make what shows ticks: a live bar on a terminal, lines elsewhere."""
    return _Bar(console) if console.is_terminal else _Lines(console)


class _Bar:
    """A `_Bar` is a live bar at the bottom of a terminal."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            _ClipColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID = self._bars.add_task("starting", left="", tick=None)
        self._bars.start()

    def show(self, tick: Tick) -> None:
        left = _say_left(tick.left_s)
        self._bars.update(self._task, completed=tick.done, total=tick.total, left=left, tick=tick)

    def close(self) -> None:
        self._bars.stop()


class _ClipColumn(ProgressColumn):
    """A `_ClipColumn` says which clip is worked on; its id is no markup."""

    def render(self, task: Task) -> Text:
        tick: Tick | None = task.fields["tick"]
        if tick is None:
            return Text(task.description)
        clip = (make_plain(tick.clip), "bold")
        return Text.assemble(f"clip {tick.clip_number}/{tick.num_clips}  ", clip, f"  {tick.label}")


class _Lines:
    """`_Lines` prints a line when a stage ends, and every ten seconds in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def show(self, tick: Tick) -> None:
        now = time.monotonic()
        if tick.done < tick.total and now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        clip = make_plain(tick.clip)
        line = f"clip {tick.clip_number}/{tick.num_clips} {clip}: {tick.label} {tick.done}/{tick.total}"
        self._console.print(f"{line} {_say_left(tick.left_s)}".rstrip(), markup=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        pass


def _say_left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"
