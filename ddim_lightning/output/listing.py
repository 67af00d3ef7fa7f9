"""The list of results has one line a clip, and grows with the run."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ddim_lightning.data.ids import RESULTS
from ddim_lightning.output.lock import lock_file
from ddim_lightning.output.place import make_workplace
from ddim_lightning.output.record import dump_record, is_record

EARLIER = "earlier"
"""The key, with the value true, of a record in the list that no clip of the last run has taken up so far."""
_BEGINNING = b'{"schema": '


class ResultList:
    """A `ResultList` is the file ``results.jsonl`` of an output folder: a line a clip.

    Any process of a run may write to it at any time; the file is its own lock. A new record is appended. One that takes
    the place of another makes a new file, which replaces the old one in one step. So the list is true after any end.

    Args:
        output_dir: The output folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / RESULTS
        self._statuses: dict[str, str] = {}
        self._found: set[str] = set()

    def begin(self) -> None:
        """Begin a run: drop what is half or whose folder is gone, and mark the rest as earlier.

        Raises:
            ValueError: When something else wrote the file.
            OSError: When it cannot be read or written, or is no file.
        """
        with lock_file(self.path) as file:
            records = [record for record in _parse(self.path, file.readall()) if self._is_true(record)]
            # Of two clips with one id, of which a run does the first, the one that was done stays.
            records.sort(key=lambda record: record["status"] == "done")
            self._replace({record["id"]: {**record, EARLIER: True} for record in records}.values())
        self.join()

    def join(self) -> None:
        """Take note of what is in the list when the run begins."""
        self._statuses = {record["id"]: record["status"] for record in read_list(self.path)}
        self._found.clear()

    def drop(self, clip_id: str) -> None:
        """Take out the record of a clip whose folder is about to be replaced."""
        if self._statuses.pop(clip_id, None) is not None:
            with lock_file(self.path) as file:
                records = _parse(self.path, file.readall())
                self._replace(record for record in records if record["id"] != clip_id)

    def add(self, record: dict[str, Any]) -> None:
        """Add the record of a clip, in place of an earlier one."""
        self.drop(str(record["id"]))
        line = dump_record(record)
        with lock_file(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(size)  # a full disk takes the first half of a line
                raise

    def keep(self, record: dict[str, Any]) -> None:
        """Keep the record of a clip that was found finished; it is added where the list does not have it."""
        if self._statuses.get(record["id"]) == "done":
            del self._statuses[record["id"]]
            self._found.add(record["id"])
        else:
            self.add(record)

    def end(self) -> None:
        """Sort the list by id, and count to this run what it found finished."""
        with lock_file(self.path) as file:
            records = _parse(self.path, file.readall())
            for record in records:
                if record["id"] in self._found:
                    record.pop(EARLIER, None)
            self._replace(records)

    def _is_true(self, record: Mapping[str, Any]) -> bool:
        return record["status"] == "skipped" or self.path.with_name(record["id"]).is_dir()

    def _replace(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Put a new list, sorted by id, in place of the old one, which the caller has locked."""
        made = make_workplace(self.path.parent) / secrets.token_hex(8)
        ordered = sorted(records, key=lambda record: str(record["id"]))
        try:
            with made.open("xb") as file:
                file.writelines(map(dump_record, ordered))
            made.replace(self.path)
        finally:
            made.unlink(missing_ok=True)


def read_list(path: Path) -> list[dict[str, Any]]:
    """Read the records of a list, also while a run writes to it.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: When there is none.
        ValueError: When something else wrote the file.
    """
    return _parse(path, path.read_bytes())


def _parse(path: Path, content: bytes) -> list[dict[str, Any]]:
    # A line ends with "\n" and nothing else: a prompt may hold what `splitlines` takes for an end.
    *lines, last = content.split(b"\n")
    records = [_parse_line(line) for line in lines if line.strip()]
    unfinished = _parse_line(last)
    if unfinished is not None:
        records.append(unfinished)
    elif not (last.startswith(_BEGINNING) or _BEGINNING.startswith(last)):  # of who was killed, or is writing it
        records.append(None)
    if None in records:
        rule = "must be a list of results, with a record of ours a line"
        raise ValueError(f"output_dir: {path} {rule}, but is not; move it, or choose another output folder")
    return [record for record in records if record is not None]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if is_record(record) else None
