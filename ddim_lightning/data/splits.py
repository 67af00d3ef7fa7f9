"""Examples are divided into training and validation, and no clip is in both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ddim_lightning.data.examples import Example, Split


def divide(
    examples: Sequence[Example], val: Sequence[Example] | None = None, val_share: float = 0.0, seed: int = 0
) -> dict[Split, list[Example]]:
    """Divide examples into those that train and those that validate.

    Either are validation's examples given, or the rows name their split, or a share is drawn: it depends on the seed
    and the paths alone, not on the order of the rows. Examples that share a clip stay together.

    Args:
        examples: In any order.
        val: Examples that validate; none of the others does then.
        val_share: Share of validation, 0 .. 1; of a positive share at least one example.
        seed: Of the draw.

    Returns:
        Training and validation, each in the order of the rows.

    Raises:
        ValueError: If validation is asked for in two ways, a clip would do both, or nothing is left to train on.
    """
    named = any(example.split for example in examples)
    if val_share and (named or val is not None):
        other = "rows name their split" if named else "what validates is given"
        raise ValueError(f"val_share: must be 0 where {other}, got {val_share}")
    if named and val is not None:
        raise ValueError(f"{examples[0].origin}: must not name splits where what validates is given")
    splits = _draw(examples, val_share, seed) if val_share else [example.split or "train" for example in examples]
    divided: dict[Split, list[Example]] = {"train": [], "val": list(val or ())}
    for example, split in zip(examples, splits, strict=True):
        divided[split].append(example)
    if not divided["train"]:
        raise ValueError(f"there must be something to train on, but all of {len(examples)} examples validate")
    trained = {video.resolve() for example in divided["train"] for video in example.videos}
    for example in divided["val"]:
        for video in example.videos:
            if video.resolve() in trained:
                raise ValueError(f"{example.origin}: {video} must not validate, because it trains, too")
    return divided


def _draw(examples: Sequence[Example], share: float, seed: int) -> list[Split]:
    """Name the split of each example: groups that share clips go to validation in a drawn order until it is full."""
    groups: dict[Path, list[int]] = {}
    for index, group in enumerate(_group(examples)):
        groups.setdefault(group, []).append(index)
    # Paths from where all clips lie, so that a data set that was moved is divided as before.
    base = os.path.commonpath([group.parent for group in groups])
    names_of = {group: os.fsencode(f"{seed}/{group.relative_to(base)}") for group in groups}
    wanted = max(1, round(share * len(examples)))
    names: list[Split] = ["train"] * len(examples)
    for group in sorted(groups, key=lambda group: hashlib.blake2s(names_of[group]).digest()):
        if wanted <= 0:
            break
        wanted -= len(groups[group])
        for index in groups[group]:
            names[index] = "val"
    return names


def _group(examples: Sequence[Example]) -> list[Path]:
    """Name the group of each example by its first clip; clips are joined by the examples that have both."""
    parents: dict[Path, Path] = {}

    def find(video: Path) -> Path:
        while (parent := parents.setdefault(video, video)) != video:
            parents[video] = video = parents[parent]
        return video

    for example in examples:
        first, *others = (find(video.resolve()) for video in example.videos)
        for other in others:
            low, high = sorted((first, find(other)))
            parents[high] = first = low
    return [find(example.videos[0].resolve()) for example in examples]
