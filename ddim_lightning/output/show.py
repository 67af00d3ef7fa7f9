"""What a run made is shown in a notebook: sheets, videos and numbers, from results in memory or from the folder."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ddim_lightning.output.clip_folder import fill_folder
from ddim_lightning.output.page import find_file, read_records
from ddim_lightning.output.place import read_record
from ddim_lightning.output.record import make_record
from ddim_lightning.report.cards import ReportedRun
from ddim_lightning.report.cell import make_cell
from ddim_lightning.report.text import make_plain
from ddim_lightning.types import Clip, ClipResult

EMBED_MOST = 4 * 2**20
"""Bytes of the largest file that is put into a notebook."""
_KINDS = {".mp4": "video/mp4", ".png": "image/png"}


@dataclass(frozen=True)
class Shown:
    """A `Shown` is clips to look at: with sheets, videos and numbers in a notebook, a line each on a console.

    Args:
        records: As in ``result.json``.
        num_more: Clips that are left out.
        folder: The output folder that they are from; ``None`` for results in memory.
        results: These.
    """

    records: Sequence[dict[str, Any]]
    num_more: int = 0
    folder: Path | None = None
    results: Sequence[ClipResult] = field(default=(), repr=False)

    def __repr__(self) -> str:
        """Say a line a clip."""
        more = [f"and {self.num_more} more"] if self.num_more else []
        return "\n".join([*map(self._describe, self.records), *more])

    def _repr_html_(self) -> str:
        """Show sheets, videos and numbers; notebooks call it."""
        if self.folder is not None:
            find = partial(_link, self.folder)
            return make_cell([ReportedRun("", [one], find, find) for one in self.records], num_more=self.num_more)
        with tempfile.TemporaryDirectory() as folder:
            clips = [_write(result, Path(folder, str(k))) for k, result in enumerate(self.results)]
            return make_cell(clips, num_more=self.num_more, missing="too large for a notebook: a VideoWriter writes it")

    def _describe(self, record: dict[str, Any]) -> str:
        line = f"{record['id']}: {record['status']}" + (f": {record['reason']}" if record.get("reason") else "")
        sheet = record["files"].get("sheet")
        line += f", {Path(self.folder, record['id'], sheet)}" if self.folder is not None and sheet else ""
        return make_plain(line)


def show(what: ClipResult | Sequence[Any] | str | os.PathLike[str], *, most: int = 4) -> Shown:
    """Show what a run made: as the last line of a notebook's cell, its contact sheets, videos and numbers.

    Files of up to 4 MiB become part of the notebook, larger ones are linked to.

    Args:
        what: A result of `DDIMInversionModule.predict_step`, or what ``Trainer.predict`` returned; an output folder, or
            the folder of a clip in it.
        most: Show so many clips at most, >= 1.

    Raises:
        TypeError: Something else.
        ValueError: ``most`` out of its range.
        FileNotFoundError: When no run into the folder has begun.
    """
    if most < 1:
        raise ValueError(f"most: must be >= 1, got {most}")
    if isinstance(what, str | os.PathLike):
        folder = Path(what)
        if (record := read_record(folder.absolute())) is not None:
            return Shown([record], 0, folder.absolute().parent)
        records = read_records(folder)
        return Shown(records[:most], max(len(records) - most, 0), folder)
    results = list(_flatten(what))
    records = [make_record(result, {}) for result in results[:most]]
    return Shown(records, max(len(results) - most, 0), results=results[:most])


def _flatten(what: object) -> Iterator[ClipResult]:
    """All results in lists of lists, as a Trainer returns them of batches and of several loaders."""
    if isinstance(what, ClipResult):
        yield what
    elif isinstance(what, list | tuple):
        for one in what:
            yield from _flatten(one)
    else:
        raise TypeError(f"what: must be a ClipResult, a list of them or an output folder, got a {type(what).__name__}")


def _write(result: ClipResult, folder: Path) -> ReportedRun:
    """Write a clip as a run does; one that was not done has nothing to write."""
    folder.mkdir()
    if result.status == "done" and isinstance(result.clip, Clip):
        record = fill_folder(replace(result, trajectory=None), result.clip, folder)
    else:
        record = make_record(result, {})

    def find(clip: str, name: str) -> str | None:
        return _embed(folder / name)

    return ReportedRun("", [record], find, find)


def _link(folder: Path, clip: str, name: str) -> str | None:
    """Give a small file of a run itself, or say where a large one is, as the page of a notebook sees it."""
    path, here = find_file(folder, clip, name), Path.cwd()
    if path is None or path.suffix not in _KINDS:
        return None
    whole = path.resolve()
    where = quote(whole.relative_to(here).as_posix()) if whole.is_relative_to(here) else whole.as_uri()
    return _embed(path) or where


def _embed(path: Path) -> str | None:
    """Give a file as a data URL; ``None`` where it is no video, no picture or large."""
    if path.suffix not in _KINDS or path.stat().st_size > EMBED_MOST:
        return None
    return f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
