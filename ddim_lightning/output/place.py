"""A clip's folder takes its place in the output folder only where nothing stands, or an earlier result of ours."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddim_lightning.data.ids import check_id
from ddim_lightning.output.record import is_record

WORKPLACE = ".ddim_lightning"
"""The folder inside the output folder for what is not finished; whatever is in it is ours."""
_RECORD = "result.json"
_DISK_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
_IN_TEXT = re.compile(r"\(os error ([0-9]+)\)")  # safetensors raises no OSError, and tells its number in the message


class DiskError(OSError):
    """A `DiskError` says that the output folder takes nothing more, so that a run cannot go on."""


def make_output_dir(output_dir: str | Path) -> Path:
    """Make a folder, with its parents, and see that files can be written into it.

    Args:
        output_dir: The folder; may be there already.

    Returns:
        Its path.

    Raises:
        OSError: When it cannot be made, is not a folder, or cannot be written to.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        rule = f"output_dir: must be a folder that can be written to, got {str(folder)!r}"
        raise type(error)(f"{rule}: {error.strerror}") from error
    return folder


def check_output_dir(output_dir: str | Path, name: str = "output_dir") -> None:
    """Raise an OSError for an output folder that could not be made or written to; nothing is made.

    Args:
        output_dir: The folder.
        name: Of the argument.
    """
    folder = Path(output_dir).absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise NotADirectoryError(f"{name}: must be a folder that can be written to, got {str(output_dir)!r}")


def make_workplace(output_dir: Path) -> Path:
    """Make the folder for what is not finished.

    Raises:
        OSError: When it cannot be made; a `NotADirectoryError` when a file or a link has its name.
    """
    folder = output_dir / WORKPLACE
    with suppress(FileExistsError):
        folder.mkdir()
    if folder.is_symlink() or not folder.is_dir():
        raise NotADirectoryError(f"output_dir: {folder} is for what is not finished; it must be a folder and no link")
    return folder


def get_place(output_dir: Path, clip_id: str) -> Path:
    """Return where the folder of a clip is or will be, if it may be there.

    Args:
        output_dir: The output folder.
        clip_id: The clip's id, whoever made it.

    Raises:
        ValueError: When the id cannot be the name of a folder.
        NotADirectoryError: When a file or a link has this name.
        FileExistsError: When a folder of this name holds no result of ours.
    """
    try:
        folder = output_dir / check_id(clip_id)
    except ValueError as error:
        raise ValueError(f"id: {error}, got {clip_id!r}") from None
    if not os.path.lexists(folder):
        return folder
    what = f"output_dir: {folder} must be free for the clip of this name, but is"
    if folder.is_symlink() or not folder.is_dir():
        raise NotADirectoryError(f"{what} no folder; move it, or choose another output folder")
    if read_record(folder) is None:
        raise FileExistsError(f"{what} a folder that no run made; move it, or choose another output folder")
    return folder


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record in a clip's folder; ``None`` unless the folder is a result of ours under its own name."""
    path = folder / _RECORD
    try:
        if folder.is_symlink() or path.is_symlink() or not path.is_file():
            return None
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if is_record(record) and record["id"] == folder.name else None


def is_whole(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether all files that a record names are in its folder, none of them empty."""
    paths = [folder / name for name in _list_files(record)]
    return all(path.is_file() and not path.is_symlink() and path.stat().st_size > 0 for path in paths)


def check_replaceable(folder: Path) -> None:
    """Raise a FileExistsError where something that no run wrote lies in the folder of an earlier result."""
    record = read_record(folder)
    if record is None:  # nothing is there
        return
    ours = {_RECORD, *_list_files(record)}
    if others := sorted(name for name in os.listdir(folder) if name not in ours):
        raise FileExistsError(f"output_dir: {folder} must be done again, but holds {others[0]!r}, which no run wrote")


@contextmanager
def make_folder(output_dir: Path) -> Iterator[Path]:
    """Make a folder to fill, out of sight, which is removed afterwards unless it was put in its place.

    Args:
        output_dir: The output folder.

    Yields:
        The folder, empty.

    Raises:
        DiskError: When it cannot be made.
    """
    try:
        workplace = make_workplace(output_dir)
        folder = workplace / secrets.token_hex(8)
        folder.mkdir()
    except OSError as error:
        raise DiskError(
            f"output_dir: must take new files, got {str(output_dir)!r}: {error.strerror or error}"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # the lock of a run is in it, or another process' work
            workplace.rmdir()


def put_in_place(made: Path, place: Path, before: Callable[[], None] = lambda: None) -> None:
    """Give a folder that is whole its name; an earlier result of ours under this name goes.

    Args:
        made: The folder, from `make_folder`.
        place: From `get_place`.
        before: Called when nothing stands in the way any more.

    Raises:
        OSError: When something else stands there.
    """
    check_replaceable(get_place(place.parent, place.name))
    before()
    old = made.with_name(secrets.token_hex(8))
    if os.path.lexists(place):
        place.rename(old)  # to rename is one step, to delete is many
    made.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def find_disk_fault(error: BaseException) -> str | None:
    """Return why the disk takes no more, where that is what an error, or an error behind it, says; else ``None``."""
    behind: BaseException | None = error
    while behind is not None:
        number = behind.errno if isinstance(behind, OSError) else None
        if found := _IN_TEXT.search(str(behind)):
            number = int(found[1])
        if number in _DISK_FAULTS:
            return os.strerror(number)
        behind = behind.__cause__ or behind.__context__
    return None


def _list_files(record: Mapping[str, Any]) -> list[str]:
    """List the names of all files a record tells of, but for the clip's own source."""
    files = [value for kind, value in record["files"].items() if kind != "input"]
    names = [name for value in files for name in (value if isinstance(value, list) else [value])]
    return [name for name in names if isinstance(name, str)]
