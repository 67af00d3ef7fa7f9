"""A file, a folder, a glob, a manifest or a list becomes one checked request per clip."""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ddim_lightning.data.columns import Columns
from ddim_lightning.data.files import check_regular, expand
from ddim_lightning.data.ids import RESULTS, check_id
from ddim_lightning.data.listing import VIDEO_SUFFIXES, find_videos, has_frames, name_some
from ddim_lightning.data.rows import SHORT, Row, read_rows

MANIFEST_SUFFIXES = frozenset({".csv", ".json", ".jsonl"})
"""What is read as a list of clips."""


@dataclass(frozen=True)
class ClipRequest:
    """A `ClipRequest` is one clip that is wanted.

    Args:
        video: The file, or a folder of frames.
        id: Names the output folder; unique within a run.
        prompts: The edits wanted.
        source_prompt: A description of the clip, if there is one.
        negative_prompt: What guidance moves away from.
        start: Index of the first frame, >= 0.
        num_frames: How many frames, or ``all``; ``None`` is as many as the model takes at once.
        seed: The clip's own seed, >= 0; ``None`` derives it from the module's seed and ``id``.
        origin: The row of the manifest it came from, for messages; empty when there is none.
        mask: A video, an image or a folder of frames, white where the edits may change the clip; ``None`` changes
            everything.
        fps: Frames per second of a folder of frames; ``None`` is 8. A file has its own.
        first_frame: A picture: the first frame of the edits, made elsewhere; ``None`` where there is none.
        mask_threshold: Luma, 0 .. 255, above which a pixel of the mask counts as white.
        source_prompts: One for each of ``prompts`` where they are not all made under ``source_prompt``, else empty.
        rows: What the manifest says of it beside, as it stands there, a mapping for each of its rows.
    """

    video: Path = Path()
    id: str = ""
    prompts: tuple[str, ...] = ()
    source_prompt: str | None = None
    negative_prompt: str = ""
    start: int = 0
    num_frames: int | Literal["all"] | None = None
    seed: int | None = None
    origin: str = ""
    mask: Path | None = None
    fps: float | None = None
    first_frame: Path | None = None
    mask_threshold: float = 127.5
    source_prompts: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()


Videos = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]
"""What a user may name: a file, a folder, a glob, a manifest, or a list of files and folders of frames.

It is the type of an option: with `ClipRequest` in it, the command line would read a manifest as a list of its lines.
"""


def find_clips(
    videos: Videos | Sequence[ClipRequest],
    default: ClipRequest,
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> list[ClipRequest]:
    """Find the clips that are meant, each with an id of its own.

    Args:
        videos: A video; a folder of frames; a folder (its videos and its folders of frames, by name); a glob
            (likewise); a manifest (see `read_manifest`); or a list of videos, folders of frames and requests, which
            stay as they are. What exists under exactly this name is no glob. What else lies there is named in a
            warning, unless it evidently is no media.
        default: What holds for every clip, where a row of a manifest does not say otherwise.
        columns: What a manifest calls its columns; see `read_manifest`.
        root: Where its paths begin; likewise.

    Returns:
        At least one request. Ids are those of the manifest, else file names without their suffix, made safe and unique.

    Raises:
        OSError: If something named does not exist or is a folder where a video is expected; always the exact subclass.
        ValueError: If no video is found, or a manifest breaks a rule.
    """
    if isinstance(videos, str | os.PathLike) and _is_manifest(path := expand(videos)):
        return assign_ids(read_manifest(path, default, columns, root))
    for name, value in (("columns", columns), ("root", root)):
        if value is not None:
            raise ValueError(f"{name}: must be unset for videos that are no table (CSV, JSON, JSONL), got {value!r}")
    if not isinstance(videos, str | os.PathLike):
        if not videos:
            raise ValueError("videos must name at least one file, got an empty list")
        return assign_ids(
            [video if isinstance(video, ClipRequest) else _request_file(video, default) for video in videos]
        )
    path = expand(videos)
    left_out: list[Path] = []
    if path.is_dir() and path.suffix.lower() not in VIDEO_SUFFIXES:
        paths, left_out = find_videos(path.iterdir())
        if not paths and has_frames(path):
            paths, left_out = [path], []  # what else lies there is told when its frames are read
    elif glob.has_magic(str(path)) and not path.exists():
        paths, left_out = find_videos(Path(name) for name in glob.iglob(str(path), recursive=True))
    else:
        paths = [check_file(path, "video")]
    if not paths:
        holds = f"{path} holds no video ({' '.join(sorted(VIDEO_SUFFIXES))})"
        got = f", only {name_some(file.name for file in left_out)}" if left_out else ""
        raise ValueError(f"videos must name at least one file, but {holds}{got}")
    if left_out:
        names = name_some(file.name + "/" * file.is_dir() for file in left_out)
        warnings.warn(f"videos: left out of {path}, being neither videos nor folders of frames: {names}", stacklevel=3)
    return assign_ids([replace(default, video=path) for path in paths])


def _is_manifest(path: Path) -> bool:
    return path.suffix.lower() in MANIFEST_SUFFIXES and path.exists()


def _request_file(video: str | os.PathLike[str], default: ClipRequest) -> ClipRequest:
    return replace(default, video=check_file(Path(video), "video"))


def read_manifest(
    path: Path,
    default: ClipRequest,
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> list[ClipRequest]:
    """Read a list of clips: CSV with a header, JSONL with an object a line, or a JSON list of objects, in UTF-8.

    The columns are ``video`` (required, relative to the manifest), ``prompts``, ``source_prompt``, ``negative_prompt``,
    ``start``, ``num_frames``, ``seed``, ``id``, ``fps``, ``mask`` and ``first_frame`` (files, relative to the
    manifest). In CSV several prompts are separated by ``|``; in JSON they are a list of strings, or one string. An
    empty cell, ``null`` and a column that is left out mean the default.

    Args:
        path: The manifest, ``.csv``, ``.json`` or ``.jsonl``.
        default: What holds where a row says nothing.
        columns: What the manifest calls them, where it is somebody else's: by our names a column, or a text with
            columns in braces, ``images/{video_name}`` for example. Its other columns are carried along in ``rows``.
        root: The folder where its paths begin; ``None`` is its own.

    Returns:
        One request a row, in order; ``id`` is empty where the row gives none.

    Raises:
        OSError: If the manifest or a file in it is missing or a folder; always the exact subclass.
        ValueError: If a row breaks a rule; the message names the column and the row (the header of a CSV is row 1, as
            in a spreadsheet; the rows of a JSONL are its lines).
    """
    home, mapped = path.parent if root is None else expand(root), find_columns(columns or {})
    if not home.is_dir():
        raise NotADirectoryError(f"root: must be the folder where the paths of the table begin, got {home}")
    requests = []
    for origin, row in read_rows(path, mapped.check if columns else _check_columns):
        cells = mapped.take(origin, row) if columns else row
        request = make_request(home, origin, split_prompts(path, cells), default, columns)
        requests.append(replace(request, rows=(row,)) if columns else request)
    return requests


def find_columns(names: Mapping[str, str], optional: Sequence[str] = ()) -> Columns:
    """Return what finds the cells of a request in the rows of somebody else's table; see `Columns`."""
    return Columns(tuple(_PARSERS), ("video",), names, optional, texts=False)


def split_prompts(path: Path, cells: Row) -> Row:
    """Return the cells with their prompts taken apart, where the table is CSV, which has no lists."""
    if path.suffix.lower() != ".csv" or "prompts" not in cells:
        return cells
    return {**cells, "prompts": [prompt.strip() for prompt in cells["prompts"].split("|")]}


def check_file(path: str | os.PathLike[str], what: str) -> Path:
    """Check that a file or a folder of frames is there, whatever it holds.

    Args:
        path: The file or the folder; ``~`` is the user's folder.
        what: What it is meant to be, for messages.

    Raises:
        OSError: If it does not exist or is a folder without numbered images; always the exact subclass.
        ValueError: If it is a named pipe, a socket or a device.
    """
    path = expand(path)
    if not path.exists():
        raise FileNotFoundError(f"{what} {path} does not exist")
    if path.is_dir() and not has_frames(path):
        raise IsADirectoryError(f"{what} {path} is a folder, not a file, and holds no numbered frames")
    check_regular(path)
    return path


def check_fps(fps: float) -> float:
    """Check that an mp4 can have this rate of frames per second, and return it.

    Raises:
        ValueError: If it does not lie in 0.01 .. 1000.
    """
    if not 0.01 <= fps <= 1000:
        raise ValueError(f"fps: must lie in 0.01 .. 1000, got {fps}")
    return fps


def _check_columns(origin: str, columns: list[str]) -> None:
    known = list(_PARSERS)
    for name in columns:
        if name not in known:
            nearest = "".join(f" (did you mean {one}?)" for one in difflib.get_close_matches(name, known, n=1))
            raise ValueError(f"{origin}, column {SHORT.repr(name)}: must be one of {', '.join(known)}{nearest}")
    if "video" not in columns:
        raise ValueError(f"{origin}: must have the column video, got {', '.join(columns) or 'no column'}")


def make_request(
    root: Path, origin: str, row: Row, default: ClipRequest, names: Mapping[str, str] | None = None
) -> ClipRequest:
    """Make the request of one row.

    Args:
        root: Where its paths begin.
        origin: Where it stands, for messages.
        row: Its cells, by our names.
        default: What holds where it says nothing.
        names: What the table calls our columns, for messages.

    Raises:
        OSError: If a file in it is missing or a folder; always the exact subclass.
        ValueError: If a cell breaks a rule; the message names the column.
    """
    shown = {name: f"{text} ({name})" for name, text in (names or {}).items() if text != name}
    values: dict[str, Any] = {"origin": origin}
    for name, value in row.items():
        try:
            values[name] = _PARSERS[name](value)
        except ValueError as error:
            raise ValueError(f"{origin}, column {shown.get(name, name)}: {error}, got {SHORT.repr(value)}") from None
    if "video" not in values:
        raise ValueError(f"{origin}, column video: must name a file, got nothing")
    for name in ("video", "mask", "first_frame"):
        if name not in values:
            continue
        try:
            values[name] = check_file(root / expand(values[name]), name)
        except (OSError, ValueError) as error:
            raise type(error)(f"{origin}, column {shown.get(name, name)}: {error}") from None
    return replace(default, **values)


def _parse_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text")
    return value


def _parse_negative(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def _parse_prompts(value: object) -> tuple[str, ...]:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise ValueError("must be prompts, none of them empty")
    return tuple(prompts)


def _parse_integer(value: object) -> int:
    # `True` is an int to Python, and `int` takes 1_000 and 2.5
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"[0-9]{1,18}", f"{value}"):
        raise ValueError("must be an integer >= 0")
    return int(value)


def _parse_fps(value: object) -> float:
    try:
        return check_fps(float(str(value)))
    except ValueError:
        raise ValueError("must be a number in 0.01 .. 1000") from None


def _parse_num_frames(value: object) -> int | Literal["all"]:
    return "all" if value == "all" else _parse_integer(value)


_PARSERS: dict[str, Callable[[object], Any]] = {
    "video": _parse_text,
    "prompts": _parse_prompts,
    "source_prompt": _parse_text,
    "negative_prompt": _parse_negative,
    "start": _parse_integer,
    "num_frames": _parse_num_frames,
    "seed": _parse_integer,
    "id": check_id,
    "mask": _parse_text,
    "fps": _parse_fps,
    "first_frame": _parse_text,
}


def assign_ids(requests: Sequence[ClipRequest]) -> list[ClipRequest]:
    """Give every clip an id; ids that differ in case only would meet in one folder on some file systems.

    Args:
        requests: The clips; an id that is there stays, an empty one becomes the file's name, made safe and unique.

    Raises:
        ValueError: If two clips have one id.
    """
    taken = {RESULTS: "the list of results"}
    for request in requests:
        key = request.id.casefold()
        if key in taken:
            raise ValueError(f"{request.origin}, column id: must be unique, got {request.id!r} as in {taken[key]}")
        if key:
            taken[key] = request.origin
    tried: dict[str, Iterator[str]] = {}
    return [
        request if request.id else replace(request, id=_free_id(request.video, taken, tried)) for request in requests
    ]


def _free_id(video: Path, taken: dict[str, str], tried: dict[str, Iterator[str]]) -> str:
    stem = re.sub(r"[^\w.-]+", "_", video.name if video.is_dir() else video.stem).lstrip(".-")[:58] or "clip"
    # Goes on where it ended for the last clip of this name, since a film may be cut into thousands of them.
    key = stem.casefold()
    names = tried.setdefault(key, itertools.chain([key], (f"{key}-{number}" for number in itertools.count(2))))
    name = next(name for name in names if name not in taken)
    taken[name] = str(video)
    return stem + name[len(key) :]
