"""What a run made is laid out as the evaluation of a public benchmark looks for it."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ddim_lightning.data.benchmark import Benchmark, BenchmarkEdit, find_place
from ddim_lightning.data.benchmark_config import Layout
from ddim_lightning.data.ids import EVALUATION
from ddim_lightning.data.listing import is_hidden
from ddim_lightning.data.video import read_frames, read_info
from ddim_lightning.output.benchmark_frames import choose_indices, read_masks, read_pictures, resize
from ddim_lightning.output.place import find_disk_fault

Record = Mapping[str, Any]


def write_evaluation(benchmark: Benchmark, folder: Path, records: Mapping[str, Record]) -> list[str]:
    """Write the folder that the evaluation of a benchmark reads, as far as a run has come.

    What is there and not older than the result stays. Nothing is deleted.

    Args:
        benchmark: What was run.
        folder: The output folder of the run.
        records: Of the clips that are done, by their ids.

    Returns:
        Sentences about edits that could not be written: another one has their name, or something else is in the way.

    Raises:
        OSError: If the disk takes no more.
    """
    layout, root = benchmark.config.output, folder / EVALUATION
    if layout is None:
        return []
    notes: list[str] = []
    taken: dict[PurePosixPath, BenchmarkEdit] = {}
    laid_out: list[BenchmarkEdit] = []
    for edit in benchmark.edits:
        if edit.clip not in records:
            continue
        place = find_place(layout, layout.edit, edit)
        if place in taken:
            first = taken[place].origin
            notes.append(f"{edit.origin}: {place} is taken by {first}, which stays; the evaluation knows one")
            continue
        taken[place] = edit
        try:
            _write_edit(layout, root, place, folder, edit, records[edit.clip])
        except (OSError, ValueError) as error:
            if find_disk_fault(error):
                raise
            notes.append(f"{edit.origin}: not laid out: {' '.join(str(error).split())}")
        else:
            laid_out.append(edit)
    if layout.table is not None and laid_out:
        _write_table(root / layout.table, benchmark, laid_out)
    return notes


def _write_edit(
    layout: Layout, root: Path, place: PurePosixPath, folder: Path, edit: BenchmarkEdit, record: Record
) -> None:
    """Write an edit and, where they are asked for, its source and its mask."""
    video, seen = folder / edit.clip / record["files"]["edits"][edit.index], folder / edit.clip / "source.mp4"
    if layout.frames is None:
        _copy(video, root / place.parent / f"{place.name}.mp4")
        return
    count, indices = record["frames"]["count"], choose_indices(record)
    info = read_info(edit.request.video if layout.size == "source" else seen)
    size = (info.width, info.height)

    def read_video(path: Path) -> Iterator[np.ndarray]:
        return (resize(frame.permute(1, 2, 0).numpy(), size) for frame in read_frames(path, range(count)))

    def read_source() -> Iterator[np.ndarray]:
        return read_pictures(edit.request.video, indices) if layout.size == "source" else read_video(seen)

    def write(text: str | None, age: Path, read: Callable[[], Iterator[np.ndarray]]) -> None:
        if text is not None:
            _write_frames(root / find_place(layout, text, edit), layout.frames or "", count, age, read)

    write(layout.edit, video, lambda: read_video(video))
    write(layout.source, seen, read_source)
    if edit.request.mask is not None:
        mask, threshold = edit.request.mask, edit.request.mask_threshold
        write(
            layout.mask,
            seen,
            lambda: (white.astype(np.uint8) * 255 for white in read_masks(mask, indices, threshold, size)),
        )


def _copy(video: Path, place: Path) -> None:
    if not _is_current(place, video):
        place.parent.mkdir(parents=True, exist_ok=True)
        made = place.with_name(f".{os.getpid()}.partial")
        shutil.copy2(video, made)
        made.replace(place)


def _is_current(place: Path, source: Path) -> bool:
    return place.is_file() and place.stat().st_mtime >= source.stat().st_mtime


def _write_frames(place: Path, pattern: str, count: int, age: Path, read: Callable[[], Iterator[np.ndarray]]) -> None:
    """Write a folder of frames, unless it holds as many that are not older than the file they come from."""
    wanted = [place / (pattern % k) for k in range(count)]
    found = {file for file in place.iterdir() if not is_hidden(file)} if place.is_dir() else set()
    if others := sorted(file.name for file in found - {*wanted}):
        raise FileExistsError(f"{place} must hold the frames of this edit alone, got {others[0]}; move it")
    if all(_is_current(file, age) for file in wanted):
        return
    place.mkdir(parents=True, exist_ok=True)
    for file, frame in zip(wanted, read(), strict=True):
        made = place.with_name(f".{os.getpid()}{file.suffix}")
        Image.fromarray(frame).save(made, quality=95)
        made.replace(file)


def _write_table(path: Path, benchmark: Benchmark, edits: list[BenchmarkEdit]) -> None:
    """Write the rows of edits as they stood in their tables."""
    added = {"edit", "table", *benchmark.config.either}
    columns = dict.fromkeys(name for edit in edits for name in edit.row if name not in added)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(columns), extrasaction="ignore")
        table.writeheader()
        table.writerows(edit.row for edit in edits)
