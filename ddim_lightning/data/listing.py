"""What lies in a folder is told apart by its name: clips, what is left out and named, and what is no media at all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".264", ".265", ".3g2", ".3gp", ".apng", ".asf", ".avi", ".avif", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264",
    ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mov",
    ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogg", ".ogm", ".ogv", ".ogx", ".qt", ".rm",
    ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
})
"""What counts as a video in a folder or behind a glob, in lower case."""
FRAME_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"})
"""What counts as a frame in a folder of frames, in lower case."""
_NO_MEDIA = frozenset({
    ".cfg", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".lock", ".log", ".md", ".npy", ".npz", ".pdf", ".pt",
    ".py", ".safetensors", ".sh", ".srt", ".toml", ".tsv", ".txt", ".vtt", ".xml", ".yaml", ".yml",
})
# fmt: on
_SHOWN = 5


def split_number(path: Path) -> tuple[str, int, str] | None:
    """Split the name of a frame into what stands before its number, the number, and what stands behind it.

    Args:
        path: A file; of several numbers in its name the last one counts.

    Returns:
        ``None`` where it is no image, or has no number.
    """
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", path.stem, re.DOTALL)
    if match is None or path.suffix.lower() not in FRAME_SUFFIXES or is_hidden(path):
        return None
    return match[1], int(match[2]), match[3] + path.suffix


def has_frames(path: Path) -> bool:
    """Say whether a path is a folder that holds images with numbers in their names; one that is closed to us is not."""
    try:
        return path.is_dir() and any(split_number(file) is not None for file in path.iterdir())
    except PermissionError:
        return False


def find_videos(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Find the clips among paths: video files, and folders of frames.

    Args:
        paths: Files and folders; hidden ones are passed over.

    Returns:
        The clips, and what else might be media or hold some; both by name.
    """
    clips: list[Path] = []
    others: list[Path] = []
    for path in sorted(set(paths)):
        if is_hidden(path):
            continue
        is_video = path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()
        (clips if is_video or has_frames(path) else others).append(path)
    # A glob finds frames beside their folder, and folders beside what is in them.
    inside, around = set(clips), {parent for clip in clips for parent in clip.parents}
    return clips, [path for path in others if may_be_media(path) and path.parent not in inside and path not in around]


def is_hidden(path: Path) -> bool:
    """Say whether a file is hidden, as those are that other systems leave behind."""
    return path.name.startswith(".")


def may_be_media(path: Path) -> bool:
    """Say whether a file might be meant as a clip: everything but hidden files and those that evidently are text."""
    return not is_hidden(path) and path.suffix.lower() not in _NO_MEDIA


def name_some(names: Iterable[object]) -> str:
    """Name the first few of many things: ``a, b, c, d, e and 12 more``."""
    texts = [str(name) for name in names]
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
