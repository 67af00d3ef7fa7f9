"""Progress is shown live on a terminal, in one line of a notebook, and in a line now and then elsewhere."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ddim_lightning.report.run_clock import TimeLeft, count_nfe_left
from ddim_lightning.report.text import make_plain
from ddim_lightning.types import Progress

LINE_EVERY_S = 10.0
"""The least time between two lines."""
_UPDATE_EVERY_S = 0.5
_NARROWEST_BAR, _WIDEST_BAR = 8, 40


@dataclass(frozen=True)
class Tick:
    """A `Tick` is what is shown at one moment of a run.

    Args:
        clip_number: Position of the clip in this process' share, from 1.
        num_clips: Clips of this process; ``None`` where its data module does not say.
        progress: What is done to the clip; ``None`` between clips.
        left: How long the clips take yet; of clips without a number, this one alone.
        num_skipped: Clips that failed so far.
        num_finished: Clips so far that an earlier run finished.
        sheet: The contact sheet that was written last.
    """

    clip_number: int
    num_clips: int | None
    progress: Progress | None = None
    left: TimeLeft | None = None
    num_skipped: int = 0
    num_finished: int = 0
    sheet: Path | None = None


class View(Protocol):
    """A `View` shows ticks until it is closed."""

    def show(self, tick: Tick) -> None:
        """Show one tick."""
        ...

    def close(self) -> None:
        """Leave the place as it was."""
        ...


def make_view(console: Console, print_above: Callable[[str], None] | None = None) -> View:
    """Make what shows ticks: a live display on a terminal, a line that changes in a notebook, and lines elsewhere.

    Args:
        console: Where to show them.
        print_above: Prints a line above a bar that somebody else draws on the terminal, which gets lines then.
    """
    if console.is_jupyter:
        return _Cell()
    if not console.is_interactive:  # nor is a terminal that cannot move its cursor
        return _Lines(lambda line: console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True))
    return _Display(console) if print_above is None else _Lines(print_above)


class _Display:
    """A `_Display` is drawn at the bottom of a terminal, and goes away when it is closed."""

    def __init__(self, console: Console) -> None:
        self._tick: Tick | None = None
        self._shown_at = 0.0
        self._live = Live(console=console, transient=True, get_renderable=self._render)
        self._live.start()

    def show(self, tick: Tick) -> None:
        self._tick, self._shown_at = tick, time.monotonic()

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        """Draw the last tick; between ticks its time runs down."""
        return "" if self._tick is None else Drawing(self._tick, time.monotonic() - self._shown_at)


class _Cell:
    """A `_Cell` is one output of a notebook's cell, a line that changes."""

    def __init__(self) -> None:
        display = importlib.import_module("IPython.display").display  # it is there where rich finds a notebook
        self._handle: Any = display({"text/plain": "starting"}, raw=True, display_id=True)
        self._line = ""
        self._updated_at = 0.0

    def show(self, tick: Tick) -> None:
        self._line = make_line(tick)
        if time.monotonic() - self._updated_at >= _UPDATE_EVERY_S:
            self._update()

    def close(self) -> None:
        self._update()

    def _update(self) -> None:
        self._updated_at = time.monotonic()
        self._handle.update({"text/plain": self._line}, raw=True)


class _Lines:
    """`_Lines` are printed when the first clip begins, and then at most every ten seconds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last, self._has_written = time.monotonic(), False
        self._sheet: Path | None = None

    def show(self, tick: Tick) -> None:
        now = time.monotonic()
        begins = tick.progress is not None and not self._has_written
        if now - self._last < LINE_EVERY_S and not begins:
            return
        self._write(make_line(tick, with_sheet=tick.sheet != self._sheet))
        self._last, self._has_written, self._sheet = now, True, tick.sheet

    def close(self) -> None:
        pass


def make_line(tick: Tick, *, with_sheet: bool = True) -> str:
    """Say a tick in one line, whose texts from outside cannot steer a terminal.

    Args:
        tick: The tick.
        with_sheet: Whether the sheet is told.
    """
    line = _say_clip(tick)
    if tick.progress is not None:
        parts = [_say_stage(tick.progress), *_say_left(tick)]
        line += f" {make_plain(tick.progress.clip_id)}: {', '.join(parts)}"
    sheet = [f"last sheet {make_plain(str(tick.sheet))}"] if with_sheet and tick.sheet else []
    return "; ".join([line, *_say_counts(tick), *sheet])


@dataclass(frozen=True)
class Drawing:
    """A `Drawing` of a tick fits any width: what has no room is cut, a path in front.

    Args:
        tick: The tick.
        age_s: How old it is; so many seconds fewer are left.
    """

    tick: Tick
    age_s: float = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw clip, stage, what is left and the last sheet, a line each."""
        tick, width = self.tick, options.max_width
        clip, counts = f"{_say_clip(tick)}  ", "".join(f"  {count}" for count in _say_counts(tick))
        name = make_plain(tick.progress.clip_id) if tick.progress is not None else ""
        room = max(width - cell_len(clip) - cell_len(counts), _NARROWEST_BAR)
        line = Text.assemble(clip, (_cut_end(name, room), "bold"), (counts, "yellow"))
        yield _cut(line, width)
        if tick.progress is not None:
            yield self._draw_stage(tick.progress, width)
        if left := _say_left(tick, self.age_s):
            yield _cut(Text(", ".join(left), "cyan"), width)
        if tick.sheet is not None:
            link = Style(dim=True, link=tick.sheet.absolute().as_uri())
            title = "last sheet  "
            yield _cut(Text.assemble(title, (_cut_front(make_plain(str(tick.sheet)), width - len(title)), link)), width)

    def _draw_stage(self, progress: Progress, width: int) -> RenderableType:
        stage = _cut(Text(_say_stage(progress)), width)
        room = width - stage.cell_len - 2
        if room < _NARROWEST_BAR:
            return stage
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_row(stage, ProgressBar(progress.total, progress.done, width=min(room, _WIDEST_BAR)))
        return row


def _say_clip(tick: Tick) -> str:
    return f"clip {tick.clip_number}" + ("" if tick.num_clips is None else f"/{tick.num_clips}")


def _say_counts(tick: Tick) -> list[str]:
    counts = {"skipped": tick.num_skipped, "finished before": tick.num_finished}
    return [f"{count} {what}" for what, count in counts.items() if count]


def _say_stage(progress: Progress) -> str:
    windows = f" ({progress.windows} windows)" if progress.windows > 1 else ""
    return f"{progress.label}{windows} {progress.done}/{progress.total}"


def _say_left(tick: Tick, age_s: float = 0.0) -> list[str]:
    """Say the function evaluations that are left of the clip, and the time that is left of the run."""
    said = [] if tick.progress is None else [f"{round(count_nfe_left(tick.progress))} NFE left"]
    if tick.left is not None:
        at_least = "over " if tick.left.is_least else ""
        where = " of this clip" if tick.num_clips is None else " in all"
        said.append(f"{at_least}{_say_time(max(tick.left.seconds - age_s, 0.0))} left{where}")
    return said


def _say_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _cut(line: Text, width: int) -> Text:
    line.truncate(width)
    line.no_wrap = True
    return line


def _cut_end(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, max(width - 3, 0))}..."


def _cut_front(text: str, width: int) -> str:
    return _cut_end(text[::-1], width)[::-1]
