"""Videos are paired with their references by name: those of folders, and those of the runs of this program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddim_lightning.data.ids import check_id
from ddim_lightning.data.listing import has_frames, is_hidden, name_some
from ddim_lightning.data.manifest import ClipRequest, find_clips
from ddim_lightning.data.rows import read_rows
from ddim_lightning.output.page import read_records

RECONSTRUCTION = "/reconstruction"
"""Ends the name of one."""
_TRAJECTORY = "trajectory"
_NAMES, _TEXTS = ("id", "video"), ("prompt", "prompts")


@dataclass(frozen=True)
class Pair:
    """A `Pair` is a video and what it is compared with.

    Args:
        name: The clip's, and for one of a run also what it is: ``cat/edit-00``.
        reference: The file or folder of frames that it is compared with; ``None`` for a pair of latents.
        video: The file or folder of frames that is measured, likewise.
        mask: A video, an image or a folder of frames, white where the video was to change.
        prompt: What the video shows.
        latents: Files of tensors of reference and video, where both are there.
    """

    name: str
    reference: Path | None = None
    video: Path | None = None
    mask: Path | None = None
    prompt: str | None = None
    latents: tuple[Path, Path] | None = None


@dataclass(frozen=True)
class _Item:
    """One side of a pair: a video, the file of its latents, and what it shows, as far as they are known."""

    name: str
    video: Path | None = None
    latents: Path | None = None
    prompt: str | None = None

    @property
    def clip(self) -> str:
        """The name of the clip alone."""
        return self.name.partition("/")[0]


@dataclass
class Pairs:
    """The `Pairs` are all that two folders have in common, and what they have not.

    Args:
        found: By name.
        without_reference: Videos that nothing could be compared with.
        without_video: References that nothing was compared with.
    """

    found: list[Pair] = field(default_factory=list)
    without_reference: list[str] = field(default_factory=list)
    without_video: list[str] = field(default_factory=list)


def find_pairs(reference: str, videos: str, masks: str | None = None, prompts: str | None = None) -> Pairs:
    """Pair videos with references by the names of their clips.

    Args:
        reference: A video, a folder of frames, a folder, glob or manifest of these (see `find_clips`); or the output
            folder of a run, of which it is the sources.
        videos: Likewise; of a run it is all that it made of them. Two single videos are a pair whatever their names.
        masks: A mask for all clips, or a folder with a mask for each by its name.
        prompts: A table (CSV, JSON, JSONL) with columns ``id`` or ``video``, and ``prompt`` or ``prompts``.

    Raises:
        OSError: Something that is not there.
        ValueError: A folder without videos, or a table that breaks a rule.
    """
    references, made = {item.clip: item for item in _list_references(reference)}, _list_made(videos)
    clips = list(dict.fromkeys(item.clip for item in made))
    if len(references) == len(clips) == 1 and _is_clip(reference):
        references = dict(zip(clips, references.values(), strict=True))
    texts = {} if prompts is None else _read_prompts(Path(prompts).expanduser())
    find_mask = _make_mask_finder(masks, clips)
    pairs = Pairs(without_video=[clip for clip in references if clip not in clips])
    for item in made:
        if item.clip not in references:
            pairs.without_reference.append(item.name)
            continue
        pair = _join(references[item.clip], item)
        prompt = _find_prompt(item.name, texts) or item.prompt
        if pair.video or pair.latents:
            pairs.found.append(replace(pair, mask=find_mask(item.clip) if pair.video else None, prompt=prompt))
    return pairs


def _join(base: _Item, made: _Item) -> Pair:
    """Return what is compared of two sides; a file of latents with itself is not."""
    latents = None
    if base.latents and made.latents and not base.latents.samefile(made.latents):
        latents = base.latents, made.latents
    return Pair(made.name, base.video if made.video else None, made.video, latents=latents)


def _list_references(place: str) -> list[_Item]:
    """List what may be compared with: files, or the sources of a run."""
    run = _read_run(place)
    if run is None:
        return list(_list_files(place))
    found = [
        _Item(str(record["id"]), _find_file(folder, record["files"].get("source")), _find_trajectory(folder, record))
        for folder, record in run
    ]
    return [item for item in found if item.video]


def _list_made(place: str) -> list[_Item]:
    """List what is measured: files, or what a run made of its clips."""
    run = _read_run(place)
    return list(_list_files(place)) if run is None else [item for one in run for item in _list_results(*one)]


def _list_results(folder: Path, record: Mapping[str, Any]) -> Iterator[_Item]:
    """List what a run made of a clip, each under the prompt that it shows."""
    clip, files, prompts = str(record["id"]), record["files"], record.get("prompts") or []
    source_prompt = (record.get("settings") or {}).get("source_prompt") or None
    if video := _find_file(folder, files.get("reconstruction")):
        yield _Item(f"{clip}{RECONSTRUCTION}", video, prompt=source_prompt)
    for index, name in enumerate(files.get("edits") or []):
        if video := _find_file(folder, name):
            yield _Item(f"{clip}/edit-{index:02d}", video, prompt=dict(enumerate(prompts)).get(index))
    if latents := _find_trajectory(folder, record):
        yield _Item(f"{clip}/{_TRAJECTORY}", latents=latents)


def _list_files(place: str) -> Iterator[_Item]:
    """List the videos that a user names, with the latents that lie beside them under their names."""
    for request in find_clips(place, ClipRequest()):
        video = request.video
        beside = video.with_name(f"{video.name if video.is_dir() else video.stem}.safetensors")
        prompt = request.prompts[0] if len(request.prompts) == 1 else None
        yield _Item(request.id, video, beside if beside.is_file() else None, prompt)


def _read_run(place: str) -> list[tuple[Path, Mapping[str, Any]]] | None:
    """Read the folders and records of the clips that a run has done; ``None`` where the place is no run's."""
    folder = Path(place).expanduser()
    if not folder.is_dir() or has_frames(folder):
        return None
    try:
        records = read_records(folder)
    except FileNotFoundError:
        return None
    known = []
    for record in records:
        with suppress(ValueError):  # a list may be anybody's: only folders of clips are looked into
            known.append((folder / check_id(record["id"]), record))
    return [(place, record) for place, record in known if record["status"] == "done"]


def _find_file(folder: Path, name: object) -> Path | None:
    """Find a file that a record names, in the folder of its clip and nowhere else."""
    if not isinstance(name, str) or Path(name).name != name:
        return None
    return folder / name if (folder / name).is_file() else None


def _find_trajectory(folder: Path, record: Mapping[str, Any]) -> Path | None:
    return _find_file(folder, record["files"].get(_TRAJECTORY))


def _is_clip(place: str) -> bool:
    path = Path(place).expanduser()
    return path.is_file() or has_frames(path)


def _make_mask_finder(masks: str | None, clips: Sequence[str]) -> Callable[[str], Path | None]:
    """Return the function that finds the mask of a clip: its own, or the one there is."""
    if masks is None:
        return lambda clip: None
    path = Path(masks).expanduser()
    if path.is_dir():
        own = {one.name if one.is_dir() else one.stem: one for one in sorted(path.iterdir()) if not is_hidden(one)}
        if set(own) & set(clips):
            return own.get
        if not has_frames(path):
            rule = f"must hold a mask by the name of each clip, {name_some(clips)}"
            raise ValueError(f"masks: {path} {rule}, got {name_some(own) or 'nothing'}")
    elif not path.exists():
        raise FileNotFoundError(f"masks: {path} does not exist")
    return lambda clip: path


def _read_prompts(path: Path) -> dict[str, list[str]]:
    """Read the prompts of a table, by the names of clips."""
    texts: dict[str, list[str]] = {}

    def check(origin: str, columns: Iterable[str]) -> None:
        for names in (_NAMES, _TEXTS):
            if not set(names) & set(columns):
                raise ValueError(f"prompts: {origin} must have a column {' or '.join(names)}, got {name_some(columns)}")

    for _, row in read_rows(path, check):
        name, text = (next((row[one] for one in names if one in row), None) for names in (_NAMES, _TEXTS))
        if name is not None and text is not None:
            given = text if isinstance(text, list) else str(text).split("|") if "prompts" in row else [text]
            key = str(name) if "id" in row else Path(str(name)).stem
            texts.setdefault(key, []).extend(str(one).strip() for one in given)
    return texts


def _find_prompt(name: str, texts: Mapping[str, Sequence[str]]) -> str | None:
    """Return the prompt of a video: that of its own name, or of its clip the one of the same position."""
    if name in texts:
        return texts[name][0]
    clip, _, what = name.partition("/")
    position = int(what.removeprefix("edit-")) if what.startswith("edit-") else 0
    given = texts.get(clip, []) if not what or what.startswith("edit-") else []
    return given[position] if position < len(given) else None
