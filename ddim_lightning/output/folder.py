"""The output folder of a run is its folder alone while the run is at work, and says what became of every clip."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ddim_lightning.data.ids import RESULTS
from ddim_lightning.output.clip_folder import write_clip
from ddim_lightning.output.listing import EARLIER, ResultList, read_list
from ddim_lightning.output.lock import RunLock
from ddim_lightning.output.page import try_to_write_page
from ddim_lightning.output.place import (
    WORKPLACE,
    DiskError,
    check_replaceable,
    find_disk_fault,
    get_place,
    is_whole,
    make_output_dir,
    read_record,
)
from ddim_lightning.output.record import SCHEMA
from ddim_lightning.types import ClipResult


class RunFolder:
    """A `RunFolder` is the output folder of a run, as one of its processes sees it.

    Args:
        output_dir: The folder.
        sheets: Whether to draw contact sheets.
        overwrite: Whether to do clips again that are finished.
    """

    def __init__(self, output_dir: str | Path, *, sheets: bool = True, overwrite: bool = False) -> None:
        self.path = Path(output_dir)
        self.sheets, self.overwrite = sheets, overwrite
        self._lock = RunLock(self.path)
        self._list = ResultList(self.path)
        self._taken: set[str] = set()

    def begin(self, clip_ids: Iterable[str] = ()) -> None:
        """Begin the run in its first process: lock the folder, and clear away what a run that was stopped left.

        Args:
            clip_ids: The ids that are known beforehand.

        Raises:
            OSError: When the folder cannot be made or written to, another run is at work in it, a folder that is no
                result of ours has the name of a clip, or something else has the names of all clips.
            ValueError: When something else wrote ``results.jsonl``, or no id can be the name of a folder.
        """
        make_output_dir(self.path)
        self._check_places(clip_ids)
        self._lock.begin()
        try:
            for left in (self.path / WORKPLACE).iterdir():
                if left.name != self._lock.path.name:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            self._list.begin()
        except BaseException:
            self._release(alone=True)
            raise

    def join(self) -> None:
        """Join the run in another process; ``Raises`` as `begin`."""
        make_output_dir(self.path)
        self._lock.join()
        self._list.join()

    def find(self, clip_id: str, fingerprint: Mapping[str, str]) -> bool:
        """Whether a clip was finished by an earlier run.

        Args:
            clip_id: The clip's id.
            fingerprint: What its result depends on.

        Raises:
            ValueError: When the id cannot be the name of a folder, or an earlier clip of this process has it.
            OSError: When the clip is not finished, and its folder could not take its place.
        """
        place = self._check(clip_id)
        record = read_record(place)
        if record is not None and not self.overwrite and record["schema"] == SCHEMA and fingerprint:
            wanted = not self.sheets or "sheet" in record["files"]
            if record.get("fingerprint") == fingerprint and wanted and is_whole(place, record):
                return True
        check_replaceable(place)
        return False

    def write(self, result: ClipResult) -> dict[str, Any]:
        """Write the result of a clip, or keep the one that was found finished; return the record.

        Args:
            result: The clip and what became of it.

        Raises:
            DiskError: When the disk takes no more.
            ValueError: When the clip's id will not do; see also `write_clip`.
            OSError: When its folder cannot be put in its place.
        """
        try:
            if result.status == "finished":
                return self._keep(result.clip.id)
            place = None if result.status == "skipped" else self._check(result.clip.id)
            drop = partial(self._list.drop, result.clip.id)
            record = write_clip(result, self.path, sheets=self.sheets, before_placing=drop)
            self._list.add(record)
        except Exception as error:
            if (why := find_disk_fault(error)) is None:
                raise
            raise DiskError(f"output_dir: must take what a run writes, got {str(self.path)!r}: {why}") from error
        if place is not None:
            self._taken.add(place.name.casefold())
        return record

    def end(self, *, alone: bool) -> None:
        """Sort the list, write the page and let the folder go; does nothing where the run never began.

        Args:
            alone: Whether no other process of the run is at work any more; if one is, no page is written yet.

        Raises:
            OSError: When the list cannot be written.
        """
        if not self._lock.is_held:
            return
        try:
            self._list.end()
            if alone:
                try_to_write_page(self.path)
        finally:
            self._release(alone=alone)

    def _release(self, *, alone: bool) -> None:
        if alone:
            shutil.rmtree(self.path / WORKPLACE, ignore_errors=True)
        self._lock.release()
        self._taken.clear()

    def _keep(self, clip_id: str) -> dict[str, Any]:
        place = self._check(clip_id)
        record = read_record(place)
        if record is None:
            raise FileNotFoundError(f"output_dir: {place} must stay while a run is at work, but is gone")
        self._list.keep(record)
        self._taken.add(place.name.casefold())
        return record

    def _check(self, clip_id: str) -> Path:
        place = get_place(self.path, clip_id)
        if place.name.casefold() in self._taken:  # not all file systems tell upper case from lower
            raise ValueError(f"id: must be unique within a run, got {clip_id!r} again")
        return place

    def _check_places(self, clip_ids: Iterable[str]) -> None:
        """Raise where a folder of the user's has the name of a clip, or nothing could be written at all."""
        blocked, num_free = None, 0
        for clip_id in clip_ids:
            try:
                get_place(self.path, clip_id)
                num_free += 1
            except FileExistsError:
                raise
            except (OSError, ValueError) as error:  # this clip alone is lost
                blocked = error
        if blocked is not None and not num_free:
            raise blocked


def read_results(output_dir: str | Path, *, earlier: bool = False) -> list[dict[str, Any]]:
    """Read the records of the last run into a folder: what it did, found finished, and skipped.

    Args:
        output_dir: The folder a `VideoWriter` wrote to.
        earlier: Also read the records of earlier runs that the last one had no part in, or did not come to. They have
            a key ``earlier``.

    Returns:
        One record a clip, sorted by id when the run has ended; the other keys are those of ``result.json``.

    Raises:
        FileNotFoundError: When no run into this folder has begun.
        ValueError: When something else wrote ``results.jsonl``.
    """
    return [record for record in read_list(Path(output_dir, RESULTS)) if earlier or EARLIER not in record]
