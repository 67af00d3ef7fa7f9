"""What stands for a clip in a batch is made one, with every field of its type."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim_lightning.data.manifest import check_fps
from ddim_lightning.diffusion.padding import pad_front
from ddim_lightning.engine.batch import check_clip, say_kind
from ddim_lightning.engine.batch_forms import ID, KEYS, PROMPTS, TAKEN, VIDEO, Item
from ddim_lightning.engine.clip_rules import check_latents
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.models.vae import quantize
from ddim_lightning.types import Clip, Frames, Latents, UnreadableClip

_FROM_LATENTS = "latents: given without frames, so the source is what the VAE decodes of them"
_NO_OPTIONS = {*KEYS, *Clip.__dataclass_fields__}  # the source of a clip is not that of a model
_FINEST_FPS = 1001  # of 30000/1001, the rate that a float32 of 29.97 is meant to be


def find_id(item: Item) -> str:
    """Return the id that a clip brings, or the name of its place in the run."""
    value: Any = item.value
    if isinstance(value, Mapping):
        key = _find(value, ID)
        found = None if key is None else _make_id(key, value[key])
    else:
        found = getattr(value, "id", None)
    return found if isinstance(found, str) else item.name


def make_clip(item: Item, engine: InversionEngine, options: Collection[str] = ()) -> Clip | UnreadableClip:
    """Make a clip of what came.

    Args:
        item: One clip of a batch.
        engine: Decodes latents that come without frames.
        options: Names that belong to the module: a mapping that brings one is refused.

    Raises:
        TypeError: What is no clip, or a field of a wrong type; the message names the field.
        ValueError: A field of a wrong shape or out of its range.
    """
    value = item.value
    if isinstance(value, Exception):
        raise value
    if isinstance(value, Tensor):
        value = {"video": value}
    if isinstance(value, Mapping):
        value = _read_mapping(value, find_id(item), engine, options)
    if not isinstance(value, Clip | UnreadableClip):
        raise TypeError(f"batch: {TAKEN}, got {say_kind(value)}")
    check_clip(value)
    return value


def _read_mapping(values: Mapping[Any, Any], clip_id: str, engine: InversionEngine, options: Collection[str]) -> Clip:
    """Make a clip of a mapping without a batch axis."""
    video, prompts = _find(values, VIDEO), _find(values, PROMPTS)
    latents = values.get("latents")
    if video is None and latents is None:
        raise TypeError(f"batch: {TAKEN}, got {say_kind(values)}")
    _check_keys(values, options)
    given: dict[str, Any] = {key: values[key] for key in ("source_prompt", "negative_prompt") if _has(values, key)}
    if prompts is not None:
        given["prompts"] = (values[prompts],) if isinstance(values[prompts], str) else values[prompts]
    if latents is not None:
        given["latents"] = _read_latents(latents, engine)
    if video is None:
        given["warnings"] = (_FROM_LATENTS,)
    if _has(values, "mask"):
        given["mask"] = _read_mask(values["mask"])
    if _has(values, "first_frame"):
        given["first_frame"] = _read_first_frame(values["first_frame"])
    if _has(values, "seed"):
        given["seed"] = _read_number("seed", values["seed"])
    if _has(values, "fps"):
        given["fps"] = Fraction(check_fps(_read_number("fps", values["fps"]))).limit_denominator(_FINEST_FPS)
    count = _read_number("num_frames", values["num_frames"]) if _has(values, "num_frames") else None
    frames = _decode(given["latents"], engine, count) if video is None else _read_frames(video, values[video])
    if count not in (None, len(frames)):
        raise ValueError(f"num_frames: must be that of the frames, {len(frames)}, got {count}")
    return Clip(clip_id, frames, **given)


def _check_keys(values: Mapping[Any, Any], options: Collection[str]) -> None:
    """Raise where a key contradicts another or belongs to the module; warn of what has no effect."""
    for names in (VIDEO, PROMPTS):
        if all(_has(values, name) for name in names):
            raise ValueError(f"{names[0]}: must be unset beside {names[1]}, got both")
    given = [key for key in values if _has(values, key)]
    for key in given:
        if key in options and key not in _NO_OPTIONS:
            raise TypeError(f"{key}: is an option of the module, not of a clip; got {values[key]!r}")
    name = _find(values, ID)
    if name is not None and _make_id(name, values[name]) is None:
        raise TypeError(f"{name}: must be text or an integer, got {say_kind(values[name])}")
    unused = [str(key) for key in given if key not in KEYS or (key in ID and key != name)]
    if unused:
        warnings.warn(f"batch: what a clip brings as {', '.join(unused)} has no effect", stacklevel=2)


def _read_frames(name: str, given: Any) -> Frames:
    """Return uint8 frames of a tensor, (f, 3, h, w) uint8 or floats in 0 .. 1."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: must be a Tensor, got {say_kind(given)}")
    video: Tensor = given[0] if given.dim() == 5 and len(given) == 1 else given
    shape = tuple(video.shape)
    if len(shape) != 4 or shape[1] != 3:
        hints = {0: ", whose first axis has the channels: use .transpose(0, 1)"}
        hints[3] = ", whose last axis has the channels: use .permute(0, 3, 1, 2)"
        hint = next((said for axis, said in hints.items() if len(shape) == 4 and shape[axis] == 3), "")
        raise ValueError(f"{name}: each clip must have shape (f, 3, h, w), got {shape}{hint}")
    if video.dtype == torch.uint8:
        return video
    if not video.is_floating_point():
        kind = str(video.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: must be uint8 in 0 .. 255 or floats in 0 .. 1, got {kind}")
    low, high = (float(value) for value in video.aminmax()) if video.numel() else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):
        hint = "; bring -1 .. 1 there by (video + 1) / 2" if low >= -1.0 and high <= 1.0 else ""
        raise ValueError(f"{name}: floats must lie in 0 .. 1, got {low:g} .. {high:g}{hint}")
    return (video.float() * 255.0).round().to(torch.uint8)


def _read_first_frame(given: Any) -> Any:
    """Return a picture (c, h, w) uint8, of a tensor that may also be of floats in 0 .. 1."""
    is_picture = isinstance(given, Tensor) and given.dim() == 3
    return _read_frames("first_frame", given[None])[0] if is_picture else given


def _read_latents(given: Any, engine: InversionEngine) -> Latents:
    """Return latents (1, f, c, h, w) float32, padded as `InversionEngine.encode` pads them."""
    if not isinstance(given, Tensor):
        raise TypeError(f"latents: must be a Tensor, got {say_kind(given)}")
    latents: Tensor = given if given.dim() == 5 else given[None]
    check_latents(latents, engine.components)
    return pad_front(latents.float(), engine.components.limits.patch_frames)


@torch.no_grad()
def _decode(latents: Latents, engine: InversionEngine, num_frames: int | None) -> Frames:
    """Decode latents to frames on the host; see `InversionEngine.decode`."""
    return torch.cat([quantize(piece[0]) for piece in engine.stream(latents, num_frames)])


def _read_mask(mask: Any) -> Any:
    """Return a mask (f, h, w) bool of one that has an axis of channels, or whose values are 0 and 1."""
    if not isinstance(mask, Tensor):
        return mask
    mask = mask[:, 0] if mask.dim() == 4 and mask.shape[1] == 1 else mask
    others = mask[(mask != 0) & (mask != 1)]
    if others.numel():
        raise ValueError(f"mask: must be bool, or of zeros and ones, got a value of {float(others[0]):g}")
    return mask.bool()


def _read_number(name: str, value: Any) -> Any:
    """Return a number as Python's own, or raise a TypeError."""
    value = _take_item(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{name}: must be a number, got {say_kind(value)}")
    return value


def _make_id(key: str, value: Any) -> str | None:
    """Return the id that a value gives: itself, or of a path the name without its suffix."""
    value = _take_item(value)
    if key == "path" and isinstance(value, str | Path):
        return Path(value).stem
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _take_item(value: Any) -> Any:
    """Return what is in a tensor of one, as collation makes it, or in a scalar of a table's column; else the value."""
    is_one = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1)
    return value.item() if is_one else value


def _find(values: Mapping[Any, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of the names that a mapping has."""
    return next((name for name in names if _has(values, name)), None)


def _has(values: Mapping[Any, Any], name: str) -> bool:
    return values.get(name) is not None
