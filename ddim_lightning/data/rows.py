"""Tables are read row by row: CSV, JSON lines, or one JSON list."""

from __future__ import annotations

import csv
import io
import json
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddim_lightning.data.files import check_regular

SHORT = reprlib.Repr()
"""Shows what was got instead, however long or deep it is."""
SHORT.maxstring = SHORT.maxother = 80

Row = dict[str, Any]
"""The cells of a row that hold something, by column."""


def read_rows(path: Path, check: Callable[[str, list[str]], None]) -> Iterator[tuple[str, Row]]:
    """Read the rows of a table in UTF-8, one at a time.

    Args:
        path: ``.csv`` with a header; ``.json``, a list of objects; anything else is JSONL, with an object a line.
        check: Looks at where columns are named and at the columns: once in CSV, else for every row.

    Yields:
        Where the row stands, for messages, and its cells; empty cells of CSV and ``null`` are left out. The header of a
        CSV is row 1, as in a spreadsheet; the rows of a JSONL are its lines.

    Raises:
        OSError: If the table is missing or a folder; always the exact subclass.
        ValueError: If it is no such table, names a column twice, or has no row.
    """
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text: {error.reason} at byte {error.start}") from error
    readers = {".csv": _read_csv, ".json": _read_json}
    empty = True
    for origin, row in readers.get(path.suffix.lower(), _read_jsonl)(path, text, check):
        empty = False
        yield origin, row
    if empty:
        raise ValueError(f"{path} must have at least one row")


def _read_csv(path: Path, text: str, check: Callable[[str, list[str]], None]) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        table = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: must be CSV, got a mistake in it: {error}") from error
    columns = [name.strip() for name in table[0]] if table else []
    check(f"{path} row 1", columns)
    for name in columns:
        if name and columns.count(name) > 1:  # sheets have empty columns
            raise ValueError(f"{path} row 1, column {name}: must appear once, got {columns.count(name)}")
    for number, cells in enumerate(table[1:], start=2):
        if not cells:
            continue
        if len(cells) != len(columns):
            got = f"{len(cells)} (quote cells that contain commas)"
            raise ValueError(f"{path} row {number}: must have {len(columns)} cells, got {got}")
        yield (
            f"{path} row {number}",
            {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if cell.strip()},
        )


def _read_jsonl(path: Path, text: str, check: Callable[[str, list[str]], None]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            origin = f"{path} row {number}"
            yield origin, _take_object(origin, _parse(origin, line, "one JSON object"), check)


def _read_json(path: Path, text: str, check: Callable[[str, list[str]], None]) -> Iterator[tuple[str, Row]]:
    entries = _parse(str(path), text, "a JSON list of objects")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: must be a JSON list of objects, got {SHORT.repr(entries)}")
    for number, entry in enumerate(entries, start=1):
        origin = f"{path} entry {number}"
        yield origin, _take_object(origin, entry, check)


def _parse(origin: str, text: str, rule: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{origin}: must be {rule} ({error.msg} at character {error.pos})") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of more digits than Python reads
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise ValueError(f"{origin}: must be {rule} that can be read ({why})") from None


def _take_object(origin: str, row: object, check: Callable[[str, list[str]], None]) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{origin}: must be one JSON object, got {json.dumps(row, ensure_ascii=False)[:80]}")
    check(origin, list(row))
    return {name: value for name, value in row.items() if value is not None}
