"""Rows of a benchmark are kept, so that it may be stopped and started again, and its tables get intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_FILE = "records-{}.jsonl"


class Records:
    """`Records` are rows of a resumable benchmark: one JSON line per key, appended as soon as it is measured.

    A second start reads what is there, so that only what is missing is measured. A last line that was cut off by a
    kill is dropped, and its row is measured again. One process writes a file; several share the work by a file each.

    Args:
        path: The file, JSON lines; made with its folder where it is not there.
        settings: What every row of the file was measured with, JSON-ready; the file's first line.

    Raises:
        ValueError: The file holds rows of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        lines = _read_whole_lines(path) or [dump_json({"settings": settings})]
        self._rows = _parse(path, lines, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a row.

        Args:
            key: Names the row; not in the file yet.
            row: JSON-ready; infinity is written as null.

        Raises:
            ValueError: A key that is there, or a row that holds NaN.
        """
        if key in self._rows:
            raise ValueError(f"key: must be new to {self.path}, got {key!r}")
        line = dump_json({"key": key, "row": row})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._rows[key] = json.loads(line)["row"]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return all rows by key, in the order they were measured."""
        return dict(self._rows)


def open_records(folder: Path, settings: Mapping[str, Any], shard: int = 0) -> Records:
    """Open the file of one process of a benchmark."""
    return Records(folder / _FILE.format(shard), settings)


def merge_records(folder: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of all processes of a benchmark, sorted by key; reads only, so that they may go on writing.

    Raises:
        ValueError: A file of the folder holds rows of other settings.
    """
    merged: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(_FILE.format("*"))):
        merged |= _parse(path, _read_whole_lines(path), settings)
    return dict(sorted(merged.items()))


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``k/n``: process k, 0 .. n - 1, of n.

    Raises:
        ValueError: Anything else.
    """
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise ValueError(f"shard: must be k/n with 0 <= k < n, got {text!r}")
    return int(k), int(n)


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Return the mean and its bootstrap interval: the quantiles of the means of resampled values.

    Args:
        values: One number per clip, at least one.
        confidence: Share of the resampled means inside the interval, 0 .. 1.
        seed: Of the resampling.
        draws: How often the values are resampled.

    Returns:
        Mean, lower end, upper end.

    Source: Efron 1979, "Bootstrap methods"; the percentile interval.
    """
    numbers = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(numbers), (draws, len(numbers)), generator=generator)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = numbers[chosen].mean(dim=1).quantile(ends).tolist()
    return float(numbers.mean()), low, high


def _read_whole_lines(path: Path) -> list[str]:
    """Return the lines that end in a newline; a killed process leaves one that does not."""
    if not path.exists():
        return []
    return [line.removesuffix("\n") for line in path.open(encoding="utf-8") if line.endswith("\n")]


def _parse(path: Path, lines: Sequence[str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of a file by key, after its first line is seen to hold the settings."""
    if not lines:
        return {}
    found, wanted = json.loads(lines[0])["settings"], json.loads(dump_json(settings))
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if names:
        apart = "; ".join(f"{name} is {found.get(name)!r} there, got {wanted.get(name)!r}" for name in names)
        raise ValueError(f"settings: must be those of {path}: {apart}")
    rows = (json.loads(line) for line in lines[1:])
    return {row["key"]: row["row"] for row in rows}


def dump_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, infinity as null, which is all JSON has for it.

    Raises:
        ValueError: The value holds NaN: something went wrong before.
    """
    return json.dumps(_prepare(value), indent=indent, allow_nan=False)


def _prepare(value: Any, name: str = "value") -> Any:
    """Replace infinity by null and refuse NaN by the name of its place."""
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError(f"{name}: must be a number, got NaN")
        return None if math.isinf(value) else value
    if isinstance(value, Mapping):
        return {key: _prepare(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_prepare(part, name) for part in value]
    return value
