"""What was measured of pairs of videos is written for programs and for spreadsheets."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ddim_lightning.metrics.measures import MEASURES
from ddim_lightning.output.pairs import Pair, Pairs
from ddim_lightning.output.place import make_folder, make_output_dir
from ddim_lightning.report.environment import read_versions
from ddim_lightning.report.numbers import list_measured
from ddim_lightning.report.text import dump_json

JSON, CSV = "metrics.json", "metrics.csv"
_MARK = "ddim-lightning metrics"
"""What a file says made it, so that nobody else's file is replaced."""
_SCHEMA = 1


@dataclass(frozen=True)
class Measured:
    """A `Measured` is what became of a pair.

    Args:
        pair: What was compared.
        numbers: What was measured, by name; see `MEASURES`.
        problems: Sentences about what could not be read or measured.
        notes: Sentences about what was measured otherwise than one would think.
    """

    pair: Pair
    numbers: Mapping[str, float]
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()


def make_result(
    pairs: Pairs, rows: Sequence[Measured], missing: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Say in JSON's types what was measured: the content of ``metrics.json``.

    Args:
        pairs: What had a partner, and what had none.
        rows: What became of the pairs.
        missing: Why measures were not made at all.
        settings: What was asked for.

    Returns:
        The result; the PSNR of equal videos, which is infinite, is ``None``. ``means`` are over the pairs that have a
        number, of reconstructions and of edits by themselves; equal videos, which have no decibels, are left out of
        those of PSNR.
    """
    kinds: dict[str, list[Measured]] = {}
    for row in rows:
        kinds.setdefault(f"mean {row.pair.kind}".strip(), []).append(row)
    return {
        "schema": _SCHEMA,
        "made_by": _MARK,
        "settings": dict(settings),
        "pairs": [_describe(row) for row in rows],
        "means": [{"name": name, "numbers": _average(of_kind)} for name, of_kind in kinds.items()],
        "unpaired": {"reference": pairs.without_video, "videos": pairs.without_reference},
        "not_measured": dict(missing),
        "versions": read_versions(),
    }


def check_measured(folder: Path) -> None:
    """Raise an OSError where results cannot be written, or something else has the name of one."""
    make_output_dir(folder)
    path = folder / JSON
    names = [name for name in (JSON, CSV) if os.path.lexists(folder / name)]
    if names and not (path.is_file() and not path.is_symlink() and _is_ours(path)):
        raise FileExistsError(f"output: {folder / names[0]} is not of metrics; move it, or choose another folder")


def write_measured(result: Mapping[str, Any], folder: Path) -> None:
    """Write ``metrics.json`` and ``metrics.csv``, in place of those of an earlier time.

    Args:
        result: See `make_result`.
        folder: See `check_measured`.

    Raises:
        OSError: When they cannot be written.
    """
    names = list_measured(result["means"])
    with make_folder(folder) as made:
        made.joinpath(JSON).write_text(dump_json(result, 2) + "\n", encoding="utf-8")
        with made.joinpath(CSV).open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            table = csv.writer(file)
            table.writerow(["video", *names])
            for row in [*result["pairs"], *result["means"]]:
                numbers = {name: "inf" if value is None else value for name, value in row["numbers"].items()}
                table.writerow([row["name"], *(numbers.get(name, "") for name in names)])
        for name in (JSON, CSV):
            (made / name).replace(folder / name)


def _describe(row: Measured) -> dict[str, Any]:
    pair = row.pair
    files = {"reference": pair.reference, "video": pair.video, "mask": pair.mask}
    return {
        "name": pair.name,
        **{what: None if path is None else str(path) for what, path in files.items()},
        "latents": None if pair.latents is None else [str(path) for path in pair.latents],
        "prompt": pair.prompt,
        "numbers": {name: None if number == math.inf else number for name, number in row.numbers.items()},
        "problems": list(row.problems),
        "notes": list(row.notes),
    }


def _average(rows: Sequence[Measured]) -> dict[str, float | None]:
    """Average every number that a row has, in the order of `MEASURES`."""
    means: dict[str, float | None] = {}
    for name in (name for measure in MEASURES.values() for name in measure.numbers):
        if values := [row.numbers[name] for row in rows if name in row.numbers]:
            finite = [value for value in values if math.isfinite(value)]
            means[name] = fmean(finite) if finite else None
    return means


def _is_ours(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("made_by") == _MARK
