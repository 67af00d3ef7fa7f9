"""A training learns from examples: a clip under its caption, or a source clip and what it is edited to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddim_lightning.data.columns import Columns
from ddim_lightning.data.files import expand
from ddim_lightning.data.listing import find_videos, name_some
from ddim_lightning.data.rows import SHORT, read_rows

Split = Literal["train", "val"]
TABLES = frozenset({".csv", ".json", ".jsonl"})
"""What is read as a table of examples."""
METADATA = ("metadata.csv", "metadata.jsonl")
"""Names of the table of a folder, as ``datasets`` of Hugging Face has it, whose column of videos is ``file_name``."""

_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val"}
_CAPTIONED = ("video", "prompt", "split")
_PAIRS = ("source_video", "target_video", "source_prompt", "target_prompt", "instruction", "split")


@dataclass(frozen=True)
class CaptionedClip:
    """A `CaptionedClip` is a video and what it shows.

    Args:
        video: The file, or a folder of frames.
        prompt: Its caption; of the target of a pair also the instruction that made it; empty where there is none.
    """

    video: Path
    prompt: str = ""


@dataclass(frozen=True)
class Example:
    """An `Example` is one row that is trained on.

    Args:
        clip: What is learned: the clip, or the target of a pair.
        source: The source of a pair; ``None`` for a clip alone.
        split: Which split the row names; ``None`` where it names none.
        origin: Where the row stands, for messages.
    """

    clip: CaptionedClip
    source: CaptionedClip | None = None
    split: Split | None = None
    origin: str = ""

    @property
    def videos(self) -> tuple[Path, ...]:
        """The files of it: the source of a pair first."""
        return (self.clip.video,) if self.source is None else (self.source.video, self.clip.video)


def find_captioned(
    videos: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
    prompt: str | None = None,
) -> list[Example]:
    """Find clips with captions.

    Args:
        videos: A table with the columns ``video`` and ``prompt``, and ``split`` where it has it; or a folder, of videos
            with a text of the same name beside each (``clip.mp4``, ``clip.txt``), or with a table named
            ``metadata.csv`` or ``metadata.jsonl``, whose column ``file_name`` is the video.
        columns: What the table calls them; see `Columns`. Without it a table has our names.
        root: Where the paths in the table begin; ``None`` is the folder of the table.
        prompt: The caption of clips that have none; ``None`` asks each for its own.

    Raises:
        OSError: If something named does not exist; always the exact subclass.
        ValueError: If a row breaks a rule, or a clip has no caption; the message names the row or the clip.
    """
    path = expand(videos)
    names = dict(columns or {})
    if path.is_dir():
        table = next((path / name for name in METADATA if (path / name).is_file()), None)
        if table is None:
            if names or root is not None:
                raise ValueError(
                    f"columns, root: must be unset for a folder without {' or '.join(METADATA)}, got {path}"
                )
            return _find_texts(path, prompt)
        names = names or _guess_columns(table)
        path = table
    required = ("video",) if prompt is not None else ("video", "prompt")
    if prompt is not None and "prompt" in names:
        raise ValueError(f"source_prompt: must be unset where columns maps prompt, got {prompt!r}")
    taken = _read(path, Columns(_CAPTIONED, required, names))
    clips = [
        Example(CaptionedClip(Path(row["video"]), row.get("prompt", prompt or "")), None, split, origin)
        for origin, row, split in taken
    ]
    return _locate(clips, path.parent if root is None else expand(root))


def find_pairs(
    pairs: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> list[Example]:
    """Find pairs of a source and its edit.

    Args:
        pairs: A table with the columns ``source_video`` and ``target_video``; ``target_prompt``, what the target shows,
            or ``instruction``, what was asked for; ``source_prompt`` and ``split`` where it has them.
        columns: What the table calls them; see `Columns`. Without it a table has our names.
        root: Where the paths in the table begin; ``None`` is the folder of the table.

    Raises:
        OSError: If the table or a file in it does not exist; always the exact subclass.
        ValueError: If a row breaks a rule; the message names the row and the column.
    """
    path, names = expand(pairs), dict(columns or {})
    if path.is_dir():
        raise IsADirectoryError(f"pairs: must be a table ({', '.join(sorted(TABLES))}), got the folder {path}")
    known = dict.fromkeys(name for name in names if name in ("target_prompt", "instruction"))
    if names and len(known) != 1:
        got = " and ".join(known) or ", ".join(names)
        raise ValueError(f"columns: must map one of target_prompt and instruction, got {got}")
    taken = _read(path, Columns(_PAIRS, ("source_video", "target_video", *known), names))
    examples = []
    for origin, row, split in taken:
        prompts = [row[name] for name in ("target_prompt", "instruction") if name in row]
        if len(prompts) != 1:
            got = "both (choose one with `columns`)" if prompts else "neither"
            raise ValueError(f"{origin}: must have one of target_prompt and instruction, got {got}")
        source = CaptionedClip(Path(row["source_video"]), row.get("source_prompt", ""))
        examples.append(Example(CaptionedClip(Path(row["target_video"]), prompts[0]), source, split, origin))
    return _locate(examples, path.parent if root is None else expand(root))


def _read(path: Path, columns: Columns) -> list[tuple[str, dict[str, str], Split | None]]:
    """Read the rows of a table that belong to a split; those of a test split are nobody's."""
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"{path}: must be a table to train from ({', '.join(sorted(TABLES))}) or a folder")
    taken = []
    for origin, cells in read_rows(path, columns.check):
        row = columns.take(origin, cells)
        name = row.get("split", "").strip().lower()
        if name and name != "test" and name not in _SPLITS:
            rule = f"must be {', '.join(_SPLITS)} or test"
            raise ValueError(f"{origin}, column {columns.names.get('split', 'split')}: {rule}, got {SHORT.repr(name)}")
        if name != "test":
            taken.append((origin, row, _SPLITS.get(name)))
    if not taken:
        raise ValueError(f"{path}: must have rows to train on, got only rows of the split test")
    return taken


def _guess_columns(table: Path) -> dict[str, str]:
    """Find the captions in a table of Hugging Face's layout, which leaves their column's name to its author."""
    _, first = next(read_rows(table, lambda origin, columns: None))
    found = [name for name in ("prompt", "text", "caption") if name in first]
    if len(found) != 1:
        got = " and ".join(found) or name_some(first)
        raise ValueError(f"columns: must say where the captions of {table} are, as in {{prompt: text}}, got {got}")
    return {"video": "file_name", "prompt": found[0]} | ({"split": "split"} if "split" in first else {})


def _find_texts(folder: Path, prompt: str | None) -> list[Example]:
    """Find the videos of a folder and the texts beside them."""
    videos, _ = find_videos(folder.iterdir())
    if not videos:
        raise ValueError(f"videos: must name a table or a folder with videos, but {folder} holds none")
    examples, without = [], []
    for video in videos:
        text = video.with_suffix(".txt")
        if text.is_file():
            caption = " ".join(text.read_text(encoding="utf-8-sig").split())
        else:
            caption = prompt or ""
            without += [video.name] * (prompt is None)
        examples.append(Example(CaptionedClip(video, caption), origin=str(video)))
    if without:
        raise ValueError(f"videos: each must have its caption beside it (clip.txt), but not so {name_some(without)}")
    return examples


def _locate(examples: Sequence[Example], root: Path) -> list[Example]:
    """Find the files of examples; one message tells of all that are missing."""
    if not root.is_dir():
        raise NotADirectoryError(f"root: must be the folder where the paths of the table begin, got {root}")
    located, missing = [], []
    for example in examples:
        source = example.source and CaptionedClip(root / expand(example.source.video), example.source.prompt)
        clip = CaptionedClip(root / expand(example.clip.video), example.clip.prompt)
        located.append(Example(clip, source, example.split, example.origin))
        missing += [(example.origin, video) for video in located[-1].videos if not video.exists()]
    if missing:
        origin, video = missing[0]
        more = f" (nor do {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{origin}: {video} does not exist{more}; paths begin at `root`, {root}")
    return located
