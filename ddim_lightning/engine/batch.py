"""The fields of a clip are looked at before any work: what a record cannot say would end the run when it is written."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor

from ddim_lightning.types import Clip, FrameSelection, UnreadableClip

_TEXT, _OPTIONAL_TEXT, _TEXTS = (str,), (str, type(None)), (tuple, list)
_CLIP: dict[str, tuple[type, ...]] = {
    "id": _TEXT,
    "frames": (Tensor,),
    "fps": (Fraction,),
    "prompts": _TEXTS,
    "source_prompt": _OPTIONAL_TEXT,
    "negative_prompt": _TEXT,
    "seed": (int, type(None)),
    "selection": (FrameSelection, type(None)),
    "source": _OPTIONAL_TEXT,
    "warnings": _TEXTS,
    "mask": (Tensor, type(None)),
    "mask_source": _OPTIONAL_TEXT,
    "first_frame": (Tensor, type(None)),
    "first_frame_source": _OPTIONAL_TEXT,
    "latents": (Tensor, type(None)),
    "source_prompts": _TEXTS,
    "rows": (tuple, list),
}
_UNREADABLE: dict[str, tuple[type, ...]] = {"id": _TEXT, "source": _TEXT, "reason": _TEXT, "prompts": _TEXTS}


def check_clip(clip: Clip | UnreadableClip) -> None:
    """Check that the fields of a clip, or of what stands for one, have their types.

    Args:
        clip: What a data module yields, or what was made of it.

    Raises:
        TypeError: Where one has another; the message names the field.
    """
    for name, kinds in (_CLIP if isinstance(clip, Clip) else _UNREADABLE).items():
        value: Any = getattr(clip, name)
        if kinds is _TEXTS:
            others = [one for one in value if not isinstance(one, str)] if isinstance(value, kinds) else [value]
            if others:
                raise TypeError(f"{name}: must be a tuple of texts, got {reprlib.repr(others[0])}")
        elif not isinstance(value, kinds):
            rule = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise TypeError(f"{name}: must be {rule}, got {say_kind(value)}")


def say_kind(value: object) -> str:
    """Say of which types a value is: ``list of Clip``, ``dict of frames, fps``."""
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"{name} of {', '.join(map(str, value))}"
    return f"{name} of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else name
