"""Videos are paired with their references by name: those of folders, and those of the runs of this program."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ddim_lightning.data.listing import has_frames, is_hidden, name_some
from ddim_lightning.data.manifest import ClipRequest, find_clips
from ddim_lightning.data.rows import read_rows
from ddim_lightning.output.page import find_file, read_records

RECONSTRUCTION = "/reconstruction"
"""Ends the name of one."""
_TRAJECTORY = "trajectory"
_UNREAD = ("mask", "mask_threshold", "start", "num_frames")
"""Columns of a manifest that say what an edit is made of, not what is compared."""
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

    @property
    def kind(self) -> str:
        """What a run calls it: ``reconstruction``, ``edit`` or ``trajectory``; empty for other people's videos."""
        return self.name.partition("/")[2].partition("-")[0]


_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class _Item:
    """One side of a pair: a video, the file of its latents, and what it shows, as far as they are known.

    A clip of a run has the name of its folder; ``input`` is that of the file it was made of.
    """

    name: str
    video: Path | None = None
    latents: Path | None = None
    prompt: str | None = None
    input: str | None = None

    @property
    def clip(self) -> str:
        """The name of the clip alone."""
        return self.name.partition("/")[0]

    def choose(self, by_name: Mapping[str, _Kind]) -> _Kind | None:
        """Return what has the clip's name, or else that of its file."""
        return by_name.get(self.clip) or by_name.get(self.input or "")


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

    A clip of a run has the name of its folder, and also that of its file, of which the former is made.

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
    bases, made = _list_references(reference), _list_made(videos)
    clips = list(dict.fromkeys(item.clip for item in made))
    references = {item.input: item for item in bases if item.input} | {item.clip: item for item in bases}
    if len(bases) == len(clips) == 1 and _is_clip(reference):
        references = {clips[0]: bases[0]}
    texts = {} if prompts is None else _read_prompts(Path(prompts).expanduser())
    find_mask = _make_mask_finder(masks, made)
    pairs, taken = Pairs(), set()
    for item in made:
        base = item.choose(references)
        if base is None:
            pairs.without_reference.append(item.name)
            continue
        taken.add(base.clip)
        pair = _join(base, item)
        prompt = _find_prompt(item, texts) or item.prompt
        if pair.video or pair.latents:
            pairs.found.append(replace(pair, mask=find_mask(item) if pair.video else None, prompt=prompt))
    pairs.without_video = [item.clip for item in bases if item.clip not in taken]
    return pairs


def _join(base: _Item, made: _Item) -> Pair:
    """Return what is compared of two sides; a file of latents with itself is not."""
    latents = None
    if base.latents and made.latents and not base.latents.samefile(made.latents):
        latents = base.latents, made.latents
    return Pair(made.name, base.video if made.video else None, made.video, latents=latents)


def _list_references(place: str) -> list[_Item]:
    """List what may be compared with: files, or the sources of a run."""
    folder = Path(place).expanduser()
    run = _read_run(folder)
    if run is None:
        return list(_list_files(place))
    found = [
        replace(_describe(record), video=_find_file(folder, record, "source"), latents=_find_latents(folder, record))
        for record in run
    ]
    return [item for item in found if item.video]


def _list_made(place: str) -> list[_Item]:
    """List what is measured: files, or what a run made of its clips."""
    folder = Path(place).expanduser()
    run = _read_run(folder)
    return list(_list_files(place)) if run is None else [item for one in run for item in _list_results(folder, one)]


def _list_results(folder: Path, record: Mapping[str, Any]) -> Iterator[_Item]:
    """List what a run made of a clip, each under the prompt that it shows."""
    clip, prompts = _describe(record), record.get("prompts") or []
    source_prompt = (record.get("settings") or {}).get("source_prompt") or None
    if video := _find_file(folder, record, "reconstruction"):
        yield replace(clip, name=f"{clip.name}{RECONSTRUCTION}", video=video, prompt=source_prompt)
    for index, name in enumerate(record["files"].get("edits") or []):
        if video := _find(folder, record, name):
            prompt = dict(enumerate(prompts)).get(index)
            yield replace(clip, name=f"{clip.name}/edit-{index:02d}", video=video, prompt=prompt)
    if latents := _find_latents(folder, record):
        yield replace(clip, name=f"{clip.name}/{_TRAJECTORY}", latents=latents)


def _list_files(place: str) -> Iterator[_Item]:
    """List the videos that a user names, with the latents that lie beside them under their names."""
    default = ClipRequest()
    requests = find_clips(place, default)
    unread = [name for name in _UNREAD if any(getattr(one, name) != getattr(default, name) for one in requests)]
    if unread:
        told = "are not read here; what holds for all videos is --masks, --num-frames and --stride"
        warnings.warn(f"{place}: its columns {', '.join(unread)} {told}", stacklevel=2)
    counts = Counter(_get_name(request.video) for request in requests)
    for request in requests:
        name = _get_name(request.video)
        beside = request.video.with_name(f"{name}.safetensors")
        prompt = request.prompts[0] if len(request.prompts) == 1 else None
        # As it stands, unless a table gives an id or two files differ in their suffix alone.
        shown = request.id if request.origin or counts[name] > 1 else name
        yield _Item(shown, request.video, beside if beside.is_file() else None, prompt)


def _get_name(path: Path) -> str:
    """Return the name of a file without its suffix, or that of a folder of frames."""
    return path.name if path.is_dir() else path.stem


def _read_run(folder: Path) -> list[Mapping[str, Any]] | None:
    """Read the records of the clips that a run has done; ``None`` where the folder is no run's."""
    if not folder.is_dir() or has_frames(folder):
        return None
    try:
        return [record for record in read_records(folder) if record["status"] == "done"]
    except FileNotFoundError:
        return None


def _describe(record: Mapping[str, Any]) -> _Item:
    """Return what a run calls a clip, and the name of the file it was made of."""
    file = record["files"].get("input")
    return _Item(str(record["id"]), input=_get_name(Path(file)) if isinstance(file, str) else None)


def _find_file(folder: Path, record: Mapping[str, Any], kind: str) -> Path | None:
    """Find the file of a kind that a record names, if it names one."""
    name = record["files"].get(kind)
    return None if name is None else _find(folder, record, name)


def _find(folder: Path, record: Mapping[str, Any], name: object) -> Path | None:
    """Find a file that a record names, or say that it is not there; a list may be anybody's: see `find_file`."""
    if (path := find_file(folder, str(record["id"]), str(name))) is None:
        warnings.warn(f"{folder}: {name} of {record['id']} is not there", stacklevel=2)
    return path


def _find_latents(folder: Path, record: Mapping[str, Any]) -> Path | None:
    return _find_file(folder, record, _TRAJECTORY)


def _is_clip(place: str) -> bool:
    path = Path(place).expanduser()
    return path.is_file() or has_frames(path)


def _make_mask_finder(masks: str | None, made: Sequence[_Item]) -> Callable[[_Item], Path | None]:
    """Return the function that finds the mask of a clip: its own, or the one there is."""
    if masks is None:
        return lambda item: None
    path = Path(masks).expanduser()
    if path.is_dir():
        own = {_get_name(one): one for one in sorted(path.iterdir()) if not is_hidden(one)}
        if any(item.choose(own) for item in made):
            return lambda item: item.choose(own)
        if not has_frames(path):
            rule = f"must hold a mask by the name of each clip, {name_some(dict.fromkeys(item.clip for item in made))}"
            raise ValueError(f"masks: {path} {rule}, got {name_some(own) or 'nothing'}")
    elif not path.exists():
        raise FileNotFoundError(f"masks: {path} does not exist")
    return lambda item: path


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


def _find_prompt(item: _Item, texts: Mapping[str, Sequence[str]]) -> str | None:
    """Return the prompt of a video: that of its own name, or of its clip the one of the same position."""
    if item.name in texts:
        return texts[item.name][0]
    what = item.name.partition("/")[2]
    position = int(what.removeprefix("edit-")) if what.startswith("edit-") else 0
    given = item.choose(texts) or [] if not what or what.startswith("edit-") else []
    return given[position] if position < len(given) else None
