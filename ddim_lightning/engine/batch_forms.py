"""A batch of any common form is taken apart into its clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

VIDEO, PROMPTS, ID = ("video", "frames"), ("prompt", "prompts"), ("id", "name", "path")
KEYS = (
    *VIDEO,
    "latents",
    *PROMPTS,
    "source_prompt",
    "negative_prompt",
    *ID,
    "fps",
    "mask",
    "first_frame",
    "seed",
    "num_frames",
)
"""What a mapping may say of a clip."""
TAKEN = (
    "must be a Clip, a mapping with 'video', 'frames' or 'latents', a tensor of frames, a pair (tensor, prompts), "
    "or a list of these"
)


@dataclass(frozen=True)
class Item:
    """An `Item` is one clip of a batch, as it came.

    Args:
        name: Its id where it brings none.
        value: A `Clip`, a mapping or a tensor without a batch axis, what is none of these, or the error that taking
            the batch apart ended in.
    """

    name: str
    value: object


def is_one_clip(batch: object) -> bool:
    """Whether a batch is one clip by its form, rather than a list or a batch axis of any length."""
    if isinstance(batch, Mapping):
        return all(size is None for size in _count_by_key(batch).values())
    if _is_pair(batch):
        return _count(batch[0]) is None  # type: ignore[index]
    return _count(batch) is None


def split_batch(batch: Any, name: str) -> list[Item]:
    """Take a batch apart; its clips are looked at no closer than that needs.

    Args:
        batch: What a data module yields.
        name: Of what brings no id: ``name`` where it is one clip, ``name-clip-3`` in a batch of several.

    Returns:
        Its clips in order; what cannot be taken apart is one item with an error, or one for each name that it has.
    """
    if _is_pair(batch):
        batch = {"video": batch[0], "prompts": batch[1]}
    if is_one_clip(batch):
        return [Item(name, batch)]
    if isinstance(batch, list | tuple):
        if not batch:
            return [Item(name, TypeError(f"batch: {TAKEN}, got an empty {type(batch).__name__}"))]
        return [item for k, one in enumerate(batch) for item in split_batch(one, f"{name}-clip-{k}")]
    try:
        split = _split_mapping(batch if isinstance(batch, Mapping) else {"video": batch})
    except (TypeError, ValueError) as error:
        return [Item(one, error) for one in _list_names(batch) or [name]]
    return [Item(f"{name}-clip-{k}", one) for k, one in enumerate(split)]


def _is_pair(batch: Any) -> bool:
    """Whether a batch is a tensor and its prompts, as a data set of pairs gives them, collated or not."""
    if not isinstance(batch, list | tuple) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        return False
    prompts = batch[1]
    return isinstance(prompts, str) or (
        isinstance(prompts, list | tuple) and all(isinstance(one, str | list | tuple) for one in prompts)
    )


def _count(value: object) -> int | None:
    """How many clips a value holds; ``None`` where it has no batch axis."""
    if isinstance(value, Tensor):
        return len(value) if value.dim() == 5 else None
    return len(value) if isinstance(value, list | tuple) else None


def _count_by_key(batch: Mapping[Any, Any]) -> dict[str, int | None]:
    """Count the clips by key; beside the frames of one clip the 1 in front of its latents is no batch axis."""
    counts = {key: _count(batch[key]) for key in (*VIDEO, "latents") if batch.get(key) is not None}
    if counts.get("latents") == 1 and any(counts.get(key, 0) is None for key in VIDEO):
        counts["latents"] = None
    return counts


def _list_names(batch: object) -> list[str]:
    """List the names of the clips in a collated mapping; none where it does not say them."""
    key = next((key for key in ID if batch.get(key) is not None), None) if isinstance(batch, Mapping) else None
    names = batch[key] if key is not None and isinstance(batch, Mapping) else ()
    names = names if isinstance(names, list | tuple) else ()
    return [Path(name).stem if key == "path" else str(name) for name in names]


def _split_mapping(batch: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    """Take a collated mapping apart; a value without a batch axis is every clip's."""
    sizes = _count_by_key(batch)
    size = next(iter(sizes.values()))
    if size is None or len(set(sizes.values())) > 1:
        raise ValueError(f"batch: video and latents must be of equally many clips, got {sizes}")
    columns = {key: _split_value(key, value, size) for key, value in batch.items()}
    return [{key: column[k] for key, column in columns.items()} for k in range(size)]


def _split_value(key: Any, value: Any, size: int) -> Sequence[Any]:
    if key in PROMPTS:
        return _split_prompts(key, value, size)
    has_axis = isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.dim() > 0)
    if key not in KEYS or not has_axis:
        if key in ID and isinstance(value, str | Path) and size > 1:
            raise ValueError(f"{key}: must have an entry for each of {size} clips, got {value!r}")
        return [value] * size
    if len(value) != size:
        raise ValueError(f"{key}: must have an entry for each of {size} clips, got {len(value)}")
    return list(value)


def _split_prompts(key: str, value: Any, size: int) -> Sequence[Any]:
    """Give each clip its prompts.

    Torch's default collation turns lists of texts around: it makes a tuple of first prompts, a tuple of second ones.
    """
    if not isinstance(value, list | tuple):
        return [value] * size
    turned = bool(value) and all(isinstance(one, tuple) and len(one) == size for one in value)
    if turned and len(value) == size > 1:
        hint = "give a list of lists, or a list of mappings (collate_fn=list)"
        raise ValueError(f"{key}: {size} tuples of {size} for {size} clips can be read in two ways; {hint}")
    if turned and len(value) != size:
        return list(zip(*value, strict=True))
    if len(value) == size:
        return value
    if size == 1 and all(isinstance(one, str) for one in value):
        return [value]
    raise ValueError(f"{key}: must have an entry for each of {size} clips, got {len(value)}")
