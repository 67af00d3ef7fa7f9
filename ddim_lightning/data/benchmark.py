"""The edits of a public benchmark become clips, each with all of its edits, so that one inversion serves them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ddim_lightning.data.benchmark_config import BenchmarkConfig, Layout, read_benchmark_config
from ddim_lightning.data.columns import fill
from ddim_lightning.data.files import expand
from ddim_lightning.data.ids import EVALUATION, SUMMARY
from ddim_lightning.data.listing import VIDEO_SUFFIXES, name_some, split_number
from ddim_lightning.data.manifest import ClipRequest, assign_ids, find_columns, make_request, split_prompts
from ddim_lightning.data.rows import SHORT, Row, read_rows
from ddim_lightning.data.timeline import read_timeline


@dataclass(frozen=True)
class BenchmarkEdit:
    """A `BenchmarkEdit` is one edit that a benchmark asks for.

    Args:
        clip: The id of its clip.
        index: Its place among the edits of the clip, >= 0.
        table: The stem of the table that it is from.
        prompt: What it shows.
        request: The row alone, with the mask, whether or not the edit is held to it.
        row: The cells of the row, and what the config adds to them.
        origin: Where the row stands.
    """

    clip: str
    index: int
    table: str
    prompt: str
    request: ClipRequest
    row: Row
    origin: str


@dataclass(frozen=True)
class Benchmark:
    """A `Benchmark` is a public benchmark with its files.

    Args:
        name: As it was named.
        config: How it is read, written and shown.
        requests: Its clips, each with all of its edits.
        edits: Its edits, those of a clip next to each other.
        chosen: Which of its tables were asked for; none means all.
    """

    name: str
    config: BenchmarkConfig
    requests: Sequence[ClipRequest]
    edits: Sequence[BenchmarkEdit]
    chosen: Sequence[str] = ()


def read_benchmark(
    name: str,
    folder: str | Path,
    edits: Sequence[str] = (),
    *,
    default: ClipRequest = ClipRequest(),  # noqa: B008, frozen
    inside_masks: bool = False,
    by_source_prompt: bool = False,
) -> Benchmark:
    """Read a benchmark.

    Args:
        name: A shipped one, or the YAML file of one's own.
        folder: Where it lies.
        edits: Which of its tables: by the stems of their names, or files of one's own; none means all.
        default: What holds for every clip. Its ``num_frames`` goes before that of the benchmark.
        inside_masks: Whether the masks bind the edits; else they are there for the evaluation alone.
        by_source_prompt: Whether a clip is inverted anew for each of its source prompts, as it must be where
            inversions are made under them. Else edits of one inversion may have source prompts of their own.

    Raises:
        OSError: If the folder, a table or a file in it does not exist; always the exact subclass.
        ValueError: If the config or a row breaks a rule; the message names the file, the entry and the key.
    """
    config, root = read_benchmark_config(name), expand(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"folder: must be the folder of {config.title}, got {str(root)!r}")
    wanted = config.num_frames if default.num_frames is None else default.num_frames
    base = replace(default, num_frames=wanted, mask_threshold=config.mask_threshold)
    if base.fps is None:
        base = replace(base, fps=config.fps)
    groups: dict[ClipRequest, list[tuple[str, ClipRequest]]] = {}
    for table, request in _read_requests(config, root, edits, base):
        mask = request.mask if inside_masks else None
        source = request.source_prompt if by_source_prompt else None
        clip = replace(request, prompts=(), rows=(), origin="", mask=mask, source_prompt=source)
        groups.setdefault(clip, []).append((table, request))
    if not groups:  # where there are rows, none has the column
        raise ValueError(f"{name}, key skip_without: must be a column of a row, got {config.skip_without}")
    merged = [_merge([request for _, request in rows], inside_masks) for rows in groups.values()]
    requests = [_fit_length(request, wanted) for request in assign_ids(merged)]
    for request in requests:
        if request.id.casefold() in (EVALUATION, SUMMARY):
            raise ValueError(f"{request.origin}: the run has a file of its own of this name, got {request.id!r}")
    listed = _list_edits(requests, groups.values())
    if (layout := config.output) is not None:  # so that no name is found wanting when all edits are made
        for edit in listed:
            for text in filter(None, (layout.edit, layout.source, layout.mask)):
                find_place(layout, text, edit)
    return Benchmark(name, config, requests, listed, tuple(edits))


def find_place(layout: Layout, text: str, edit: BenchmarkEdit) -> PurePosixPath:
    """Return where the evaluation looks for something, in its folder.

    Args:
        layout: Of the benchmark.
        text: The path, with columns in braces.
        edit: Whose row fills them.

    Raises:
        ValueError: If a column is not there, or the path leads out of the folder.
    """
    try:
        path = fill(text, edit.row)
        if layout.as_long_as is not None and text == layout.edit:
            head, slash, tail = path.partition("/")
            path = head + slash + tail[: len(str(edit.row[layout.as_long_as]))]
    except KeyError as error:
        raise ValueError(f"{edit.origin}: must have the column {error.args[0]} (output takes it)") from None
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or not place.parts or "\0" in path:
        raise ValueError(f"{edit.origin}: must lead to a file inside the folder of results, got {SHORT.repr(path)}")
    named_as_video = layout.frames is not None and place.suffix.lower() in VIDEO_SUFFIXES
    return place.with_suffix("") if named_as_video else place


def _read_requests(
    config: BenchmarkConfig, root: Path, edits: Sequence[str], default: ClipRequest
) -> Iterator[tuple[str, ClipRequest]]:
    """Read one request a row, or one for each of the edits that a row names; with each the stem of its table."""
    prompts = config.columns.get("prompts", {})
    variants = prompts if isinstance(prompts, Mapping) else {"": prompts}
    others = {name: text for name, text in config.columns.items() if isinstance(text, str) and name != "prompts"}
    by_edit = {edit: {**others, "prompts": column} for edit, column in variants.items()} or {"": others}
    columns = {edit: find_columns(names, config.optional) for edit, names in by_edit.items()}
    for table in _find_tables(config, root, edits):
        stem = "" if table is None else table.stem
        for origin, known, row in _list_clips(config, root) if table is None else _read_table(table):
            if config.skip_without is not None and config.skip_without not in row:
                continue
            whole = {"table": stem, **row}
            if config.either:
                whole |= _choose(config, root, origin, whole)
            for edit, mapped in columns.items():
                mapped.check(origin, [*known, *config.either])
                cells = _clean(mapped.take(origin, whole), config.remove)
                if table is not None:
                    cells = split_prompts(table, cells)
                request = make_request(root, origin, cells, default, mapped.names)
                if not request.prompts and "prompts" in {*mapped.names} - {*config.optional}:
                    told = f"{origin}, column {mapped.names['prompts']} (prompts): is empty, no edit is made of it"
                    warnings.warn(told, stacklevel=4)
                yield stem, replace(request, rows=({"edit": edit, **whole},))


def _read_table(table: Path) -> Iterator[tuple[str, list[str], Row]]:
    """Read the rows of a table; with each where it stands, and the columns there are."""
    known: list[str] = []

    def note(_: str, columns: list[str]) -> None:
        known[:] = columns

    for origin, row in read_rows(table, note):
        yield origin, known, row


def _find_tables(config: BenchmarkConfig, root: Path, edits: Sequence[str]) -> list[Path | None]:
    """Find the tables that are asked for; one that is none stands for a benchmark without any."""
    found = sorted({path for pattern in config.edits for path in root.glob(pattern) if path.is_file()})
    chosen: list[Path] = []
    for name in edits:
        named = [path for path in found if name in (path.stem, path.name)] or [expand(name)]
        if not named[0].is_file():
            got = f"{name_some(path.stem for path in found) or 'no table'}, got {name!r}"
            raise FileNotFoundError(f"edits: must be a file or a table of {root}, which has {got}")
        chosen += named
    if edits:
        return list(dict.fromkeys(chosen))
    if config.clips is not None:
        return [None]
    if not found:
        raise FileNotFoundError(
            f"folder: must hold the tables of {config.title}, {', '.join(config.edits)}, got {root}"
        )
    return list(found)


def _list_clips(config: BenchmarkConfig, root: Path) -> list[tuple[str, list[str], Row]]:
    clips = sorted(path for path in root.glob(config.clips or "") if not path.name.startswith("."))
    if not clips:
        raise FileNotFoundError(f"folder: must hold the clips of {config.title}, {config.clips}, got {root}")
    return [(str(path), ["name"], {"name": path.name}) for path in clips]


def _choose(config: BenchmarkConfig, root: Path, origin: str, row: Row) -> dict[str, str]:
    """Choose among the further columns of the config those under which the clip is there."""
    try:
        tried = [
            {name: fill(text, row) for name, text in zip(config.either, texts, strict=True)}
            for texts in itertools.product(*config.either.values())
        ]
        paths = [fill(str(config.columns["video"]), {**row, **chosen}) for chosen in tried]
    except KeyError as error:
        raise ValueError(f"{origin}: must have the column {error.args[0]} (the clip is found by it)") from None
    for chosen, path in zip(tried, paths, strict=True):
        if (root / path).exists():
            return chosen
    raise FileNotFoundError(f"{origin}, column video: none of {', '.join(paths)} is in {root}")


def _clean(cells: Row, remove: str) -> Row:
    """Leave characters out of prompts."""
    table = str.maketrans("", "", remove)

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(one) for one in value]
        return value.translate(table) if isinstance(value, str) else value

    return {name: clean(value) if name in ("prompts", "source_prompt") else value for name, value in cells.items()}


def _merge(requests: Sequence[ClipRequest], inside_masks: bool) -> ClipRequest:
    """Make one clip of its edits."""
    first = requests[0]
    sources = tuple(request.source_prompt or "" for request in requests for _ in request.prompts)
    return replace(
        first,
        prompts=tuple(prompt for request in requests for prompt in request.prompts),
        source_prompts=sources if len(set(sources)) > 1 else (),
        mask=first.mask if inside_masks else None,
        rows=tuple(row for request in requests for row in request.rows),
    )


def _list_edits(
    requests: Sequence[ClipRequest], groups: Iterable[Sequence[tuple[str, ClipRequest]]]
) -> list[BenchmarkEdit]:
    edits = []
    for request, rows in zip(requests, groups, strict=True):
        index = 0
        for table, one in rows:
            for prompt in one.prompts:
                edits.append(BenchmarkEdit(request.id, index, table, prompt, one, one.rows[0], one.origin))
                index += 1
    return edits


def _fit_length(request: ClipRequest, wanted: int | str | None) -> ClipRequest:
    """Take all frames of a clip that has fewer than are meant for all."""
    if not isinstance(wanted, int) or request.num_frames != wanted:
        return request
    try:
        if request.video.is_dir():
            count = sum(split_number(file) is not None for file in request.video.iterdir())
        else:
            count = read_timeline(request.video).num_frames
    except (OSError, ValueError):  # which is told of this clip when its turn comes
        return request
    return request if count >= request.start + wanted else replace(request, num_frames="all")
