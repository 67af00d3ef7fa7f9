"""Out of memory is told in one sentence: the stage, what it needs as predicted, what the device has, and what fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ddim_lightning.engine.artifacts import holds_blocks
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.rows import find_widest
from ddim_lightning.models.memory import Size, find_largest, predict_peaks
from ddim_lightning.models.weight_files import Header
from ddim_lightning.runtime.timing import read_room_gib
from ddim_lightning.types import Clip, Stage


def tell_shortage(
    engine: InversionEngine, clip: Clip, stage: Stage, runtime: Mapping[str, Any], guidance_scale: float
) -> str:
    """Say what a stage of a clip needed that the device did not have, and which ``offload`` fits.

    Args:
        engine: The loaded model.
        clip: The clip.
        stage: The stage that ran out of memory.
        runtime: The fields of `Runtime`.
        guidance_scale: Of the edits.
    """
    size = _make_size(engine, clip, runtime, guidance_scale)
    parts = {"transformer": engine.components.transformer, "vae": engine.components.vae}
    peaks = predict_peaks(
        {part: {name: Header(tuple(one.shape), "") for name, one in parts[part].named_parameters()} for part in parts},
        {part: dict(module.config) for part, module in parts.items()},
        engine.components.limits,
        size,
    )
    key = "invert" if stage == "reconstruct" else stage
    need, room = peaks[runtime["offload"]][key], read_room_gib(engine.device)
    has = "" if room is None else f", and this process can have {room:.1f} of the device"
    clip_size = f"{size.num_frames} frames of {size.height} x {size.width}"
    said = (
        f"{stage}: out of memory: {clip_size} need {need:.1f} GiB with offload={runtime['offload']} as predicted{has}"
    )
    return f"{said}; {_advise(peaks, key, runtime, room)}"


def _advise(
    peaks: Mapping[str, Mapping[str, float]], stage: str, runtime: Mapping[str, Any], room_gib: float | None
) -> str:
    """Say what to change so that a stage fits; the offloads stand in the order of what they need."""
    whole = runtime["exported"] is not None and not holds_blocks(runtime["exported"])
    keeps_all = runtime["forward"] == "diffusers" or runtime["precision"] != "none" or whole
    offloads = list(peaks)
    for offload in () if keeps_all else offloads[offloads.index(runtime["offload"]) + 1 :]:
        need = find_largest(peaks[offload], runtime["rows_per_pass"])
        if room_gib is None or need <= room_gib:
            return f"offload={offload} needs {need:.1f}"
    if stage == "edit" and runtime["rows_per_pass"] != 1:
        return f"rows_per_pass=1 needs {peaks[runtime['offload']]['edit by 1']:.1f}"
    if stage in ("encode", "decode") and not runtime["vae_tiling"]:
        return "take smaller frames, or vae_tiling, which is not exact"
    return "take fewer or smaller frames"


def _make_size(engine: InversionEngine, clip: Clip, runtime: Mapping[str, Any], guidance_scale: float) -> Size:
    transformer, frames = engine.components.transformer, clip.frames
    widest = find_widest(
        engine.inverter,
        engine.editor,
        engine.schedule,
        num_layers=len(transformer.transformer_blocks),
        guidance_scale=guidance_scale,
    )
    sources = len(set(widest.reads))
    together = len(clip.prompts) if runtime["batch_prompts"] and clip.prompts else 1
    return Size(
        num_frames=min(len(frames), engine.components.limits.num_frames),  # longer clips are done in windows
        height=frames.shape[-2],
        width=frames.shape[-1],
        rows=sources + together * (widest.rows - sources),
        bytes_each=torch.empty(0, dtype=transformer.dtype).element_size(),
        holds=runtime["context"] if engine.editor.context_nfe > 0 else "none",
        sources=sources,
        rows_per_pass=runtime["rows_per_pass"],
    )
