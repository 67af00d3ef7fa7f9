"""The config of a public benchmark says in a few lines how its edits are read, written and shown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import yaml

from ddim_lightning.data.listing import FRAME_SUFFIXES
from ddim_lightning.data.manifest import find_columns
from ddim_lightning.data.rows import SHORT

SHIPPED = Path(__file__).parents[1] / "assets" / "benchmarks"
"""Where the shipped configs lie."""
SUFFIXES = frozenset({".yaml", ".yml"})
"""What a config of one's own ends in."""


@dataclass(frozen=True)
class Layout:
    """A `Layout` says where the evaluation of a benchmark looks for results; paths have columns in braces.

    Args:
        edit: An edit: its mp4, without the suffix, or its folder of frames. Beside columns there are ``{edit}``, the
            name of its prompt's column in the config, ``{table}``, the stem of its table, and the names in ``either``.
        as_long_as: A column with a text: the last part of ``edit`` is cut to its length; ``None`` does not cut.
        frames: How frames are called, ``%05d.png``, counted from 0; ``None`` writes an mp4.
        source: The source, of the frames that were edited; ``None`` writes none.
        mask: The mask of these, black and white; likewise.
        size: ``model`` leaves frames as they were edited; ``source`` brings them back to the size of the source.
        table: The table of edits again, with those that are done; ``None`` writes none.
    """

    edit: str
    as_long_as: str | None = None
    frames: str | None = None
    source: str | None = None
    mask: str | None = None
    size: Literal["model", "source"] = "model"
    table: str | None = None


@dataclass(frozen=True)
class ShownNumber:
    """A `ShownNumber` is a column of the table that stands beside published rows.

    Args:
        number: Its name, as the measure calls it.
        title: Its heading.
        measure: The measure that gives it; ``None`` where only others publish it.
        times: What it is multiplied by.
        every: Distance between the frames that are measured; ``None`` is that of the benchmark.
        better: Which is better, ``higher`` or ``lower``.
    """

    number: str
    title: str
    measure: str | None = None
    times: float = 1.0
    every: int | None = None
    better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class Published:
    """A `Published` is rows of numbers that others measured.

    Args:
        source: The paper and its table, or the file.
        rows: By ``method`` its name, and numbers by their names; what is not published is left out.
    """

    source: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class BenchmarkConfig:
    """A `BenchmarkConfig` is all that is particular to one public benchmark.

    Args:
        title: Its name, for people.
        columns: What its tables call our columns; see `Columns`. ``prompts`` may be several columns, each with the name
            of its edits: ``{style: Style Caption}``.
        source: Paper and repository.
        edits: Globs of its tables, in its folder.
        clips: A glob of its clips, where it has no tables; each is a row with the column ``name``.
        either: Further columns: by their name several texts with columns in braces, of which the first is taken under
            which the clip is there.
        optional: Those of our columns that its tables may lack.
        skip_without: A column without which a row is no edit: that of a title.
        remove: Characters that are left out of prompts.
        mask_threshold: Luma, 0 .. 255, above which a pixel of a mask is white.
        num_frames: Frames of a clip where it has as many, or ``all``; ``None`` is what the model takes at once.
        fit: What happens to frames of another shape; edits are compared with the whole source only with ``stretch``.
        fps: Frames per second of folders of frames; ``None`` is 8.
        output: Where its evaluation looks for results; ``None`` writes nothing beside the run.
        every: Distance between the frames that are measured, >= 1.
        numbers: The columns of its table.
        published: Rows of others.
    """

    title: str
    columns: Mapping[str, str | Mapping[str, str]]
    source: str = ""
    edits: Sequence[str] = ()
    clips: str | None = None
    either: Mapping[str, Sequence[str]] = field(default_factory=dict)
    optional: Sequence[str] = ()
    skip_without: str | None = None
    remove: str = ""
    mask_threshold: float = 127.5
    num_frames: int | Literal["all"] | None = None
    fit: Literal["crop", "pad", "stretch"] = "stretch"
    fps: float | None = None
    output: Layout | None = None
    every: int = 1
    numbers: Sequence[ShownNumber] = ()
    published: Sequence[Published] = ()


def list_benchmarks() -> dict[str, str]:
    """List the shipped benchmarks: their names, and what they are called in full."""
    return {path.stem: read_benchmark_config(path.stem).title for path in sorted(SHIPPED.glob("*.yaml"))}


def names_benchmark(word: str) -> bool:
    """Say whether a word names a public benchmark: a shipped one, or a config of one's own."""
    return Path(word).suffix.lower() in SUFFIXES or (SHIPPED / f"{word}.yaml").is_file()


def read_benchmark_config(name: str) -> BenchmarkConfig:
    """Read the config of a benchmark.

    Args:
        name: Of a shipped one, or a YAML file.

    Raises:
        OSError: If there is no such file; always the exact subclass.
        ValueError: If it is no such config; the message names the file and the key.
    """
    path = Path(name) if Path(name).suffix.lower() in SUFFIXES else SHIPPED / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be YAML in UTF-8 ({' '.join(str(error).split())})") from None
    config = _make(BenchmarkConfig, values, str(path))
    _check(config, str(path))
    return config


def _check(config: BenchmarkConfig, origin: str) -> None:
    """Check what keys say of each other, so that nothing is found wanting when all edits are made."""
    output, numbers = config.output, [one.number for one in config.numbers]
    try:
        find_columns(dict.fromkeys(config.columns, ""))
    except ValueError as error:
        raise ValueError(f"{origin}, key {error}") from None
    if not config.columns:
        raise ValueError(f"{origin}, key columns: must map video, got nothing")
    for name in config.optional:
        if name not in config.columns:
            raise ValueError(f"{origin}, key optional: must be of {', '.join(config.columns)}, got {name}")
    if bool(config.edits) == (config.clips is not None):
        raise ValueError(f"{origin}: must have one of edits and clips, got {'both' if config.edits else 'neither'}")
    if config.fit != "stretch" and (numbers or (output and output.size == "source")):
        raise ValueError(f"{origin}, key fit: must be stretch with numbers or size: source, got {config.fit}")
    if output and output.frames is None and (output.source or output.mask or output.size == "source"):
        raise ValueError(f"{origin}, key output, key frames: must be given with source, mask or size: source")
    for name in numbers:
        if numbers.count(name) > 1:
            raise ValueError(f"{origin}, key numbers: must name {name} once, got {numbers.count(name)}")
    for name in (name for one in config.published for row in one.rows for name in row):
        if name not in ("method", *numbers):
            raise ValueError(f"{origin}, key published: must have numbers of {', '.join(numbers)}, got {name}")


_Kind = TypeVar("_Kind")


def _make(kind: type[_Kind], values: object, origin: str) -> _Kind:
    """Make a config, or a part of one, of what YAML holds."""
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ValueError(f"{origin}: must be a mapping of {', '.join(known)}, got {SHORT.repr(values)}")
    for name, one in known.items():
        if name not in values and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{origin}, key {name}: must be given")
    made = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{origin}, key {name}: must be one of {', '.join(known)}")
        where = f"{origin}, key {name}"
        is_right, rule = _RULES.get(name, (_is_text, "must be text"))
        listed = [value] if name in _LISTED and isinstance(value, str) else value
        if not is_right(listed):
            raise ValueError(f"{where}: {rule}, got {SHORT.repr(value)}")
        part = _PARTS.get(name)
        if part is not None and isinstance(listed, list):
            listed = [_make(part, one, f"{where}, entry {k}") for k, one in enumerate(listed, 1)]
        made[name] = listed if part is None or isinstance(listed, list) else _make(part, listed, where)
    return kind(**made)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _leads_inside(value: object) -> bool:
    """Whether it is a path or a glob that stays in the folder it begins at."""
    path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath()
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _is_columns(value: object) -> bool:
    def is_column(name: object, text: object) -> bool:
        if name == "prompts" and isinstance(text, Mapping):
            return all(_is_text(one) for pair in text.items() for one in pair)
        return _is_text(name) and _is_text(text)

    return isinstance(value, Mapping) and all(is_column(*pair) for pair in value.items())


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, Mapping)
        and _is_text(row.get("method"))
        and all(_is_number(number) for name, number in row.items() if name != "method")
        for row in value
    )


def _choose(*names: str) -> tuple[Callable[[object], bool], str]:
    return lambda value: value in names, f"must be one of {', '.join(names)}"


_LISTED = ("edits", "optional")
"""Keys that take one text, too."""
_PARTS: dict[str, type[Any]] = {"output": Layout, "numbers": ShownNumber, "published": Published}
_FRAME = rf"[^%/\\]*%(0\d)?d[^%/\\]*({'|'.join(map(re.escape, FRAME_SUFFIXES))})"
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "columns": (_is_columns, "must map our columns to texts, prompts to one or to several with names"),
    "edits": (
        lambda value: isinstance(value, list) and all(map(_leads_inside, value)),
        "must be a list of globs inside the folder",
    ),
    "clips": (_leads_inside, "must be a glob inside the folder"),
    "frames": (
        lambda value: _is_text(value) and re.fullmatch(_FRAME, str(value)) is not None,
        "must be a name with one number, %05d.png for example",
    ),
    "table": (_leads_inside, "must be a path inside the folder"),
    "either": (
        lambda value: isinstance(value, Mapping) and all(map(_is_texts, value.values())),
        "must map names to lists of paths",
    ),
    "optional": (_is_texts, "must be a list of our columns"),
    "mask_threshold": (lambda value: _is_number(value) and value <= 255, "must be a number in 0 .. 255"),
    "num_frames": (lambda value: value in ("all", None) or _is_count(value), "must be an integer, all or null"),
    "fit": _choose("crop", "pad", "stretch"),
    "fps": (lambda value: _is_number(value) and 0.01 <= value <= 1000, "must be a number in 0.01 .. 1000"),
    "output": (lambda value: isinstance(value, Mapping), "must be a mapping"),
    "every": (_is_count, "must be an integer of at least 1"),
    "numbers": (lambda value: isinstance(value, list), "must be a list"),
    "published": (lambda value: isinstance(value, list), "must be a list"),
    "rows": (_is_rows, "must be a list of mappings of method, a text, and of numbers"),
    "size": _choose("model", "source"),
    "times": (_is_number, "must be a number of at least 0"),
    "better": _choose("higher", "lower"),
}
"""What the value of a key must be, and how that is said; other keys are texts."""
