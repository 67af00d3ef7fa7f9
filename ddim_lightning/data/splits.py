"""Examples are divided into training and validation, and no clip is in both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ddim_lightning.data.examples import Example, Split


def split_examples(examples: Sequence[Example], val_share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Divide examples into those that train and those that validate.

    What the rows name holds. Where they name nothing, a share is drawn: it depends on the seed and the paths alone, not
    on the order of the rows. Examples that share a clip stay together.

    Args:
        examples: In any order.
        val_share: Share of validation, 0 .. 1, where no row names a split; of a positive share at least one clip.
        seed: Of the draw.

    Returns:
        Training and validation, each in the order of the rows.

    Raises:
        ValueError: If a share is asked for and rows name splits, or nothing is left to train on.
    """
    named: list[Split] = [example.split or "train" for example in examples]
    if val_share:
        if any(example.split for example in examples):
            raise ValueError(f"val_share: must be 0 where rows name their split, got {val_share}")
        named = _draw(examples, val_share, seed)
    train = [example for example, name in zip(examples, named, strict=True) if name == "train"]
    val = [example for example, name in zip(examples, named, strict=True) if name == "val"]
    if not train:
        raise ValueError(f"val_share: must leave something to train on, but all {len(val)} examples validate")
    return train, val


def check_splits(train: Sequence[Example], val: Sequence[Example]) -> None:
    """Raise a ValueError for a clip that both trains and validates."""
    trained = {video.resolve() for example in train for video in example.videos}
    for example in val:
        for video in example.videos:
            if video.resolve() in trained:
                raise ValueError(f"{example.origin}: {video} must not validate, because it trains, too")


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
