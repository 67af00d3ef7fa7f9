"""A record says in JSON's types what became of a clip; it is the content of ``result.json`` and a line of the list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ddim_lightning.report.environment import read_versions
from ddim_lightning.report.text import dump_json
from ddim_lightning.types import Clip, ClipResult

SCHEMA = 3
"""Version of the keys of a record."""


def make_record(result: ClipResult, files: Mapping[str, Any]) -> dict[str, Any]:
    """Say in JSON's types what became of a clip: the content of ``result.json``.

    Args:
        result: The clip and what became of it.
        files: What was written, by kind; names are relative to the clip's folder.

    Returns:
        The record; its keys always stand in the same order.

    Raises:
        ValueError: When a metric is no number (NaN).
    """
    clip = result.clip
    frames: dict[str, float] | None = None
    if isinstance(clip, Clip):
        chosen = clip.selection
        frames = {
            "start": chosen.start if chosen else 0,
            "stride": chosen.stride if chosen else 1,
            "count": len(clip.frames),
            "dropped": chosen.dropped if chosen else 0,
            "cropped": chosen.cropped if chosen else 0.0,
        }
    return {
        "schema": SCHEMA,
        "id": clip.id,
        "status": result.status,
        "reason": result.reason,
        "prompts": list(clip.prompts),
        "seed": result.seed,
        "frames": frames,
        "fps": f"{clip.fps.numerator}/{clip.fps.denominator}" if isinstance(clip, Clip) else None,
        "metrics": {
            "vae": _finite(result.metrics.get("vae", {})),
            "reconstruction": _finite(result.metrics.get("reconstruction", {})),
            "edits": [_finite(edit.metrics) for edit in result.edits],
        },
        "diagnosis": dict(result.diagnosis),
        "seconds": _finite(result.seconds),
        "nfe": dict(result.nfe),
        "windows": dict(result.windows),
        "peak_gib": _finite(result.peak_gib),
        "settings": {**result.settings, **_clip_settings(clip)},
        "fingerprint": dict(result.fingerprint),
        "versions": read_versions(),
        "warnings": list(result.warnings),
        "files": {"input": clip.source, **files},
        **({"rows": [dict(row) for row in clip.rows]} if isinstance(clip, Clip) and clip.rows else {}),
    }


def is_record(value: object) -> bool:
    """Whether a value read from JSON is a record of ours, of this version or another."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("schema"), int)
        and isinstance(value.get("id"), str)
        and value.get("status") in ("done", "skipped")
        and isinstance(value.get("files"), Mapping)
        and isinstance(value.get("versions"), Mapping)
        and "ddim-lightning" in value["versions"]
    )


def dump_record(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Return a record as JSON in UTF-8, ending with its line.

    Args:
        record: The record.
        indent: Spaces of indentation; ``None`` makes one line.

    Raises:
        ValueError: When a number is not finite.
    """
    return (dump_json(record, indent) + "\n").encode()


def _clip_settings(clip: Any) -> dict[str, Any]:
    if not isinstance(clip, Clip):
        return {}
    return {
        "source_prompt": clip.source_prompt,
        "negative_prompt": clip.negative_prompt,
        "mask": clip.mask_source or clip.mask is not None,
        "first_frame": clip.first_frame_source or clip.first_frame is not None,
        **({"source_prompts": list(clip.source_prompts)} if clip.source_prompts else {}),
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Turn infinity, the PSNR of equal videos, and nothing else into JSON's null."""
    for name, number in numbers.items():
        if math.isnan(number) or number == -math.inf:
            raise ValueError(f"metrics: {name} must be a number, got {number}")
    return {name: None if number == math.inf else number for name, number in numbers.items()}
