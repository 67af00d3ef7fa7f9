"""The page of a run is written beside its list of results, from the files on the disk alone."""

from __future__ import annotations

import base64
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ddim_lightning.data.ids import PAGE, RESULTS, SUMMARY, check_id
from ddim_lightning.output.listing import read_list
from ddim_lightning.output.place import check_output_dir, make_folder, read_record
from ddim_lightning.report.benchmark_table import BenchmarkTable, make_benchmark_table
from ddim_lightning.report.cards import Link, ReportedRun
from ddim_lightning.report.page import GENERATOR, make_page
from ddim_lightning.report.text import dump_json

COMPARISON = "compare.html"
"""Name of the page that compares a run with another, in the folder of the first."""


@dataclass(frozen=True)
class Report:
    """The `Report` says which runs a page shows, and what of them is in it.

    Args:
        run: The output folder of a run.
        against: The output folder of another run, which is compared with the first clip by clip.
        output: The file that is written; ``None`` is ``index.html`` in the folder of the run, and for two runs
            ``compare.html`` there. Only a page of ours is replaced.
        embed: Put the videos into the page, so that it can be sent as one file, instead of linking to them.
        json: Print JSON.

    """

    run: str
    against: str | None = None
    output: str | None = None
    embed: bool = False
    json: bool = False


def tell_report(*, report: Report) -> str:
    """Write a page, and say where it is."""
    runs = [run for run in (report.run, report.against) if run is not None]
    path = write_page(runs, report.output, embed=report.embed)
    return dump_json({"report": str(path)}) if report.json else str(path)


def write_page(runs: Sequence[str | Path], output: str | Path | None = None, *, embed: bool = False) -> Path:
    """Write the page of one run, or the page that compares two, and return its path.

    Args:
        runs: The output folders of one or two runs.
        output: The file; see `Report`.
        embed: Whether the videos are put into it.

    Raises:
        FileNotFoundError: When no run into a folder has begun.
        FileExistsError: When something that is no page of ours is in the way.
        ValueError: When something else wrote the list of results.
        OSError: When the page cannot be written.
    """
    folders = [Path(run) for run in runs]
    path = folders[0] / (PAGE if len(folders) == 1 else COMPARISON) if output is None else Path(output)
    _check_replaceable(path)
    shown = [_read_run(folder, path.parent, embed=embed) for folder in folders]
    check_output_dir(path.parent, "output")
    page = make_page(shown, written=datetime.now().astimezone().isoformat(" ", "minutes"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with make_folder(path.parent) as made:
        made.joinpath(PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")
        made.joinpath(PAGE).replace(path)
    return path


def try_to_write_page(output_dir: Path) -> None:
    """Write the page of a run that ends; what goes wrong is a warning, since the results are there without it."""
    try:
        write_page([output_dir])
    except Exception as error:
        again = f"`ddim-lightning report {output_dir}` writes it"
        warnings.warn(f"no report was written: {' '.join(str(error).split())}; {again}", stacklevel=2)


def _read_run(folder: Path, start: Path, *, embed: bool) -> ReportedRun:
    """Read the list of a run; its files are linked to from the folder ``start``."""
    prefix = _find_way(folder, start)

    def link(clip: str, name: str) -> str | None:
        return None if find_file(folder, clip, name) is None else f"{prefix}{quote(clip)}/{quote(name)}"

    def load(clip: str, name: str) -> str | None:
        path = find_file(folder, clip, name)
        return None if path is None else f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"

    def leave_out(clip: str, name: str) -> None:
        """A page that holds its videos is sent elsewhere, where the files are not."""

    video: Link = load if embed else link
    name, links = folder.resolve().name or str(folder), leave_out if embed else link
    return ReportedRun(name, read_records(folder), video, links, _read_benchmark(folder))


def _read_benchmark(folder: Path) -> BenchmarkTable | None:
    """Read what a run came to on a public benchmark, where it was one."""
    try:
        return make_benchmark_table(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def find_file(folder: Path, clip: str, name: str) -> Path | None:
    """Find a file of a clip that a list names; a list may be anybody's: only plain files in folders of clips count."""
    try:
        path = folder / check_id(clip) / name
    except ValueError:
        return None
    plain = Path(name).name == name and not path.is_symlink() and not path.parent.is_symlink()
    return path if plain and path.is_file() else None


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read the list of a run, or the records in the folders of its clips where the list is gone."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return read_list(folder / RESULTS)
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    if not (records := [record for place in places if (record := read_record(place)) is not None]):
        raise FileNotFoundError(f"run: must be the output folder of a run, with its {RESULTS}, got {str(folder)!r}")
    return records


def _find_way(folder: Path, start: Path) -> str:
    """Return what stands before the address of a file in one folder, seen from a page in another."""
    try:
        way = os.path.relpath(folder.resolve(), start.resolve())
    except ValueError:  # another drive of Windows
        return f"{folder.resolve().as_uri()}/"
    return "" if way == os.curdir else f"{quote(Path(way).as_posix())}/"


def _check_replaceable(path: Path) -> None:
    """Raise a FileExistsError where something that is no page of ours has its name."""
    if not os.path.lexists(path):
        return
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            if GENERATOR.encode() in file.read(1024):
                return
    raise FileExistsError(f"output: {path} is no page that report wrote; move it, or choose another file")
